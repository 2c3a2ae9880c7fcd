"""What each golden message under ``schemas/golden/`` means, as objects of today.

Add a file and its object with every release that changes a message (``<Type>.v1.json`` is the first one, then
``<Type>.v1-2.json`` ...). Never change a file that was released.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from msgspec.structs import replace

from clickloop import commands as c
from clickloop import events as e

AT = datetime(2026, 3, 2, 9, 15, 4, 250_000, tzinfo=UTC)
BASE = "base-8c1e55d0f3a2"
ADAPTER = "adapter-3f9d2c1b7a60"
QUERY = "0195563f2a1070018a4b3c2d1e0faaaa"
RANGE = e.OffsetRange(topic="clickloop.training-examples.v1", partition=2, start=1000, end=1310)

GOLDEN: dict[str, e.Message] = {
    "ResultPreferred.v1": e.ResultPreferred(
        event_id="p-1",
        index="products",
        query_id=QUERY,
        preferred="sku-17",
        alternative="sku-4",
        preferred_at=AT,
        strength=0.7,
        split_key="5d41402abc4b2a76b9719d911017c592",
    ),
    "DocumentChanged.v1": e.DocumentChanged(
        event_id="d-1",
        index="products",
        doc_id="sku-17",
        changed_at=AT,
        text='Für nasse Wege, "griffig"\n\t🥾 \u2028',
        title="Schuh",
        attributes={"brand": "Aria", "price": 89.9, "year": 2026, "in_stock": True},
        deleted=True,
    ),
    "QueryServed.v1": e.QueryServed(
        event_id="q-1",
        index="products",
        query_id=QUERY,
        query="shoes for rocky paths",
        served_at=AT,
        results=[
            e.Result(doc_id="sku-17", position=1, score=0.71, propensity=0.9),
            e.Result(doc_id="sku-4", position=2),
        ],
        split_key="5d41402abc4b2a76b9719d911017c592",
        version=ADAPTER,
        space=BASE,
        split_id="split-3",
        arm="candidate",
        latency_seconds=0.0123,
        sketch=b"\x01\x02\x03\xff\x80",
    ),
    "ResultClicked.v1": e.ResultClicked(
        event_id="c-1",
        index="products",
        query_id=QUERY,
        doc_id="sku-17",
        clicked_at=AT.astimezone(timezone(timedelta(hours=1))),
        position=1,
        dwell_seconds=42.5,
        split_key="5d41402abc4b2a76b9719d911017c592",
    ),
    "ResultRated.v1": e.ResultRated(
        event_id="r-1",
        index="products",
        query_id=QUERY,
        doc_id="sku-17",
        rated_at=AT,
        rating=4.5,
        split_key="5d41402abc4b2a76b9719d911017c592",
    ),
    "ExampleFormed.v1": e.ExampleFormed(
        event_id="x-1/2",
        index="products",
        example_id="x-1",
        revision=2,
        query_id=QUERY,
        query="shoes for rocky paths",
        doc_id="sku-17",
        label="positive",
        weight=0.75,
        served_at=AT,
        formed_at=AT + timedelta(seconds=3),
        negatives=["sku-4", "sku-9"],
        position=3,
        clicks=2,
        rating=5.0,
        dwell_seconds=42.5,
        split_key="5d41402abc4b2a76b9719d911017c592",
        version=ADAPTER,
        space=BASE,
        arm="candidate",
    ),
    "ExampleFormed.v1-2": e.ExampleFormed(
        event_id="x-2/1",
        index="products",
        example_id="x-2",
        revision=1,
        query_id="synthetic-1",
        query="trail shoes",
        doc_id="sku-17",
        label="positive",
        weight=0.1,
        served_at=AT,
        formed_at=AT,
        negatives=["sku-4"],
        position=1,
        clicks=1,
        rating=4.0,
        dwell_seconds=1.5,
        split_key="5d41402abc4b2a76b9719d911017c592",
        version=ADAPTER,
        space=BASE,
        arm="live",
        origin="synthetic",
    ),
    "DriftMeasured.v1": e.DriftMeasured(
        event_id="w-1",
        index="products",
        partition=2,
        window_start=AT,
        window_end=AT + timedelta(minutes=10),
        queries=1200,
        clicks=410,
        ratings=12,
        rating_sum=50.5,
        reciprocal_rank_sum=266.3,
        abandoned=820,
        examples=310,
        ranges=[RANGE],
        arms=[e.ArmCounts(arm="live", version=BASE, queries=1200, clicked_queries=380, reciprocal_rank_sum=266.3)],
        measurements=[
            e.Measurement(detector="query_distribution", value=0.081, threshold=0.052, p_value=0.01, exceeded=True)
        ],
    ),
    "DriftMeasured.v1-2": e.DriftMeasured(
        event_id="w-1",
        index="products",
        partition=2,
        window_start=AT,
        window_end=AT + timedelta(minutes=10),
        queries=1200,
        clicks=410,
        ratings=12,
        rating_sum=50.5,
        reciprocal_rank_sum=266.3,
        abandoned=820,
        examples=310,
        ranges=[RANGE],
        arms=[e.ArmCounts(arm="live", version=BASE, queries=1200, clicked_queries=380, reciprocal_rank_sum=266.3)],
        sketches=1200,
        sketch_sum=[5120, -803, 0, 12],
        measurements=[
            e.Measurement(detector="query_distance", value=0.081, threshold=0.052, p_value=0.01, exceeded=True)
        ],
    ),
    "TrainingProgressed.v1": e.TrainingProgressed(
        event_id="t-1",
        index="products",
        run_id="run-1",
        command_id="k-1",
        kind="query_encoder",
        stage="done",
        at=AT,
        step=200,
        steps=200,
        loss=1.93,
        examples_per_second=5120.5,
        eta_seconds=0.5,
        version=ADAPTER,
        verdict="inconclusive",
        message="published",
    ),
    "ModelVersionPublished.v1": e.ModelVersionPublished(
        event_id="v-1",
        index="products",
        version=ADAPTER,
        kind="adapter",
        space=BASE,
        artifact_uri="s3://models/clickloop/versions/adapter-3f9d2c1b7a60",
        digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        published_at=AT,
        parent=BASE,
        signature="c2lnbmF0dXJl",
        lineage=e.Lineage(
            command_id="k-1",
            run_id="run-1",
            strategy="incremental",
            ranges=[RANGE],
            examples=310,
            documents=4495,
            base_model="all-MiniLM-L6-v2",
            settings={"learning_rate": 0.001, "epochs": 30, "loss": "softmax", "whole_corpus": True},
            seed=17,
            code_version="0.1.0",
            train_seconds=0.74,
            newest_example_at=AT,
        ),
        gate=e.GateResult(
            verdict="pass",
            queries=120,
            metrics={"mrr_at_10": e.Estimate(before=0.427, after=0.453, change=0.061, low=0.02, high=0.1)},
            reasons=["mrr_at_10 rose"],
        ),
    ),
    "SplitChanged.v1": e.SplitChanged(
        event_id="s-1",
        index="products",
        split_id="split-3",
        salt="products-1",
        arms=[
            e.Arm(name="live", version=BASE, buckets=9500),
            e.Arm(name="candidate", version=ADAPTER, buckets=500),
        ],
        changed_at=AT,
        sequence=3,
        reason="passed its gate",
    ),
    "SplitChanged.v1-2": e.SplitChanged(
        event_id="s-2",
        index="products",
        split_id="split-4",
        salt="products-1",
        arms=[e.Arm(name="live", version=BASE, buckets=10_000)],
        changed_at=AT,
        sequence=4,
        reason="rolled back: fewer clicks",
        chosen_at=AT,
    ),
    "NodeReported.v1": e.NodeReported(
        event_id="n-1",
        index="products",
        node_id="search-1",
        reported_at=AT,
        state="swapped",
        address="http://10.0.0.7:8080",
        versions=[BASE, ADAPTER],
        version=ADAPTER,
        split_id="split-3",
        documents=4495,
        queries=18211,
        failed_queries=1,
        swap_seconds=0.8,
        message="warm",
    ),
    "NodeReported.v1-2": e.NodeReported(
        event_id="n-2",
        index="products",
        node_id="search-1",
        reported_at=AT,
        state="rejected",
        address="http://10.0.0.7:8080",
        versions=[BASE],
        rejected=[ADAPTER],
        version=ADAPTER,
        split_id="split-3",
        documents=4495,
        queries=18211,
        failed_queries=1,
        swap_seconds=0.8,
        message="its manifest is not signed",
    ),
    "MessageQuarantined.v1": e.MessageQuarantined(
        event_id="clickloop.clicks.v1/2/88123",
        index="products",
        topic="clickloop.clicks.v1",
        partition=2,
        offset=88123,
        value=b"\x00\xffno JSON",
        quarantined_at=AT,
        service="streams",
        error="UnreadableMessageError",
        reason="no readable JSON",
        key=b"\xfe",
    ),
    "MessageQuarantined.v1-2": e.MessageQuarantined(
        event_id="clickloop.clicks.v1/2/88124",
        index="products",
        topic="clickloop.clicks.v1",
        partition=2,
        offset=88124,
        value=b"{}",
        quarantined_at=AT,
        service="streams",
        error="InvalidMessageError",
        reason="not a valid ResultClicked",
        key=b"q-1",
        headers=[e.Header(name="ce_id", value=b"7f3a"), e.Header(name="ce_source", value=b"/shop")],
    ),
    "Retrain.v1": c.Retrain(
        command_id="k-1",
        index="products",
        issued_at=AT,
        kinds=["adapter", "query_encoder"],
        ranges=[RANGE],
        reason=c.Reason(policies=["threshold", "drift"], text="310 new examples", figures={"examples": 310.0}),
        parent=BASE,
        strategy="contrastive",
        budget_seconds=600.0,
    ),
    "Rollback.v1": c.Rollback(
        command_id="k-2", index="products", issued_at=AT, reason="odd results", version=BASE
    ),
    "Promote.v1": c.Promote(command_id="k-3", index="products", issued_at=AT, version=ADAPTER, reason="checked"),
    "Pause.v1": c.Pause(command_id="k-4", index="products", issued_at=AT, paused=True, reason="sale"),
    "ForgetUser.v1": c.ForgetUser(
        command_id="k-5", index="products", issued_at=AT, split_key="5d41402abc4b2a76b9719d911017c592"
    ),
    "Cancel.v1": c.Cancel(command_id="k-6", index="products", issued_at=AT, retrain="k-1", reason="wrong parent"),
}

GOLDEN["QueryServed.v1-2"] = replace(GOLDEN["QueryServed.v1"], domain="shoes", swapped=1)
GOLDEN["ResultRated.v1-2"] = replace(GOLDEN["ResultRated.v1"], accuracy=4.0, relevance=5.0)
GOLDEN["ExampleFormed.v1-3"] = replace(
    GOLDEN["ExampleFormed.v1-2"],
    trust=0.75,
    reason="too_fast",
    difficulty="hard",
    domain="shoes",
    propensity=0.0022,
    swapped=2,
)
GOLDEN["ExampleFormed.v1-4"] = replace(GOLDEN["ExampleFormed.v1-3"], worse={"sku-4": 0.6})
GOLDEN["ModelVersionPublished.v1-2"] = replace(
    GOLDEN["ModelVersionPublished.v1"],
    gate=e.GateResult(
        verdict="fail",
        queries=120,
        metrics={"mrr_at_10": e.Estimate(before=0.427, after=0.453, change=0.061, low=0.02, high=0.1)},
        reasons=["the golden set fell"],
        golden=e.GoldenResult(
            digest="ab" * 32,
            queries=40,
            left_out=2,
            metrics={"mrr_at_10": e.Estimate(before=0.8, after=0.76, change=-0.05, low=-0.11, high=0.01)},
        ),
        slices=[
            e.SliceResult(
                slice="domain shoes",
                queries=60,
                mrr_at_10=e.Estimate(before=0.4, after=0.38, change=-0.05, low=-0.1, high=0.02),
            )
        ],
    ),
)
GOLDEN["ModelVersionPublished.v1-3"] = replace(
    GOLDEN["ModelVersionPublished.v1-2"],
    gate=replace(
        GOLDEN["ModelVersionPublished.v1-2"].gate,
        cost=e.CostResult(
            encode_seconds=e.Estimate(before=0.005, after=0.0052, change=0.04, low=0.01, high=0.07),
            bytes_before=90_900_000,
            bytes_after=91_500_000,
        ),
    ),
)
GOLDEN["ModelVersionPublished.v1-4"] = replace(
    GOLDEN["ModelVersionPublished.v1-3"],
    gate=replace(
        GOLDEN["ModelVersionPublished.v1-3"].gate,
        swaps=e.SwapResult(
            clicks=2100,
            expected=83.5,
            agreement=e.Estimate(before=0.61, after=0.64, change=0.05, low=-0.02, high=0.12),
        ),
    ),
)
GOLDEN["ModelVersionPublished.v1-5"] = replace(
    GOLDEN["ModelVersionPublished.v1-4"],
    gate=replace(
        GOLDEN["ModelVersionPublished.v1-4"].gate,
        live=e.LiveResult(
            version="adapter-0193f0c1",
            queries=210,
            metrics={"mrr_at_10": e.Estimate(before=0.441, after=0.453, change=0.027, low=-0.01, high=0.06)},
        ),
    ),
)
GOLDEN["DriftMeasured.v1-3"] = replace(
    GOLDEN["DriftMeasured.v1-2"], slices=[e.SliceCounts(examples=310, domain="shoes", difficulty="hard")]
)
GOLDEN["Retrain.v1-2"] = replace(GOLDEN["Retrain.v1"], strategy="fine_tune", pairs_uri="s3://search/pairs.jsonl")
GOLDEN["MessageQuarantined.v1-3"] = replace(GOLDEN["MessageQuarantined.v1-2"], cut=["value"])

"""Versions in a store, small enough to make by the dozen: a base, and what was trained on top of it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clickloop.events import (
    Arm,
    Estimate,
    GateResult,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    SplitChanged,
    Verdict,
    VersionKind,
)
from clickloop.model_store import Manifest, ModelStore

START = datetime(2026, 1, 1, tzinfo=UTC)
LAYERS = 6
"""Of an encoder here, 64 kB each."""


def weights(seed: int = 0, *, trained: int = 0) -> dict[str, np.ndarray]:
    """An encoder whose upper ``trained`` layers are those of ``seed``, and the others the base's."""
    made = {}
    for layer in range(LAYERS):
        own = layer >= LAYERS - trained
        made[f"layer.{layer}"] = np.random.default_rng(seed if own else 0).normal(size=16384).astype(np.float32)
    return made


def encoder(folder: Path, seed: int = 0, *, trained: int = 0) -> None:
    folder.mkdir(parents=True)
    save_file(weights(seed, trained=trained), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modules.json").write_text("[]")
    (folder / "tokenizer.json").write_text('{"words": "' + "word " * 2000 + '"}')


def gate(verdict: Verdict = "pass", change: float = 0.05) -> GateResult:
    mrr = Estimate(before=0.4, after=0.4 * (1 + change), change=change, low=change - 0.02, high=change + 0.02)
    return GateResult(verdict=verdict, queries=120, metrics={"mrr_at_10": mrr}, reasons=[f"it is a {verdict}"])


def manifest(
    version: str,
    kind: VersionKind,
    parent: Manifest | None,
    *,
    verdict: Verdict = "pass",
    settings: dict[str, str | int | float | bool] | None = None,
) -> Manifest:
    lineage = Lineage(
        command_id=f"command-of-{version}",
        run_id="run-1",
        strategy="incremental",
        ranges=[OffsetRange(topic="clickloop.training-examples.v1", partition=0, start=17, end=420)],
        examples=310,
        documents=4495,
        base_model="all-MiniLM-L6-v2",
        settings=settings or {},
        seed=3,
        code_version="0.1.0",
    )
    if parent is None:
        return Manifest(
            version=version,
            kind="full",
            space=version,
            encoder=version,
            lineage=Lineage(base_model="all-MiniLM-L6-v2"),
        )
    return Manifest(
        version=version,
        kind=kind,
        space=version if kind == "full" else parent.space,
        encoder=parent.encoder if kind == "adapter" else version,
        parent=parent.version,
        lineage=lineage,
        gate=gate(verdict),
    )


def put(
    store: ModelStore,
    scratch: Path,
    version: str,
    kind: VersionKind = "adapter",
    parent: Manifest | None = None,
    *,
    verdict: Verdict = "pass",
    hours: float | None = None,
    seed: int = 1,
    settings: dict[str, str | int | float | bool] | None = None,
) -> Manifest:
    """Publish a version that was made ``hours`` after START (None: now)."""
    folder = scratch / f"making-{version}"
    folder.mkdir(parents=True)
    if parent is None:
        encoder(folder / "encoder")
    elif kind == "adapter":
        save_file({"weight": np.full((4, 4), seed, np.float32)}, folder / "adapter.safetensors")
    else:
        encoder(folder / "encoder", seed, trained=2 if kind == "query_encoder" else LAYERS)
    made = store.publish(folder, manifest(version, kind, parent, verdict=verdict, settings=settings)).manifest
    if hours is not None:
        at = (START + timedelta(hours=hours)).timestamp()
        os.utime(Path(store.url.removeprefix("file://")) / "versions" / version / "manifest.json", (at, at))
    return made


def split(sequence: int, live: str, candidate: str = "", *, index: str = "default") -> SplitChanged:
    arms = [Arm(name="live", version=live, buckets=9000 if candidate else 10_000)]
    if candidate:
        arms.append(Arm(name="candidate", version=candidate, buckets=1000))
    return SplitChanged(
        event_id=f"{index}/{sequence}",
        index=index,
        split_id=f"split-{sequence}",
        salt="s",
        arms=arms,
        changed_at=START + timedelta(hours=sequence),
        sequence=sequence,
        reason="first share",
    )


def published(made: Manifest, *, index: str = "default", hours: float = 0) -> ModelVersionPublished:
    """What was announced of a version, ``hours`` after START."""
    return ModelVersionPublished(
        event_id=f"{index}/{made.version}",
        index=index,
        version=made.version,
        kind=made.kind,
        space=made.space,
        artifact_uri=f"file:///store/versions/{made.version}",
        digest="0" * 64,
        published_at=START + timedelta(hours=hours),
        parent=made.parent,
        gate=made.gate,
    )


def make_base_model(root: Path, name: str) -> Path:
    """A folder that looks like a sentence-transformers model."""
    folder = root / name
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder

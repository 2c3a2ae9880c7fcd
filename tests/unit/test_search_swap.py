"""Swaps: loaded before served, broken ones left out, queries in flight untouched, spaces filled first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clickloop.errors import ArtifactError, InvalidMessageError
from clickloop.events import GateResult
from clickloop.model_store import ModelStore
from search import swap as swap_module
from search.encoder import Encoder, EncoderPool, LoadedVersion, Vectors
from tests.unit.search_fakes import DIM, CountingEncoder, announcement, eventually, publish, split
from tests.unit.swap_facts import undecided, world


async def test_before_any_split_all_traffic_goes_to_the_base() -> None:
    async with world() as w:
        arm, version = w.swap.serving.choose("anyone")
        assert (w.swap.serving.split_id, arm.name, version.version) == ("initial", "live", "base-1")
        await asyncio.wait_for(w.swap.live.wait(), 1)


async def test_an_announced_version_is_loaded_but_gets_no_traffic_without_a_split() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: "adapter-1" in w.versions)
        assert [(o.version, o.rejected) for o in w.outcomes] == [("adapter-1", "")]
        assert {w.swap.serving.choose(str(i))[1].version for i in range(100)} == {"base-1"}


async def test_a_split_waits_for_its_version_and_the_old_one_serves_until_then() -> None:
    async with world() as w:
        w.swap.change_split(split(1, ("live", "base-1", 5000), ("candidate", "adapter-1", 5000)))
        await w.idle()
        assert w.swap.serving.split_id == "initial"
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        names = {w.swap.serving.choose(str(i))[0].name for i in range(100)}
        assert names == {"live", "candidate"}


async def test_a_query_in_flight_finishes_on_what_it_started_with() -> None:
    async with world() as w:
        before = w.swap.serving
        w.swap.announce(announcement("adapter-1"))
        w.swap.change_split(split(1, ("live", "adapter-1", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        assert before.choose("user")[1].version == "base-1"
        assert set(before.versions) == {"base-1"}


@pytest.mark.parametrize("error", [ArtifactError("torn"), ValueError("no such layer"), KeyError("weight")])
async def test_a_broken_version_is_reported_and_the_old_one_goes_on(error: Exception) -> None:
    async with world() as w:
        w.broken["adapter-bad"] = error
        w.swap.announce(announcement("adapter-bad"))
        w.swap.change_split(split(1, ("live", "adapter-bad", 10_000)))
        await eventually(lambda: "adapter-bad" in w.rejected)
        await w.idle()
        assert w.swap.serving.choose("user")[1].version == "base-1"
        assert w.loads == ["adapter-bad"]
        assert w.swap.rejection("adapter-bad")
        w.swap.announce(announcement("adapter-2"))
        await eventually(lambda: "adapter-2" in w.versions)


async def test_a_version_of_nans_is_rejected_before_it_serves() -> None:
    def nans(texts: list[str]) -> Vectors:
        return np.full((len(texts), DIM), np.nan, dtype=np.float32)

    async with world() as w:
        w.encoders["bad"] = Encoder("bad", DIM, nans, nans)
        w.swap.announce(announcement("bad", kind="query_encoder"))
        await eventually(lambda: "finite" in w.rejected.get("bad", ""))
        assert w.versions == {"base-1"}


async def test_a_version_whose_dimensions_do_not_fit_its_space_is_rejected() -> None:
    async with world() as w:
        w.encoders["narrow"] = CountingEncoder().encoder("narrow", dim=8)
        w.swap.announce(announcement("narrow", kind="query_encoder"))
        await eventually(lambda: "8 dimensions" in w.rejected.get("narrow", ""))


async def test_a_store_that_does_not_answer_is_asked_again() -> None:
    async with world() as w:
        w.broken["adapter-1"] = ConnectionError("store is away")
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: len(w.loads) == 2)
        del w.broken["adapter-1"]
        await eventually(lambda: "adapter-1" in w.versions)
        assert not w.rejected


@pytest.mark.parametrize("reads", ["cat_file", "get_file"])
async def test_a_version_of_a_store_that_is_away_for_a_moment_is_not_rejected(
    reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(str(tmp_path / "store"), cache=tmp_path / "cache")
    publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1")
    same = np.eye(DIM, dtype=np.float32)
    event = publish(store, tmp_path, "adapter-1", kind="adapter", space="base-1", encoder="base-1", weight=same)
    pool = EncoderPool(store, load=lambda _, version: CountingEncoder().encoder(version))
    read, tries = getattr(store._fs, reads), []

    def away_at_first(*given: Any) -> Any:
        tries.append(given)
        if len(tries) == 1:
            raise ConnectionError("the store is away")
        return read(*given)

    monkeypatch.setattr(store._fs, reads, away_at_first)
    async with world() as w:
        w.swap._load = pool.version
        w.swap.announce(event)
        await eventually(lambda: bool(w.outcomes))
        assert not w.rejected
        assert "adapter-1" in w.versions


async def test_a_rollback_to_what_is_loaded_does_not_wait_for_what_is_being_loaded() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-1"))
        w.swap.change_split(split(1, ("live", "base-1", 5000), ("candidate", "adapter-1", 5000)))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        w.hung = {"adapter-2"}
        w.swap.announce(announcement("adapter-2"))
        await eventually(lambda: "adapter-2" in w.loads)
        w.swap.change_split(split(2, ("live", "base-1", 10_000)))
        assert w.swap.serving.split_id == "split-2"
        assert {w.swap.serving.choose(str(i))[1].version for i in range(100)} == {"base-1"}
        w.answers.set()
        await eventually(lambda: "adapter-2" in w.versions)
        assert w.swap.serving.split_id == "split-2"


async def test_a_rejected_version_is_tried_again_when_it_is_announced_again() -> None:
    async with world() as w:
        w.broken["adapter-1"] = ArtifactError("not there")
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: "adapter-1" in w.rejected)
        w.broken.clear()
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: "adapter-1" in w.versions)


async def test_a_split_that_is_heard_before_its_version_goes_live_whatever_the_gate_said() -> None:
    async with world() as w:
        w.swap.change_split(split(1, ("live", "adapter-1", 10_000)))
        await w.idle()
        w.swap.announce(undecided("adapter-1"))
        await eventually(lambda: w.swap.serving.split_id == "split-1", seconds=2)


async def test_a_rejected_version_of_the_split_is_tried_again_when_it_is_announced_again() -> None:
    async with world() as w:
        w.broken["adapter-1"] = ArtifactError("not there")
        w.swap.announce(undecided("adapter-1"))
        w.swap.change_split(split(1, ("live", "adapter-1", 10_000)))
        await eventually(lambda: "adapter-1" in w.rejected)
        w.broken.clear()
        w.swap.announce(undecided("adapter-1"))
        await eventually(lambda: w.swap.serving.split_id == "split-1", seconds=2)


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
async def test_a_version_that_did_not_pass_its_gate_is_loaded_only_for_a_split(verdict: str) -> None:
    async with world() as w:
        gate = GateResult(verdict=verdict, queries=10)  # type: ignore[arg-type]
        w.swap.announce(msgspec.structs.replace(announcement("adapter-1"), gate=gate))
        await w.idle()
        assert w.loads == []
        w.swap.change_split(split(1, ("live", "adapter-1", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-1")


async def test_a_full_version_serves_only_after_its_space_is_filled() -> None:
    async with world() as w:
        w.fill_gate.clear()
        w.encoders["full-2"] = CountingEncoder().encoder("full-2")
        w.swap.announce(announcement("full-2", kind="full", space="full-2"))
        w.swap.change_split(split(1, ("live", "base-1", 5000), ("candidate", "full-2", 5000)))
        await eventually(lambda: w.fills == ["full-2"])
        await w.idle()
        assert w.versions == {"base-1"}
        assert w.swap.serving.split_id == "initial"
        # Meanwhile other versions come and go.
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: "adapter-1" in w.versions)
        w.fill_gate.set()
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        assert w.loads.count("full-2") == 1


async def test_a_version_in_a_new_space_waits_for_the_version_that_brings_it() -> None:
    async with world() as w:
        w.fill_gate.clear()
        w.encoders["full-2"] = w.encoders["adapter-3"] = CountingEncoder().encoder("full-2")
        w.swap.announce(announcement("full-2", kind="full", space="full-2"))
        w.swap.announce(announcement("adapter-3", space="full-2"))
        await w.idle()
        assert w.loads == ["full-2"]
        w.fill_gate.set()
        await eventually(lambda: {"full-2", "adapter-3"} <= w.versions)


async def test_a_version_in_a_space_that_nobody_announced_is_rejected() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-3", space="full-unknown"))
        await eventually(lambda: "full-unknown" in w.rejected.get("adapter-3", ""))


async def test_a_version_in_a_space_that_no_full_version_brings_is_rejected_and_others_go_on() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-1"))
        await eventually(lambda: "adapter-1" in w.versions)
        w.swap.announce(announcement("adapter-2", space="adapter-1"))
        w.swap.announce(announcement("query-encoder-3", kind="query_encoder", space="query-encoder-3"))
        w.swap.announce(announcement("adapter-4"))
        await eventually(lambda: "adapter-4" in w.versions)
        assert w.rejected == {
            "adapter-2": "its space adapter-1 is no full version",
            "query-encoder-3": "its space query-encoder-3 is no full version",
        }
        assert w.loads == ["adapter-1", "adapter-4"]


async def test_a_space_that_can_not_be_filled_rejects_its_version() -> None:
    async with world() as w:

        async def fail(_: LoadedVersion) -> None:
            raise RuntimeError("index is full")

        w.swap._fill = fail
        w.swap.announce(announcement("full-2", kind="full", space="full-2"))
        await eventually(lambda: "index is full" in w.rejected.get("full-2", ""))
        assert w.versions == {"base-1"}


async def test_an_older_split_is_ignored_and_a_wrong_one_refused() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-1"))
        w.swap.change_split(split(5, ("live", "adapter-1", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-5")
        w.swap.change_split(split(4, ("live", "base-1", 10_000)))
        await w.idle()
        assert w.swap.serving.split_id == "split-5"
        with pytest.raises(InvalidMessageError):
            w.swap.change_split(split(6, ("live", "base-1", 10)))
        w.swap.change_split(split(7, ("live", "base-1", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-7")


async def test_what_was_rejected_is_tried_again_as_long_as_it_may_get_traffic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that was away is back some time; what is broken for good is asked for ever more seldom."""
    monkeypatch.setattr(swap_module, "AGAIN_SECONDS", 0.02)
    async with world() as w:
        w.broken = {"adapter-1": ArtifactError("the store is away"), "adapter-2": ArtifactError("broken")}
        w.swap.announce(announcement("adapter-1", parent="base-1"))
        w.swap.change_split(split(1, ("live", "base-1", 10_000)))
        await eventually(lambda: w.loads.count("adapter-1") >= 3)
        assert w.swap.rejected == ["adapter-1"] or "adapter-1" not in w.versions
        del w.broken["adapter-1"]
        await eventually(lambda: "adapter-1" in w.versions)
        assert w.swap.rejected == []
        # What no longer may get traffic is left alone.
        w.swap.announce(announcement("adapter-2", parent="base-1"))
        await eventually(lambda: w.swap.rejected == ["adapter-2"])
        w.swap.announce(announcement("adapter-3", parent="adapter-1"))
        w.swap.change_split(split(2, ("live", "adapter-1", 10_000)))
        await eventually(lambda: "adapter-3" in w.versions)
        tried = w.loads.count("adapter-2")
        await asyncio.sleep(0.3)
        assert w.loads.count("adapter-2") <= tried + 1


async def test_what_stays_broken_is_asked_for_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_module, "AGAIN_SECONDS", 0.02)
    async with world() as w:
        w.broken = {"adapter-1": ArtifactError("broken")}
        w.swap.announce(announcement("adapter-1", parent="base-1"))
        w.swap.change_split(split(1, ("live", "base-1", 10_000)))
        await eventually(lambda: w.loads.count("adapter-1") >= 3)
        await asyncio.sleep(0.5)
        assert w.loads.count("adapter-1") <= 9, "as often as before it would be two dozen times"


async def test_a_split_that_can_not_be_served_whole_leaves_the_one_in_force() -> None:
    async with world() as w:
        w.swap.announce(announcement("adapter-1"))
        w.swap.change_split(split(1, ("live", "base-1", 5000), ("candidate", "adapter-1", 5000)))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        w.broken["adapter-2"] = ArtifactError("torn")
        w.swap.announce(announcement("adapter-2"))
        w.swap.change_split(split(2, ("live", "adapter-1", 9000), ("candidate", "adapter-2", 1000)))
        await eventually(lambda: "adapter-2" in w.rejected)
        await w.idle()
        assert w.swap.serving.split_id == "split-1"
        assert {w.swap.serving.choose(str(i))[1].version for i in range(100)} == {"base-1", "adapter-1"}


async def test_loaded_versions_are_bounded_and_a_version_in_use_is_never_unloaded() -> None:
    async with world(max_versions=3) as w:
        w.swap.announce(announcement("adapter-0"))
        w.swap.change_split(split(1, ("live", "adapter-0", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        for i in range(1, 8):
            w.swap.announce(announcement(f"adapter-{i}"))
        await eventually(lambda: "adapter-7" in w.versions)
        assert w.versions == {"base-1", "adapter-0", "adapter-7"}
        # An unloaded version comes back when a split names it.
        w.swap.change_split(split(2, ("live", "adapter-3", 10_000)))
        await eventually(lambda: w.swap.serving.split_id == "split-2")


async def test_copies_on_disk_are_kept_of_what_is_loaded_or_may_be_needed() -> None:
    kept: list[set[str]] = []
    async with world(max_versions=2, keep_copies=kept.append) as w:
        await eventually(lambda: kept == [{"base-1"}])
        w.swap.announce(announcement("adapter-0"))
        w.swap.change_split(split(1, ("live", "adapter-0", 10_000)))
        await eventually(lambda: kept[-1] == {"base-1", "adapter-0"})
        w.broken["adapter-2"] = ArtifactError("the store is away")
        w.encoders["full-4"] = CountingEncoder().encoder("full-4")
        w.fill_gate.clear()
        w.swap.announce(announcement("full-4", kind="full", space="full-4"))
        for version in ("adapter-1", "adapter-2", "adapter-3"):
            w.swap.announce(announcement(version))
        await eventually(lambda: w.versions == {"base-1", "adapter-0", "adapter-3"})
        await eventually(lambda: kept[-1] == {*w.versions, "full-4", "adapter-2"})
        assert "adapter-1" in w.loads


async def test_answers_never_mix_a_version_with_another_s_space_while_versions_change() -> None:
    async with world() as w:
        w.encoders["full-2"] = CountingEncoder().encoder("full-2")
        w.swap.announce(announcement("full-2", kind="full", space="full-2"))
        for i in range(20):
            w.swap.announce(announcement(f"adapter-{i}"))
            target = "full-2" if i % 2 else f"adapter-{i}"
            w.swap.change_split(split(i + 1, ("live", "base-1", 5000), ("candidate", target, 5000)))
            for user in range(20):
                arm, version = w.swap.serving.choose(str(user))
                assert version.version == arm.version
                assert version.space == ("full-2" if version.version == "full-2" else "base-1")
            await asyncio.sleep(0.002)

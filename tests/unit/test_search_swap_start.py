"""What a node that starts loads and serves: what may get traffic, not all of history."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from clickloop.errors import ArtifactError
from clickloop.events import GateResult
from tests.unit.search_fakes import CountingEncoder, announcement, eventually, split
from tests.unit.swap_facts import world


async def test_a_starting_node_goes_by_the_last_split_alone() -> None:
    async with world(caught_up=False) as w:
        w.swap.change_split(split(1, ("live", "base-1", 10_000)))
        assert w.swap.serving.split_id == "initial"


async def test_a_starting_node_loads_the_split_s_versions_and_the_newest_not_all_of_history() -> None:
    async with world(caught_up=False) as w:
        for i in range(30):
            w.swap.announce(announcement(f"adapter-{i}"))
        w.swap.change_split(split(1, ("live", "adapter-7", 10_000)))
        await w.idle()
        assert w.loads == []
        assert not w.swap.live.is_set()
        w.swap.caught_up()
        await asyncio.wait_for(w.swap.live.wait(), 5)
        assert w.swap.serving.split_id == "split-1"
        await eventually(lambda: w.versions == {"base-1", "adapter-7", "adapter-29"})


async def test_a_starting_node_loads_all_that_may_be_live_next() -> None:
    """A rollout waits for what passed first, though something else of the same parent passed later.

    Not all of a line, and nothing that an operator passed over.
    """
    async with world(caught_up=False, max_versions=3) as w:
        for version, parent in (
            ("live", "base-1"),
            ("full-2", "live"),
            ("adapter-3", "live"),
            ("anew-4", "base-1"),
        ):
            kind, space = ("full", version) if version == "full-2" else ("adapter", "base-1")
            w.swap.announce(announcement(version, kind=kind, space=space, parent=parent))
        failed = msgspec.structs.replace(
            announcement("failed-5", parent="live"), gate=GateResult(verdict="fail", queries=100)
        )
        w.swap.announce(failed)
        w.swap.change_split(split(1, ("live", "live", 10_000)))
        w.swap.caught_up()
        await eventually(lambda: w.versions == {"base-1", "live", "full-2", "adapter-3", "anew-4"})


async def test_of_many_lines_a_starting_node_loads_the_first_ones_and_the_newest() -> None:
    async with world(caught_up=False) as w:
        for number in range(9):
            w.swap.announce(announcement(f"adapter-{number}", parent="base-1"))
        w.swap.change_split(split(1, ("live", "base-1", 10_000)))
        w.swap.caught_up()
        await eventually(lambda: "adapter-8" in w.versions)
        await w.idle()
        assert w.loads == ["adapter-0", "adapter-1", "adapter-2", "adapter-8"]


async def test_of_a_line_a_starting_node_loads_the_first_and_the_newest() -> None:
    """Any version in between gets its turn only where nodes reject the newest, and they load it then."""
    async with world(caught_up=False) as w:
        parent = "base-1"
        for version in ("one", "two", "three"):
            w.swap.announce(announcement(version, parent=parent))
            parent = version
        w.swap.announce(announcement("other", parent="base-1"))
        w.swap.change_split(split(1, ("live", "base-1", 10_000)))
        w.swap.caught_up()
        await eventually(lambda: "other" in w.versions)
        await w.idle()
        assert w.loads == ["one", "three", "other"]


async def test_a_node_that_starts_after_a_rollback_does_not_load_the_history_that_it_gave_up() -> None:
    async with world(caught_up=False) as w:
        parent = "base-1"
        for number in range(30):
            w.swap.announce(announcement(f"adapter-{number}", parent=parent))
            parent = f"adapter-{number}"
        back = split(1, ("live", "base-1", 10_000))
        w.swap.change_split(msgspec.structs.replace(back, chosen_at=back.changed_at))
        after = announcement("adapter-30", parent="base-1")
        w.swap.announce(msgspec.structs.replace(after, published_at=back.changed_at + timedelta(seconds=1)))
        w.swap.announce(announcement("adapter-31", parent="adapter-29"))
        w.swap.caught_up()
        await eventually(lambda: w.versions == {"base-1", "adapter-30", "adapter-31"})
        await w.idle()
        assert w.loads == ["adapter-30", "adapter-31"]
        assert w.swap.rejected == []


async def test_a_split_that_can_not_be_served_does_not_keep_a_starting_node_down() -> None:
    async with world(caught_up=False) as w:
        w.swap.change_split(split(1, ("live", "never-announced", 10_000)))
        w.swap.caught_up()
        await asyncio.wait_for(w.swap.live.wait(), 5)
        assert w.swap.serving.split_id == "initial"


async def test_on_a_starting_node_the_live_version_answers_for_a_candidate_that_can_not_be_loaded() -> None:
    async with world(caught_up=False) as w:
        w.broken["adapter-2"] = ArtifactError("the store is away")
        w.swap.announce(announcement("adapter-1"))
        w.swap.announce(announcement("adapter-2"))
        w.swap.change_split(split(1, ("live", "adapter-1", 5000), ("candidate", "adapter-2", 5000)))
        w.swap.caught_up()
        await asyncio.wait_for(w.swap.live.wait(), 5)
        assert w.swap.serving.split_id == "initial"
        served = [w.swap.serving.choose(str(i)) for i in range(100)]
        assert {(arm.name, version.version) for arm, version in served} == {("live", "adapter-1")}
        w.broken.clear()
        w.swap.announce(announcement("adapter-2"))
        await eventually(lambda: w.swap.serving.split_id == "split-1")
        assert {w.swap.serving.choose(str(i))[1].version for i in range(100)} == {"adapter-1", "adapter-2"}


async def test_a_starting_node_waits_for_the_live_version_though_the_candidate_can_not_be_loaded() -> None:
    async with world(caught_up=False) as w:
        w.fill_gate.clear()
        w.broken["adapter-2"] = ArtifactError("torn")
        w.encoders["full-1"] = CountingEncoder().encoder("full-1")
        w.swap.announce(announcement("full-1", kind="full", space="full-1"))
        w.swap.announce(announcement("adapter-2"))
        w.swap.change_split(split(1, ("live", "full-1", 9000), ("candidate", "adapter-2", 1000)))
        w.swap.caught_up()
        await eventually(lambda: "adapter-2" in w.rejected)
        await w.idle()
        assert not w.swap.live.is_set()
        w.fill_gate.set()
        await asyncio.wait_for(w.swap.live.wait(), 5)
        assert w.swap.serving.choose("user")[1].version == "full-1"

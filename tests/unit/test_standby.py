"""Which member of a group has the partitions."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from clickloop.standby import StandBy


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {"commands": {0, 1, 2}}.get(topic)


def generation(members: dict[str, StandBy], topic: str = "commands") -> dict[str, list[int]]:
    """One rebalance of these members: which partitions each has."""
    given: dict[str, ConsumerProtocolMemberAssignment] = next(iter(members.values())).assign(
        Cluster(), {name: member.metadata([topic]) for name, member in members.items()}
    )
    for name, assignment in given.items():
        members[name].on_assignment(assignment)
    return {name: [place.partition for place in of_it.partitions()] for name, of_it in given.items()}


@pytest.mark.parametrize("name", ["a", "z"])
def test_who_has_the_partitions_keeps_them_whoever_joins_and_leaves(name: str) -> None:
    members: dict[str, Any] = {name: StandBy()}
    assert generation(members) == {name: [0, 1, 2]}
    members |= {"k": StandBy(), "m": StandBy()}
    assert generation(members) == {name: [0, 1, 2], "k": [], "m": []}
    del members["k"]
    assert generation(members) == {name: [0, 1, 2], "m": []}
    del members[name]
    assert generation(members) == {"m": [0, 1, 2]}


def test_a_topic_without_partitions_yet_is_no_ones() -> None:
    members = {"a": StandBy(), "b": StandBy()}
    assert generation(members, "nothing") == {"a": [], "b": []}
    assert generation(members) == {"a": [0, 1, 2], "b": []}

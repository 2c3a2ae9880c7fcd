"""Which member of a consumer group works, and which stand by: all partitions stay with the one who has them.

Kafka's own assignors share partitions out among all members, and so take one away from who is in the middle of
hours of work when another one comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

HOLDER = b"holder"


class StandBy(AbstractPartitionAssignor):  # type: ignore[misc]
    """One of the group has everything until it leaves or falls silent. Each consumer takes its own object."""

    name = "clickloop-stand-by"
    version = 0

    def __init__(self) -> None:
        self._holds = False

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """By member id. Where two say that they hold, one was taken for dead, and either may go on."""
        chosen = min(members, key=lambda member: (members[member].user_data != HOLDER, member))
        wanted = sorted(members[chosen].subscription)
        everything = [(topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in wanted]
        return {
            member: ConsumerProtocolMemberAssignment(self.version, everything if member == chosen else [], b"")
            for member in members
        }

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(self.version, list(topics), HOLDER if self._holds else b"")

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        self._holds = bool(assignment.partitions())

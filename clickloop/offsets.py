"""Where a partition ends, whatever the broker says.

The embedded broker takes a batch for one record when it is asked for a partition's end: it names the offset after
the last batch's first record. Whoever trusted that would stop short of up to a batch. So the last batch is looked
at: on Apache Kafka that confirms the end, at the price of one fetch.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition

LOOK_SECONDS = 0.5
"""What is there is there at once; a transaction's marker or a compacted record never comes."""


async def end_offsets(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, int]:
    """The offset after the last record of each partition. Assigns them to the consumer, and leaves it anywhere."""
    ends: dict[TopicPartition, int] = dict(await consumer.end_offsets(list(partitions)))
    consumer.assign(list(partitions))
    looking = {partition for partition, end in ends.items() if end > 0}
    for partition in ends:
        consumer.seek(partition, max(0, ends[partition] - 1))
    deadline = time.monotonic() + LOOK_SECONDS
    while looking and (left := deadline - time.monotonic()) > 0.0:
        found = await consumer.getmany(*looking, timeout_ms=int(1000 * left))
        for partition, records in found.items():
            ends[partition] = max(ends[partition], records[-1].offset + 1)
        looking -= set(found)
    return ends

"""What Prometheus sees of the stream rules. Names begin with ``clickloop_``."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping

from prometheus_client import Counter, Gauge

from clickloop.events import DriftMeasured
from streams.partition import Partition

EVENTS = Counter("clickloop_streams_events", "Messages read and decoded", ["topic"])
EXAMPLES = Counter("clickloop_examples", "Examples sent, revisions included", ["label"])
FEEDBACK = Counter(
    "clickloop_feedback", "Clicks and ratings by what became of them (joined, late, duplicate ...)", ["fate"]
)
DISTRUSTED = Counter("clickloop_distrusted", "Feedback that a trust rule took weight from", ["rule"])
CAPS = Counter("clickloop_caps", "Batches whose trust counts were shared, or held for a partition alone", ["held"])
QUARANTINED = Counter("clickloop_quarantined", "Messages sent to dead-letters", ["topic", "error"])
POSITION = Gauge(
    "clickloop_streams_position",
    "Offset up to which all is read and its examples are in the log",
    ["topic", "partition"],
)
LAG = Gauge("clickloop_streams_lag", "Messages of a partition that are still to be read", ["topic", "partition"])
OPEN_IMPRESSIONS = Gauge("clickloop_open_impressions", "Impressions within their window", ["partition"])
WAITING = Gauge("clickloop_waiting_feedback", "Feedback that waits for its query", ["partition"])
DRIFT = Gauge("clickloop_drift", "A detector's latest figure", ["detector", "partition"])
DRIFT_P_VALUE = Gauge("clickloop_drift_p_value", "A detector's latest p-value", ["detector", "partition"])
DRIFT_EXCEEDED = Counter("clickloop_drift_exceeded", "Windows that a detector found different", ["detector"])
REPORTS = Counter("clickloop_drift_reports", "Drift reports sent")
NEW_EXAMPLES = Gauge("clickloop_new_examples", "Examples that no retrain command covers yet")
UNDECIDED = Gauge("clickloop_undecided_examples", "Examples of commands on which no gate has decided")
COMMANDS = Counter("clickloop_retrain_commands", "Retrain commands sent", ["policy"])
SPLITS = Counter("clickloop_splits", "Splits sent")
OF_PARTITIONS = (POSITION, LAG, OPEN_IMPRESSIONS, WAITING, DRIFT, DRIFT_P_VALUE)
"""What a worker tells of the partitions that it owns."""


def forget_partitions() -> None:
    """Tell nothing of partitions that may be another worker's by now."""
    for gauge in OF_PARTITIONS:
        gauge.clear()


def observe_report(report: DriftMeasured) -> None:
    REPORTS.inc()
    partition = str(report.partition)
    for m in report.measurements:
        DRIFT.labels(m.detector, partition).set(m.value)
        if m.p_value is not None:
            DRIFT_P_VALUE.labels(m.detector, partition).set(m.p_value)
        DRIFT_EXCEEDED.labels(m.detector).inc(int(m.exceeded))


class CounterFeed:
    """Brings a rule's own counts, which only grow, over to a Prometheus counter."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._told: Counts[str] = Counts()

    def tell(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self._counter.labels(name).inc(count - self._told[name])
            self._told[name] = count


class OfPartition:
    """How one partition does, told again and again."""

    def __init__(self, partition: Partition, starts: Mapping[str, int]) -> None:
        """``starts`` by input: the offset that reading begins at."""
        self._partition = partition
        self._joined, self._distrusted = CounterFeed(FEEDBACK), CounterFeed(DISTRUSTED)
        for suffix, start in starts.items():
            POSITION.labels(suffix, str(partition.number)).set(start)

    def tell(self, lags: Mapping[str, int | None]) -> None:
        """``lags`` by input; None is one that is not known yet."""
        join, number = self._partition.join, str(self._partition.number)
        self._joined.tell(join.counts)
        self._distrusted.tell(self._partition.trust.counts)
        OPEN_IMPRESSIONS.labels(number).set(join.open_impressions)
        WAITING.labels(number).set(join.waiting)
        for suffix, lag in lags.items():
            if lag is not None:
                LAG.labels(suffix, number).set(lag)

"""The node's Prometheus metrics. One registry a node, so that tests can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Labels have few values: no version, query or user is ever one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.queries = Counter("clickloop_search_queries", "Answered queries", ["arm"], registry=r)
        self.failed = Counter("clickloop_search_failed_queries", "Queries answered 5xx", registry=r)
        self.refused = Counter("clickloop_search_refused_requests", "Requests answered 4xx", registry=r)
        self.latency = Histogram(
            "clickloop_search_latency_seconds", "Time to an answer", buckets=LATENCY, registry=r
        )
        self.encode_batch = Histogram(
            "clickloop_search_encode_batch", "Queries encoded together", buckets=(1, 2, 4, 8, 16, 32), registry=r
        )
        self.cache = Counter("clickloop_search_cache", "Embedding cache lookups", ["outcome"], registry=r)
        self.events = Counter("clickloop_search_events", "QueryServed events", ["outcome"], registry=r)
        self.documents = Gauge("clickloop_search_documents", "Documents in the index", registry=r)
        self.vectors = Counter(
            "clickloop_search_vectors", "Document vectors taken into use", ["source"], registry=r
        )
        self.versions = Gauge("clickloop_search_versions", "Model versions loaded", registry=r)
        self.swaps = Counter("clickloop_search_swaps", "Model versions tried", ["outcome"], registry=r)
        self.swap_seconds = Gauge(
            "clickloop_search_swap_seconds", "From announcement to warm, last version", registry=r
        )
        self.quarantined = Counter(
            "clickloop_search_quarantined", "Messages sent to dead-letters", ["topic"], registry=r
        )
        self.ready = Gauge("clickloop_search_ready", "1 while the node takes queries", registry=r)

"""What an operator can change about a search node."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from clickloop.settings import ArtifactSettings

Mode = Literal["dense", "hybrid"]
DENSE_WEIGHT = 1.93
"""docs/decisions/008. No ratio of small numbers, so that places in the two lists hardly ever tie: equals come out
in another order each time."""


class SearchSettings(ArtifactSettings):
    """Settings of ``clickloop search``: the table ``[search]``, or ``CLICKLOOP_`` variables."""

    table: ClassVar[str] = "search"

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=1, le=65535, description="port to listen on")
    address: str = Field("", description="URL under which others reach this node; empty derives it")
    node_id: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="unique name; empty is <host name>-<port>"
    )
    data_dir: str = Field("", description="this node's own folder; empty is .clickloop/search/<node id>")
    qdrant_url: str = Field(
        "", description="http://host:6333 of a Qdrant server; empty keeps the index in process"
    )
    redis_url: str = Field("", description="redis://host:port/db for caches and leases; empty works without")
    mode: Mode = Field("hybrid", description="dense, or hybrid: dense and BM25 fused")
    dense_weight: float = Field(
        DENSE_WEIGHT,
        gt=0.0,
        le=100.0,
        description="hybrid: so many places in the dense list are one in BM25's; whole numbers give ties",
    )
    exploration: float = Field(
        0.02,
        ge=0.0,
        le=0.5,
        description="share of the answers with one pair of neighbours swapped, from which position bias is learnt",
    )
    encode_threads: int = Field(0, ge=0, le=256, description="CPU threads of one encode; 0 takes half of the CPUs")
    max_batch: int = Field(32, ge=1, le=1024, description="queries that are encoded together at most")
    max_versions: int = Field(8, ge=2, le=100, description="model versions kept loaded at most")
    cache_seconds: float = Field(600.0, ge=0.0, description="life of a cached query embedding; 0 caches nothing")
    heartbeat_seconds: float = Field(
        5.0,
        gt=0.0,
        le=15.0,
        description="time between reports on node-status; who is silent for 30 s takes no part",
    )

    @property
    def name(self) -> str:
        return self.node_id or f"{socket.gethostname()}-{self.port}"

    @property
    def folder(self) -> Path:
        return Path(self.data_dir or f".clickloop/search/{self.name}")

    @property
    def url(self) -> str:
        if self.address:
            return self.address.rstrip("/")
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def threads(self) -> int:
        return self.encode_threads or max(1, (os.cpu_count() or 1) // 2)

"""A few threads that compute side by side, instead of many that share each product of matrices.

The texts of a search are short, and so are the products: torch's threads mostly wait for one another, all the more
where other programs want the cores, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch

R = TypeVar("R")

MOST = 4
"""Between torch's calls a worker holds Python's lock: more of them get in each other's way, and share threads."""


class Workers:
    """A context manager. Inside, as many workers as torch has threads, at most MOST; one on anything but a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._threads = self._each = self.count = 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        self.count = min(MOST, self._threads) if self._on_cpu else 1
        self._each = self._threads // self.count
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "compute", torch.set_num_threads, (self._each,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            torch.set_num_threads(self._threads)

    def each(self, work: Callable[..., R], *arguments: Sequence[Any]) -> Iterator[R]:
        """``work`` of each, in the order of the arguments. What it raises is raised here."""
        if self._pool is None:
            yield from map(work, *arguments)
            return
        torch.set_num_threads(self._each)
        try:
            yield from self._pool.map(work, *arguments)
        finally:
            torch.set_num_threads(self._threads)

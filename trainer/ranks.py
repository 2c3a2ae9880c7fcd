"""Several processes that train together: one leads, the others do what it says.

``torchrun`` starts them. Rank 0 alone reads, decides, judges and publishes; the others have no broker, no store
and no clock. It talks to them in messages: a header that says what is wanted, and then what goes with it. Where it
has nothing to say, it says at least that it is there. So a rank never waits longer than ``SILENT`` for anything,
and whatever ends one of them ends all.

Nothing is pickled: what goes over the wire are numbers, text and safetensors. The ranks trust one another; their
ports belong in a network where no one else is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from types import TracebackType

import torch
import torch.distributed as dist

from clickloop.errors import ClickloopError, SettingsError
from trainer.model import pick_device

SILENT = timedelta(minutes=10)
"""A rank that others have waited for so long is taken for dead. One that dies is noticed at once."""
ALIVE_SECONDS = 5.0
"""Between two signs of life from rank 0."""
_LEAD = 0
_NUMBERS = 4
"""in a header"""


class RankLostError(ClickloopError):
    """A rank has ended, or can't be reached: this start is over, and the next one does the command again."""


class Say(IntEnum):
    """What rank 0 may say; trainer/methods/spread.py has the words for training."""

    ALIVE = 0
    END = 1
    OPEN = 2
    EMBED = 3
    ANSWER = 4
    BACK = 5
    GRADIENTS = 6
    CLOSE = 7


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together."""

    rank: int
    world: int
    local_rank: int
    """among those on its machine"""
    local_world: int


def place() -> Place | None:
    """This process's place, from the environment that torchrun sets; None where it is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2 or not dist.is_torchelastic_launched():
        return None
    rank, local_rank, local_world = (int(os.environ[n]) for n in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return Place(rank, world, local_rank, local_world)


def device_of(name: str, place: Place) -> str:
    """The device of one rank: each CUDA device has one, a CPU may have many. Raises SettingsError."""
    device = pick_device(name)
    if device == "cuda":
        if torch.cuda.device_count() < place.local_world:
            raise SettingsError(
                f"{place.local_world} ranks on a machine with {torch.cuda.device_count()} CUDA devices: start one "
                "rank a device (--nproc-per-node), or use --device cpu"
            )
        return f"cuda:{place.local_rank}"
    if device.startswith("cuda:") and place.local_world > 1:
        raise SettingsError(
            f"{place.local_world} ranks can't share --device {device}: use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among the devices"
        )
    return device


class Ranks:
    """The line between the ranks. Use it as a context manager: leaving it on rank 0 ends the others."""

    def __init__(self, place: Place, device: str, *, threads: int) -> None:
        self.place = place
        self.device = device
        self.threads = threads
        """CPU threads of this rank while all of them train."""
        self.wire = torch.device(device if device.startswith("cuda") else "cpu")
        """Where tensors must lie to be sent."""
        self._lock = threading.Lock()
        self._lost = ""
        self._spoken = time.monotonic()

    @classmethod
    def join(cls, place: Place, *, device: str, threads: int) -> Ranks:
        """Wait for all ranks to be there. ``threads``: 0 shares the machine's cores among its ranks.

        Raises SettingsError for a device that can't be had, and RankLostError where the others don't come.
        """
        found = cls(
            place,
            device_of(device, place),
            threads=threads or max((os.cpu_count() or 1) // place.local_world, 1),
        )
        backend = "gloo"
        if found.wire.type == "cuda":
            torch.cuda.set_device(found.wire)
            backend = "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, timeout=SILENT)
        except (RuntimeError, ValueError) as error:
            raise RankLostError(f"rank {place.rank} can't join the other ranks: {_line(error)}") from None
        return found

    def __enter__(self) -> Ranks:
        _end_with_parent()
        if self.place.rank == _LEAD:
            threading.Thread(target=self._stay_alive, name="ranks", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.place.rank == _LEAD:
                with self.saying(Say.END):
                    self._lost = "the ranks have ended"
        except RankLostError:
            if error is None:
                raise
        if error is None:
            dist.destroy_process_group()

    def check(self) -> None:
        """Raises RankLostError where a rank is known to be gone."""
        if self._lost:
            raise RankLostError(self._lost)

    @contextmanager
    def saying(self, what: Say, *numbers: int) -> Iterator[None]:
        """On rank 0: one message. Inside, send what the header promises, and nothing else.

        Raises RankLostError. Whatever else ends a message in its middle leaves the ranks out of step for good.
        """
        with self._lock:
            self.check()
            try:
                header = [int(what), *numbers]
                self.share(torch.tensor(header + [0] * (_NUMBERS - len(header)), dtype=torch.int64))
                yield
            except BaseException as error:
                self._lost = self._lost or f"a message to the other ranks broke off: {error}"
                raise
            self._spoken = time.monotonic()

    def hear(self) -> tuple[Say, list[int]]:
        """On the others: the next message's header. Raises RankLostError where rank 0 is gone."""
        header = torch.zeros(_NUMBERS, dtype=torch.int64)
        self.share(header)
        what, *numbers = header.tolist()
        return Say(what), numbers

    def share(self, tensor: torch.Tensor) -> None:
        """Rank 0's values, put into the others' tensor in place."""
        with self._guarded():
            dist.broadcast(tensor, src=_LEAD)

    def add_up(self, tensor: torch.Tensor) -> None:
        """The sum of all ranks' values, put into rank 0's tensor in place; what the others' hold then is void."""
        with self._guarded():
            dist.reduce(tensor, dst=_LEAD)

    def send(self, raw: bytes, to: int) -> None:
        with self._guarded():
            dist.send(torch.tensor([len(raw)], dtype=torch.int64), dst=to)
            if raw:
                dist.send(torch.frombuffer(bytearray(raw), dtype=torch.uint8), dst=to)

    def receive(self) -> bytes:
        size = torch.zeros(1, dtype=torch.int64)
        with self._guarded():
            dist.recv(size, src=_LEAD)
            raw = torch.empty(int(size), dtype=torch.uint8)
            if len(raw):
                dist.recv(raw, src=_LEAD)
        return raw.numpy().tobytes()

    @contextmanager
    def own_share_of_cores(self) -> Iterator[None]:
        """While inside, this thread leaves the machine's other ranks their cores."""
        before = torch.get_num_threads()
        torch.set_num_threads(min(self.threads, before))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What torch raises where a peer is gone has no class of its own."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            self._lost = (
                f"rank {self.place.rank} of {self.place.world} lost another one ({_line(error)}); all of them "
                "end, and the next start does the command again"
            )
            raise RankLostError(self._lost) from None

    def _stay_alive(self) -> None:
        while not self._lost:
            time.sleep(ALIVE_SECONDS / 5)
            if time.monotonic() - self._spoken < ALIVE_SECONDS:
                continue
            try:
                with self.saying(Say.ALIVE):
                    pass
            except RankLostError:
                return  # ``check`` says so to those who can act on it


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _end_with_parent(every_seconds: float = 1.0, getppid: Callable[[], int] = os.getppid) -> None:
    """torchrun gives each rank a session of its own, so what kills torchrun alone would leave them behind."""
    parent = getppid()

    def watch() -> None:
        while getppid() == parent:
            time.sleep(every_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()

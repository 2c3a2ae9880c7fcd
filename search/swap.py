"""Which versions are loaded and which split is live, and the exchange of both while queries run.

What a query needs lies in one immutable ``Serving``. A swap makes a new one and exchanges the reference; a query
in flight finishes on the one that it took. A version is let in only when its artifact is verified, it is warm,
and its space covers every document; what is broken is left out, and the reason reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from clickloop.ancestry import Known, waiting
from clickloop.errors import ArtifactError, StoreUnavailableError
from clickloop.events import Arm, ModelVersionPublished, SplitChanged
from clickloop.logs import logger
from clickloop.retention import live_of
from search import split as rules
from search.encoder import LoadedVersion
from search.metrics import Metrics

Load = Callable[[ModelVersionPublished], LoadedVersion]
"""Fetch, verify, load. Blocking; runs on a thread."""
Fill = Callable[[LoadedVersion], Awaitable[None]]
"""Bring the documents' vectors of a version's own space up to date."""
KeepCopies = Callable[[set[str]], None]
"""Of the copies on disk, keep those that these versions need. Blocking; runs on the thread that loads."""

ATTEMPTS = 3
"""Tries for a version whose store doesn't answer. What is broken is tried once."""
RETRY_SECONDS = 1.0
AGAIN_SECONDS, MOST_AGAIN_SECONDS = 60.0, 3600.0
"""What was rejected, and may still get traffic, is tried again after so long, and then after twice as long each
time: a store may be away for a while."""
MOST_TO_COME = 3
"""Lines of versions that wait for their turn, of which a starting node loads the newest."""
MOST_REJECTED = 50
"""That a node tells of."""


@dataclass(frozen=True)
class Serving:
    """What queries are answered with. The split's arms name loaded versions only."""

    versions: Mapping[str, LoadedVersion]
    split_id: str
    salt: str
    arms: tuple[Arm, ...]

    def choose(self, split_key: str) -> tuple[Arm, LoadedVersion]:
        arm = rules.choose(self.arms, rules.bucket(self.salt, split_key))
        return arm, self.versions[arm.version]


@dataclass(frozen=True)
class Outcome:
    """What became of a version: warm after ``seconds``, or ``rejected`` for a reason."""

    version: str
    seconds: float
    rejected: str = ""


Report = Callable[[Outcome], None]


class Swap:
    """Takes announcements and splits, loads what they need one by one, and exchanges ``serving``.

    Until ``caught_up`` is called, announcements are only noted: of a long history, a starting node loads what
    the split names and the newest version, not all of it.
    """

    def __init__(
        self,
        load: Load,
        fill: Fill,
        report: Report,
        metrics: Metrics,
        *,
        base: LoadedVersion,
        max_versions: int = 8,
        keep_copies: KeepCopies = lambda _: None,
    ) -> None:
        self._load = load
        self._fill = fill
        self._report = report
        self._metrics = metrics
        self._base = base
        self._max_versions = max_versions
        self._keep_copies = keep_copies
        self._announced: dict[str, tuple[ModelVersionPublished, float]] = {}
        self._wanted: dict[str, None] = {}
        self._newest = ""
        self._rejected: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._filling: dict[str, asyncio.Task[None]] = {}
        self._dims = {base.space: base.encoder.dim}
        self._split: SplitChanged | None = None
        self._caught_up = False
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load-version")
        arms = (Arm(name=rules.LIVE, version=base.version, buckets=rules.BUCKETS),)
        self.serving = Serving({base.version: base}, rules.INITIAL, "", arms)
        metrics.versions.set(1)
        self.live = asyncio.Event()
        """Set once the split that lay in the log at the start is live, or is known not to be possible."""

    @property
    def base(self) -> LoadedVersion:
        return self._base

    def knows(self, version: str) -> bool:
        """Whether the version is loaded or was announced."""
        return version in self._announced or version in self.serving.versions

    def was_announced(self, version: str) -> bool:
        return version in self._announced

    def rejection(self, version: str) -> str:
        """Why the version isn't loaded; empty where there is no reason."""
        return self._rejected.get(version, "")

    @property
    def rejected(self) -> list[str]:
        """The latest that were, bounded."""
        return list(self._rejected)[-MOST_REJECTED:]

    def announce(self, event: ModelVersionPublished) -> None:
        """A version was published. One that was rejected is tried again."""
        self._announced[event.version] = (event, time.monotonic())
        self._rejected.pop(event.version, None)
        if _passed(event):
            self._newest = event.version
            if self._caught_up and event.version not in self.serving.versions:
                self._wanted[event.version] = None
        # The split may wait for what did not pass as well.
        self._wake.set()

    def change_split(self, event: SplitChanged) -> None:
        """A new split. It goes live when all its versions are warm, at once where they are, whatever is being
        loaded meanwhile; one older than the present is ignored. Until the first one is live, its live version has
        all traffic as soon as it is warm.

        Raises InvalidMessageError for arms that don't share out the buckets.
        """
        rules.check(event)
        if self._split is not None and event.sequence < self._split.sequence:
            return
        self._split = event
        for arm in event.arms:
            self._rejected.pop(arm.version, None)
        if self._caught_up and self._is_loaded(event):
            self._apply_split()
        self._wake.set()

    def caught_up(self) -> None:
        """All announcements that lay in the log at the start have been made."""
        self._caught_up = True
        for version in self._to_come():
            if version not in self.serving.versions:
                self._wanted[version] = None
        self._wake.set()

    def _to_come(self) -> list[str]:
        """What may get traffic next: the newest of each line that waits for its turn, and of all that passed."""
        split = self._split
        if split is None:
            return [self._newest] if self._newest else []
        live = live_of(split)
        known = {
            version: Known.of(e, passed=_passed(e) and (e.gate is not None or bool(e.parent)))
            for version, (e, _) in self._announced.items()
        }
        after = split.chosen_at.timestamp() if split.chosen_at is not None else 0.0
        heads = waiting(live, known, after=after)
        # Of those that don't say with what they were compared, the newest takes over.
        lines = {
            head if known[head].against else "": name for name, head in heads.items() if name not in self._rejected
        }
        # Another node may reject the newest of a line; its head may go on then.
        found = [name for line in list(lines.items())[:MOST_TO_COME] for name in line] + [self._newest]
        return list(dict.fromkeys(name for name in found if name and name not in self._rejected))

    async def run(self) -> None:
        """Load and exchange until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if not self._caught_up:
                    continue
                while (event := next(self._to_load(), None)) is not None:
                    await self._bring(event)
                    self._apply_split()
                self._apply_split()
                await self._tidy()
        finally:
            for task in self._filling.values():
                task.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _to_load(self) -> Iterator[ModelVersionPublished]:
        """What can be loaded now, the split's versions first; before a version comes the one of its space."""
        arms = self._split.arms if self._split is not None else []
        for version in [*(arm.version for arm in arms), *self._wanted]:
            if version not in self._announced or self._is_done(version):
                continue
            event, _ = self._announced[version]
            if event.kind == "full" or event.space in self._dims:
                yield event
            elif event.space not in self._announced or event.space in self._rejected:
                self._reject(version, f"its space {event.space} is not to be had on this node")
            elif not _brings_its_space(self._announced[event.space][0]):
                self._reject(version, f"its space {event.space} is no full version")
            elif event.space not in self._filling:
                yield self._announced[event.space][0]

    def _is_done(self, version: str) -> bool:
        return version in self.serving.versions or version in self._rejected or version in self._filling

    async def _bring(self, event: ModelVersionPublished) -> None:
        version = event.version
        try:
            loaded = await self._load_with_retries(event)
            known_dim = self._dims.get(loaded.space, loaded.encoder.dim)
            if loaded.encoder.dim != known_dim:
                raise ArtifactError(
                    f"{version}: vectors of {loaded.encoder.dim} dimensions in a space of {known_dim}"
                )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old version goes on
            self._reject(version, f"{error}" if isinstance(error, ArtifactError) else f"{error!r}")
            return
        if loaded.space in self._dims:
            self._admit(loaded)
        else:
            self._filling[version] = asyncio.create_task(self._fill_and_admit(loaded))

    async def _load_with_retries(self, event: ModelVersionPublished) -> LoadedVersion:
        loop = asyncio.get_running_loop()

        def load_and_warm_up() -> LoadedVersion:
            loaded = self._load(event)
            loaded.warm_up()
            return loaded

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await loop.run_in_executor(self._thread, load_and_warm_up)
            except (OSError, StoreUnavailableError):
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(RETRY_SECONDS * attempt)
        raise AssertionError("unreachable")

    async def _fill_and_admit(self, loaded: LoadedVersion) -> None:
        try:
            await self._fill(loaded)
        except Exception as error:  # noqa: BLE001 - reported; the old space goes on
            self._reject(loaded.version, f"its space could not be filled: {error!r}")
        else:
            self._dims[loaded.space] = loaded.encoder.dim
            self._admit(loaded)
        finally:
            del self._filling[loaded.version]
            self._wake.set()

    def _admit(self, loaded: LoadedVersion) -> None:
        versions = {**self.serving.versions, loaded.version: loaded}
        for version in self._superfluous(versions):
            del versions[version]
        self.serving = replace(self.serving, versions=versions)
        self._wanted.pop(loaded.version, None)
        self._tries.pop(loaded.version, None)
        seconds = time.monotonic() - self._announced[loaded.version][1]
        self._metrics.versions.set(len(versions))
        self._metrics.swaps.labels("loaded").inc()
        self._metrics.swap_seconds.set(seconds)
        logger().info("version is warm", version=loaded.version, seconds=round(seconds, 2))
        self._report(Outcome(loaded.version, seconds))

    def _superfluous(self, versions: Mapping[str, LoadedVersion]) -> list[str]:
        """The longest loaded ones beyond the bound that no split, present or to come, needs."""
        needed = self._needed()
        spare = [version for version in versions if version not in needed]
        return spare[: max(0, len(versions) - self._max_versions)]

    def _needed(self) -> set[str]:
        needed = {self._base.version, *self._to_come(), *(arm.version for arm in self.serving.arms)}
        if self._split is not None:
            needed.update(arm.version for arm in self._split.arms)
        return needed

    async def _tidy(self) -> None:
        """Let the copies go that nothing needs. What was rejected keeps its own for the next try."""
        needed = {*self._needed(), *self.serving.versions, *self._wanted, *self._filling, *self._rejected}
        await asyncio.get_running_loop().run_in_executor(self._thread, self._keep_copies, needed)

    def _reject(self, version: str, reason: str) -> None:
        self._rejected[version] = reason
        self._wanted.pop(version, None)
        tries = self._tries[version] = self._tries.get(version, 0) + 1
        after = min(AGAIN_SECONDS * 2.0 ** min(tries - 1, 20), MOST_AGAIN_SECONDS)
        asyncio.get_running_loop().call_later(after, self._try_again, version)
        seconds = time.monotonic() - self._announced[version][1]
        self._metrics.swaps.labels("rejected").inc()
        logger().error("version rejected", version=version, reason=reason)
        self._report(Outcome(version, seconds, rejected=reason))

    def _try_again(self, version: str) -> None:
        """What no one needs any more stays as it is."""
        reason = self._rejected.pop(version, None)
        if reason is None:
            return
        arms = self._split.arms if self._split is not None else []
        if version in self._to_come() or version in [arm.version for arm in arms]:
            self._wanted[version] = None
            self._wake.set()
        else:
            self._rejected[version] = reason

    def _apply_split(self) -> None:
        split = self._split
        if split is None:
            self.live.set()
        elif self._is_loaded(split):
            if self.serving.split_id != split.split_id:
                self._exchange(split.split_id, split.salt, split.arms)
            self.live.set()
        else:
            if self.serving.split_id == rules.INITIAL:
                self._let_live_stand_in(split)
            if self._is_impossible(split):
                self.live.set()

    def _exchange(self, split_id: str, salt: str, arms: Sequence[Arm]) -> None:
        self.serving = replace(self.serving, split_id=split_id, salt=salt, arms=tuple(arms))
        shares = {arm.name: f"{arm.version} {arm.buckets / rules.BUCKETS:.1%}" for arm in arms}
        logger().info("split is live", split_id=split_id, **shares)

    def _let_live_stand_in(self, split: SplitChanged) -> None:
        """Where no split was live yet, the live version is a better answer than the base."""
        arm = Arm(name=rules.LIVE, version=live_of(split), buckets=rules.BUCKETS)
        if arm.version in self.serving.versions and self.serving.arms != (arm,):
            self._exchange(rules.INITIAL, "", [arm])

    def _is_loaded(self, split: SplitChanged) -> bool:
        return all(arm.version in self.serving.versions for arm in split.arms)

    def _is_impossible(self, split: SplitChanged) -> bool:
        """Some arm's version is not to be had, and the live one, which may stand in, is not on its way."""
        live = live_of(split)
        settled = live in self.serving.versions or self._is_hopeless(live)
        return settled and any(self._is_hopeless(arm.version) for arm in split.arms)

    def _is_hopeless(self, version: str) -> bool:
        return version in self._rejected or not self.knows(version)


def _passed(event: ModelVersionPublished) -> bool:
    """Its gate, or went through none."""
    return event.gate is None or event.gate.verdict == "pass"


def _brings_its_space(event: ModelVersionPublished) -> bool:
    return event.kind == "full" and event.space == event.version

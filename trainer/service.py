"""The trainer service: one command at a time, from its offset ranges to published versions.

A run reads from top to bottom in ``Trainer.run``: read, then for each rung train, gate and publish
(trainer/rung.py), and announce. The command's offset is committed after the last announcement, so a crash anywhere
does it again; version names come from the command's id, so doing it again makes nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Set
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import stamina
import torch

from clickloop import codec, topics
from clickloop.commands import Cancel, ForgetUser, Retrain
from clickloop.errors import (
    BrokerError,
    ClickloopError,
    MessageError,
    RangeGoneError,
    StoreUnavailableError,
    TooFewError,
)
from clickloop.events import Verdict
from clickloop.kafka import FLUSH_SECONDS, Follower, Producer, Record, group_consumer
from clickloop.logs import logger
from clickloop.model_store import Manifest, ModelStore, Published
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from trainer.alone import alone
from trainer.examples import (
    Unreadable,
    follow_live_version,
    read_before,
    read_documents,
    read_examples,
    read_live_version,
    read_passed_versions,
    whole_history,
    with_replayed,
)
from trainer.methods.base import StoppedError
from trainer.methods.spread import follow
from trainer.past import Data, data_of
from trainer.progress import RunReport
from trainer.publish import announcement
from trainer.ranks import Place, RankLostError, Ranks
from trainer.rung import STORE_AWAY, STORE_SECONDS, Ladder
from trainer.settings import TrainerSettings
from trainer.strategies import PRESETS, taught
from trainer.trackers import Tracking, build_tracking

SERVICE = "trainer"
MOST_DONE = 100
"""Commands that are remembered as done, should they come again; committing fails for fewer in a row."""
STOPPING_SECONDS = 5.0
"""For what is still to be sent after a signal."""
LEAVING_SECONDS = 20.0
"""In which rank 0 ends after a signal; torchrun kills what is left after 30."""


def build_trainer(settings: TrainerSettings, ranks: Ranks | None = None) -> Trainer:
    """Assemble the service. Touches the store's folder, but no broker yet. Raises SettingsError."""
    store = ModelStore(
        settings.store_url,
        # The index's own: which copies may go, no other index's trainer has a say in.
        cache=settings.work_dir / "cache" / settings.index,
        private_key=settings.private_key.get_secret_value(),
        public_key=settings.public_key,
    )
    producer = Producer(
        settings.bootstrap_servers,
        prefix=settings.topic_prefix,
        source=f"clickloop/trainer/{settings.index}",
    )
    return Trainer(settings, store, producer, build_tracking(settings), ranks)


async def serve_rank(settings: TrainerSettings, place: Place, stop: asyncio.Event) -> None:
    """One of several processes: the trainer on rank 0, its helpers on the others.

    Raises RankLostError where one of them ends before rank 0 has said so.
    """
    join = partial(Ranks.join, place, device=settings.device, threads=settings.threads)
    with await asyncio.to_thread(join) as ranks:
        if place.rank == 0:
            await build_trainer(settings, ranks).serve(stop)
        else:
            await _follow(ranks, stop)


async def _follow(ranks: Ranks, stop: asyncio.Event) -> None:
    """Until rank 0 ends; where this process is asked to end, so is rank 0, and says so soon."""
    ended: Future[None] = Future()

    def work() -> None:
        torch.set_num_threads(ranks.threads)
        try:
            follow(ranks)
        except BaseException as error:  # noqa: BLE001 - handed on
            ended.set_exception(error)
        else:
            ended.set_result(None)

    # No one can wake a thread that waits for rank 0, so the process must be able to end without it.
    threading.Thread(target=work, name="follow", daemon=True).start()
    logger().info("waiting for rank 0", rank=ranks.place.rank, ranks=ranks.place.world, device=ranks.device)
    following, stopping = asyncio.wrap_future(ended), asyncio.create_task(stop.wait())
    either: set[asyncio.Future[Any]] = {following, stopping}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    try:
        await asyncio.wait_for(following, LEAVING_SECONDS)
    except TimeoutError:
        raise RankLostError(f"rank 0 has not ended {LEAVING_SECONDS:.0f} seconds after it should have") from None


class Trainer:
    """Consumes ``retrain-commands`` of one index; see the module's text."""

    def __init__(
        self,
        settings: TrainerSettings,
        store: ModelStore,
        producer: Producer,
        tracking: Tracking,
        ranks: Ranks | None = None,
    ) -> None:
        self._settings = settings
        self.tracking = tracking
        self._store = store
        self._sources = Sources(settings.index, load_mappings())
        self.producer = producer
        self._ranks = ranks
        self._ladder = Ladder(settings, store, ranks)
        self._stopping = threading.Event()
        self._quarantined: set[tuple[str, int, int]] = set()
        self._done: deque[Record] = deque(maxlen=MOST_DONE)

    async def serve(self, stop: asyncio.Event) -> None:
        """Do commands as they come until ``stop`` is set, once no other trainer of the index uses ``work_dir``.

        Raises BrokerError where no broker answers, SettingsError where ``work_dir`` can't be used, RankLostError.
        """
        async with alone(self._settings.work_dir, self._settings.index, stop) as ours:
            if ours:
                await self._serve(stop)

    async def _serve(self, stop: asyncio.Event) -> None:
        settings = self._settings
        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        lookers = [asyncio.create_task(self._watch(stop))]
        if self.tracking.wanted:
            lookers.append(asyncio.create_task(self._tell_what_is_live()))
        try:
            async with (
                self._sending(stop),
                group_consumer(
                    settings.bootstrap_servers,
                    topics.RETRAIN_COMMANDS,
                    prefix=settings.topic_prefix,
                    group=f"{settings.topic_prefix}-trainer-{settings.index}",
                ) as consumer,
            ):
                logger().info("waiting for retrain commands", index=settings.index, device=self._ladder.device)
                while not stop.is_set():
                    if self._ranks:
                        self._ranks.check()
                    for partition, records in (await consumer.getmany(timeout_ms=500, max_records=1)).items():
                        for r in records:
                            record = Record(r.topic, r.partition, r.offset, r.key, r.value)
                            # A rebalance during a run gives out again what was not committed by then.
                            if record in self._done or await self.handle(record):
                                self._done.append(record)
                                await _commit(consumer, partition, r.offset + 1)
        finally:
            for looker in lookers:
                looker.cancel()
            await asyncio.gather(*lookers, return_exceptions=True)
            await asyncio.to_thread(self.tracking.close)

    @asynccontextmanager
    async def _sending(self, stop: asyncio.Event) -> AsyncIterator[None]:
        await self.producer.start()
        try:
            yield
        finally:
            # Who is told to end is killed after a while; what was not said is said again at the next start.
            await self.producer.stop(timeout_seconds=STOPPING_SECONDS if stop.is_set() else FLUSH_SECONDS)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.stop()

    async def _tell_what_is_live(self) -> None:
        """For the tracker alone: which version is live, the rollout decides, and says on ``traffic-splits``."""
        where, prefix, index = self._settings.bootstrap_servers, self._settings.topic_prefix, self._settings.index
        while True:
            try:
                await follow_live_version(where, prefix=prefix, index=index, on_live=self.tracking.live)
            except BrokerError as error:
                logger().warning("splits not read", reason=str(error))
                await asyncio.sleep(5.0)

    def stop(self) -> None:
        """End training at its next step. What was being done stays undone, and is done at the next start."""
        self._stopping.set()

    async def handle(self, record: Record) -> bool:
        """Do what one record asks for. True where it is dealt with, one way or the other.

        Raises BrokerError where a broker is away or falls silent, RankLostError; then it is not dealt with.
        """
        try:
            command = codec.decode(record.value, Retrain)
        except MessageError as error:
            await self._quarantine([(record, error)])
            return True
        if command.index != self._settings.index:
            return True
        report = RunReport(self.producer, command, self._stopping, self.tracking)
        log = logger().bind(command=command.command_id, run=report.run_id)
        try:
            async with report.ticking(), self._following_wishes(command, report) as forgotten:
                await self._run_once_the_store_is_there(command, report, forgotten)
        except StoppedError:
            log.info("run interrupted; it is done again at the next start")
            return False
        except RankLostError:
            raise
        except RangeGoneError as error:
            await self._failed(report, command, str(error))
        except BrokerError:
            # Whatever else a broker does or doesn't do, the command can be done later.
            raise
        except TooFewError as error:
            await self._failed(report, command, str(error), verdict="inconclusive")
        except (ClickloopError, OSError) as error:
            await self._failed(report, command, str(error))
        except Exception as error:
            # The worker must outlive any one command, whatever a model or a library does; it is told, not hidden.
            log.exception("run failed")
            await self._failed(report, command, f"{type(error).__name__}: {error}")
        return True

    @asynccontextmanager
    async def _following_wishes(self, command: Retrain, report: RunReport) -> AsyncIterator[set[str]]:
        """While inside, the run ends when an operator wishes so. Wishes from before it began count.

        Yields the live set of the split keys that are to be forgotten.
        """
        where, prefix = self._settings.bootstrap_servers, self._settings.topic_prefix
        forgotten: set[str] = set()
        hear = partial(_hear, command=command, report=report, forgotten=forgotten)
        async with Follower(where, [topics.COMMANDS], prefix=prefix) as follower:
            await report.while_wanted(_hear_what_is_held(follower, hear))
            listening = asyncio.create_task(_listen(follower, hear))
            try:
                yield forgotten
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _run_once_the_store_is_there(self, command: Retrain, report: RunReport, forgotten: Set[str]) -> None:
        """``run``, again where the store is away before anything is trained: a trigger would ask hours later."""
        async for attempt in stamina.retry_context(StoreUnavailableError, timeout=STORE_SECONDS, attempts=None):
            with attempt:
                if attempt.num > 1:
                    await report.stage(command.kinds[0], "reading", message=STORE_AWAY)
                await self.run(command, report, forgotten)

    async def run(self, command: Retrain, report: RunReport, forgotten: Set[str] = frozenset()) -> None:
        """One command from top to bottom. Nothing of ``forgotten`` split keys is trained on."""
        await report.stage(command.kinds[0], "reading")
        # Who names a parent says what to compare with: without splits, it may be what an app went back to.
        before = "" if command.parent else await report.while_wanted(self._live_version(command.index))
        live = None if command.parent else partial(self._live_by_now, command.index, before)
        parent = await self._parent_of(command, before)
        async for published in self._ladder.climb(
            command, parent, lambda: report.while_wanted(self._read(command, forgotten)), report, live=live
        ):
            await self._announce(published)
            self.tracking.published(published)
            version, kind, gate = published.manifest.version, published.manifest.kind, published.manifest.gate
            verdict = gate.verdict if gate else None
            message = "; ".join(gate.reasons) if gate else ""
            await report.stage(kind, "done", version=version, verdict=verdict, message=message)
            logger().info("version published", version=version, kind=kind, verdict=verdict, reason=message)
        # Once all is loaded that the next one may start from, so that nothing is fetched twice.
        needed = {parent.version, parent.encoder, parent.space, before} - {""}
        await asyncio.to_thread(self._store.keep_copies, needed)

    async def _live_by_now(self, index: str, before: str) -> str:
        """As ``_live_version``; where no broker answers, as it was ``before``: that must not cost the training."""
        try:
            return await self._live_version(index)
        except BrokerError as error:
            logger().warning("splits not read", reason=str(error), taken_for_live=before)
            return before

    async def _live_version(self, index: str) -> str:
        """What users have; empty where no version passed yet.

        One that has a share of the traffic, and is to be live next, counts as live: what comes of the run will
        meet it. Where no search node asks for splits, an app of your own takes each version that passes: the last
        one is live there.
        """
        where, prefix = self._settings.bootstrap_servers, self._settings.topic_prefix
        if named := await read_live_version(where, prefix=prefix, index=index):
            return named
        passed = await read_passed_versions(where, prefix=prefix, index=index)
        return next((version for version in passed if self._store.has(version)), "")

    async def _parent_of(self, command: Retrain, live: str) -> Manifest:
        """The command's parent, else what the strategy starts from: the live version, or the base model."""
        named = command.parent or ("" if PRESETS[command.strategy].from_base else live)
        if named:
            return self._store.manifest(named)
        return await asyncio.to_thread(self._ladder.base)

    async def _read(self, command: Retrain, forgotten: Set[str]) -> Data:
        """The examples of the command's ranges, and the documents as they are now."""
        where = self._settings.bootstrap_servers
        prefix = self._settings.topic_prefix
        preset, index, ranges = PRESETS[command.strategy], command.index, command.ranges
        if preset.whole_history:
            ranges = await whole_history(where, ranges, prefix=prefix)
        of_index: Any = {"prefix": prefix, "index": index, "forgotten": forgotten}
        read = await read_examples(where, ranges, most=self._settings.max_examples, **of_index)
        most = self._settings.replay_examples if preset.replay else 0
        older = await read_before(where, ranges, most=most, **of_index)
        documents, unreadable = await read_documents(
            where, prefix=prefix, index=command.index, sources=self._sources
        )
        await self._quarantine(read.unreadable + unreadable)
        brought = await asyncio.to_thread(taught, command, documents, seed=self._settings.seed)
        both = with_replayed(read, older)
        data = await asyncio.to_thread(
            data_of,
            both.examples,
            documents,
            self._settings,
            given=brought.pairs if brought else None,
            source=brought.source if brought else {},
            ranges=ranges,
            replayed=both.replayed,
            dropped=read.dropped,
        )
        logger().info(
            "examples read",
            examples=len(read.examples),
            replayed=len(both.replayed),
            queries=len(data.prepared.clicks.queries),
            synthetic=len(data.prepared.synthetic),
            documents=len(documents),
            unreadable=len(read.unreadable),
            of_other_indexes=read.of_other_indexes,
            dropped=read.dropped,
            of_unknown_documents=data.prepared.unknown_documents,
        )
        return data

    async def _announce(self, published: Published) -> None:
        # Announced again after a crash, it is no newer than it was.
        at = await asyncio.to_thread(self._store.created, published.manifest.version)
        event = announcement(published, index=self._settings.index, at=at)
        async for attempt in stamina.retry_context(on=BrokerError, timeout=120.0, attempts=None):
            with attempt:
                await self.producer.send_and_wait(topics.MODEL_VERSIONS, event)

    async def _quarantine(self, unreadable: list[Unreadable]) -> None:
        """Each record once in this process's life; the documents are read again in every run."""
        new = {(record.topic, record.partition, record.offset): (record, error) for record, error in unreadable}
        for place in self._quarantined & new.keys():
            del new[place]
        await self.producer.quarantine(*new.values(), service=SERVICE, index=self._settings.index)
        self._quarantined.update(new)

    async def _failed(
        self, report: RunReport, command: Retrain, message: str, *, verdict: Verdict | None = None
    ) -> None:
        logger().error("run failed", command=command.command_id, reason=message)
        await report.failed(message, verdict=verdict)


def _hear(batch: list[tuple[Any, Record]], *, command: Retrain, report: RunReport, forgotten: set[str]) -> None:
    for _, record in batch:
        with suppress(MessageError):  # the streams that act on the other commands quarantine it
            wish = codec.decode(record.value, *topics.COMMANDS.types)
            match wish:
                case ForgetUser(index=command.index):
                    forgotten.add(wish.split_key)
                case Cancel(index=command.index, retrain=command.command_id):
                    report.cancel()


async def _hear_what_is_held(follower: Follower, hear: Callable[[list[tuple[Any, Record]]], None]) -> None:
    async for one in follower.held():
        hear([one])


async def _listen(follower: Follower, hear: Callable[[list[tuple[Any, Record]]], None]) -> None:
    while True:
        try:
            hear(await follower.batch(timeout_seconds=0.5))
        except BrokerError as error:
            # As with progress: a broker that is away for a while must not cost the training.
            logger().warning("commands not read", reason=str(error))
            await asyncio.sleep(1.0)


async def _commit(consumer: Any, partition: Any, offset: int) -> None:
    """Tell the group that everything before ``offset`` is done.

    Where the partition went to another trainer meanwhile, that one does the command again, finds its versions
    in the store, and only announces them again.
    """
    try:
        await consumer.commit({partition: offset})
    except Exception as error:  # noqa: BLE001 - aiokafka's errors are known to clickloop.kafka alone
        logger().warning("offset not committed", offset=offset, reason=repr(error))

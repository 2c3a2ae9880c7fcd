"""The trainer service: one command at a time, from its offset ranges to published versions.

A run reads from top to bottom in ``Trainer.run``: read, then for each rung train, gate, publish, announce.
The command's offset is committed after the last announcement, so a crash anywhere does it again; version names
come from the command's id, so doing it again makes nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import stamina
import torch

import clickloop
from clickloop import codec, topics
from clickloop.commands import Retrain
from clickloop.errors import BrokerError, ClickloopError, MessageError, TrainingError
from clickloop.events import Lineage, VersionKind
from clickloop.kafka import Producer, Record, group_consumer
from clickloop.logs import logger
from clickloop.model_store import Manifest, ModelStore, Published, base_model_folder
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from trainer.dataset import Clicks, Corpus, Prepared, after_synthetic, moments, prepare
from trainer.examples import Document, Unreadable, read_documents, read_examples, read_live_version
from trainer.gate import LADDER_MARGIN, Side, Thresholds, Trial, judge, measure
from trainer.loading import Loader
from trainer.methods import METHODS
from trainer.methods.base import Job, Parent, StoppedError, Trained, deadline
from trainer.model import encode, pick_device
from trainer.progress import RunReport
from trainer.publish import announcement, describe, publish, version_name
from trainer.settings import TrainerSettings

SERVICE = "trainer"
COST: dict[VersionKind, float] = {"adapter": 1.0, "query_encoder": 10.0, "full": 80.0}
"""How the budget is shared among a command's rungs, as measured on CPUs."""
TRAINING_SHARE: dict[VersionKind, float] = {"adapter": 0.9, "query_encoder": 0.9, "full": 0.8}
"""Part of a rung's time that training may take; the rest is for encoding, gate and publishing."""


@dataclass(frozen=True)
class Data:
    """What the log says, once for all rungs of a command."""

    prepared: Prepared
    documents: list[Document]


def build_trainer(settings: TrainerSettings) -> Trainer:
    """Assemble the service. Touches the store's folder, but no broker yet."""
    store = ModelStore(
        settings.store_url,
        cache=settings.work_dir / "cache",
        private_key=settings.private_key.get_secret_value(),
        public_key=settings.public_key,
    )
    producer = Producer(
        settings.bootstrap_servers,
        prefix=settings.topic_prefix,
        source=f"clickloop/trainer/{settings.index}",
    )
    return Trainer(settings, store, producer)


class Trainer:
    """Consumes ``retrain-commands`` of one index; see the module's text."""

    def __init__(self, settings: TrainerSettings, store: ModelStore, producer: Producer) -> None:
        self._settings = settings
        self._store = store
        self._sources = Sources(settings.index, load_mappings())
        self.producer = producer
        self._device = pick_device(settings.device)
        self._loader = Loader(store, self._device, seed=settings.seed)
        self._stopping = threading.Event()
        self._quarantined: set[tuple[str, int, int]] = set()

    async def serve(self, stop: asyncio.Event) -> None:
        """Do commands as they come until ``stop`` is set. Raises BrokerError where no broker answers."""
        settings = self._settings
        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        watcher = asyncio.create_task(self._watch(stop))
        try:
            async with (
                self.producer,
                group_consumer(
                    settings.bootstrap_servers,
                    topics.RETRAIN_COMMANDS,
                    prefix=settings.topic_prefix,
                    group=f"{settings.topic_prefix}-trainer-{settings.index}",
                ) as consumer,
            ):
                logger().info("waiting for retrain commands", index=settings.index, device=self._device)
                while not stop.is_set():
                    for partition, records in (await consumer.getmany(timeout_ms=500, max_records=1)).items():
                        for r in records:
                            done = await self.handle(Record(r.topic, r.partition, r.offset, r.key, r.value))
                            if done:
                                await _commit(consumer, partition, r.offset + 1)
        finally:
            watcher.cancel()

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.stop()

    def stop(self) -> None:
        """End training at its next step. What was being done stays undone, and is done at the next start."""
        self._stopping.set()

    async def handle(self, record: Record) -> bool:
        """Do what one record asks for. True where it is dealt with, one way or the other."""
        try:
            command = codec.decode(record.value, Retrain)
        except MessageError as error:
            await self._quarantine([(record, error)])
            return True
        if command.index != self._settings.index:
            return True
        report = RunReport(self.producer, command, self._stopping)
        log = logger().bind(command=command.command_id, run=report.run_id)
        try:
            async with report.ticking():
                await self.run(command, report)
        except StoppedError:
            log.info("run interrupted; it is done again at the next start")
            return False
        except BrokerError as error:
            if "no Kafka broker answers" in str(error):
                raise
            await self._failed(report, command, str(error))
        except (ClickloopError, OSError) as error:
            await self._failed(report, command, str(error))
        except Exception as error:
            # The worker must outlive any one command, whatever a model or a library does; it is told, not hidden.
            log.exception("run failed")
            await self._failed(report, command, f"{type(error).__name__}: {error}")
        return True

    async def run(self, command: Retrain, report: RunReport) -> None:
        """One command from top to bottom."""
        left = deadline(command.budget_seconds)
        first = command.kinds[0]
        await report.stage(first, "reading")
        parent = await self._parent_of(command)
        margin = 0.0
        data: Data | None = None
        for number, kind in enumerate(command.kinds):
            version = version_name(kind, command.command_id)
            if self._store.has(version):
                published = self._store.published(version)
            else:
                data = data or await self._read(command, first=parent.parent is None)
                share = COST[kind] / sum(COST[k] for k in command.kinds[number:])
                published = await self._train(
                    command, report, kind, version, parent, data, margin=margin, seconds=share * left()
                )
            await self._announce(published)
            gate = published.manifest.gate
            verdict = gate.verdict if gate else None
            message = "; ".join(gate.reasons) if gate else ""
            await report.stage(kind, "done", version=version, verdict=verdict, message=message)
            logger().info("version published", version=version, kind=kind, verdict=verdict, reason=message)
            if verdict == "pass":
                parent, margin = published.manifest, LADDER_MARGIN

    async def _parent_of(self, command: Retrain) -> Manifest:
        """The command's parent, else the live version, else the base model."""
        named = command.parent or await read_live_version(
            self._settings.bootstrap_servers, prefix=self._settings.topic_prefix, index=command.index
        )
        if named:
            return self._store.manifest(named)
        folder = base_model_folder(self._settings.base_model)
        base = await asyncio.to_thread(self._store.ensure_base, folder, name=self._settings.base_model)
        return base.manifest

    async def _read(self, command: Retrain, *, first: bool) -> Data:
        """``first``: it is to train from the base model, which takes more than going on from a trained one."""
        where = self._settings.bootstrap_servers
        prefix = self._settings.topic_prefix
        read = await read_examples(
            where, command.ranges, prefix=prefix, index=command.index, most=self._settings.max_examples
        )
        documents, unreadable = await read_documents(
            where, prefix=prefix, index=command.index, sources=self._sources
        )
        await self._quarantine(read.unreadable + unreadable)
        prepared = prepare(
            read.examples,
            documents,
            bias=self._settings.position_bias,
            clip=self._settings.propensity_clip,
            max_document_share=self._settings.max_document_share,
        )
        logger().info(
            "examples read",
            examples=len(read.examples),
            queries=len(prepared.clicks.queries),
            synthetic=len(prepared.synthetic),
            documents=len(documents),
            unreadable=len(read.unreadable),
            of_other_indexes=read.of_other_indexes,
            dropped=read.dropped,
            of_unknown_documents=prepared.unknown_documents,
        )
        if not documents:
            raise TrainingError(f"index {command.index!r} has no documents")
        if not len(prepared.clicks) and not len(prepared.synthetic):
            raise TrainingError("the command's ranges hold no positive example of a document in the index")
        if first:
            self._check_enough(prepared)
        return Data(prepared, documents)

    def _check_enough(self, prepared: Prepared) -> None:
        """Raises TrainingError where a first model from so little would only be noise."""
        settings = self._settings
        total = prepared.positives + prepared.negatives
        if total < settings.min_examples:
            raise TrainingError(
                f"{total} examples, {settings.min_examples} are needed for a first model (min_examples)"
            )
        if prepared.positives < settings.min_positive_share * total:
            raise TrainingError(
                f"{prepared.positives} of {total} examples are positive, a share of "
                f"{settings.min_positive_share:g} is needed (min_positive_share)"
            )

    async def _train(
        self,
        command: Retrain,
        report: RunReport,
        kind: VersionKind,
        version: str,
        manifest: Manifest,
        data: Data,
        *,
        margin: float,
        seconds: float,
    ) -> Published:
        settings = self._settings
        await report.stage(kind, "encoding", version=version)
        loaded = await asyncio.to_thread(
            self._loader.load,
            manifest,
            data.documents,
            data.prepared.clicks,
            data.prepared.synthetic,
            on_text=report.encoding,
        )
        parent, corpus = loaded.parent, loaded.corpus
        past = moments(loaded.clicks, share=settings.holdout_share, count=METHODS[kind].moments)
        if not past and len(loaded.synthetic):
            # Nothing to judge it by yet: the verdict will be inconclusive, and say so.
            past = [(loaded.clicks, loaded.clicks.of_queries([]))]
        if not past:
            raise TrainingError(
                f"{len(loaded.clicks)} clicked pairs are too few to train on some and hold others out"
            )
        past = [(after_synthetic(loaded.synthetic, known), later) for known, later in past]
        started = time.monotonic()
        trained, trials = Trained(), list[Trial]()
        left = deadline(seconds)
        for number, (known, later) in enumerate(past):
            step = f"moment {number + 1} of {len(past)}"
            await report.stage(kind, "training", version=version, message=step)
            share = TRAINING_SHARE[kind] * len(known) / sum(len(k) for k, _ in past[number:])
            job = Job(
                parent,
                known,
                corpus,
                loaded.domain,
                settings.seed,
                report.from_thread,
                trained,
                deadline(share * left()),
            )
            trained = await asyncio.to_thread(METHODS[kind].train, job)
            await report.stage(kind, "gate", version=version, message=step)
            if len(later):
                before, after = await asyncio.to_thread(_sides, parent, trained, corpus, later, report)
                trials.append(await asyncio.to_thread(measure, later, before, after))
        thresholds = Thresholds(settings.gate_min_queries, settings.gate_max_lost_recall)
        gate = await asyncio.to_thread(judge, trials, thresholds=thresholds, seed=settings.seed, margin=margin)

        await report.stage(kind, "publishing", version=version, verdict=gate.verdict)
        lineage = Lineage(
            command_id=command.command_id,
            run_id=report.run_id,
            strategy=command.strategy,
            ranges=command.ranges,
            examples=known.examples,
            documents=len(corpus),
            base_model=settings.base_model,
            settings=settings.for_lineage() | trained.notes | {"steps": trained.steps},
            seed=settings.seed,
            code_version=clickloop.__version__,
            train_seconds=time.monotonic() - started,
            newest_example_at=data.prepared.newest_example_at,
        )
        new = describe(version=version, kind=kind, parent=manifest, lineage=lineage, gate=gate)
        if kind == "full" and gate.verdict == "pass":
            await asyncio.to_thread(self._loader.keep, version, corpus.documents, after.documents)
        return await asyncio.to_thread(publish, self._store, settings.work_dir, new, parent, trained)

    async def _announce(self, published: Published) -> None:
        event = announcement(published, index=self._settings.index, at=codec.now())
        async for attempt in stamina.retry_context(on=BrokerError, timeout=120.0, attempts=None):
            with attempt:
                await self.producer.send_and_wait(topics.MODEL_VERSIONS, event)

    async def _quarantine(self, unreadable: list[Unreadable]) -> None:
        """Each record once in this process's life; the documents are read again in every run."""
        for record, error in unreadable:
            place = (record.topic, record.partition, record.offset)
            if place not in self._quarantined:
                await self.producer.quarantine(record, error, service=SERVICE, index=self._settings.index)
                self._quarantined.add(place)

    async def _failed(self, report: RunReport, command: Retrain, message: str) -> None:
        logger().error("run failed", command=command.command_id, reason=message)
        await report.failed(message)


def _sides(parent: Parent, trained: Trained, corpus: Corpus, held: Clicks, report: RunReport) -> tuple[Side, Side]:
    """The hold-out as parent and candidate see it; a candidate of a new space encodes the corpus for it."""
    before = Side(parent.searched_with(held.vectors), corpus.vectors)
    adapter = trained.adapter or (parent.adapter if not trained.new_space else None)
    if trained.encoder is None:
        queries, documents = held.vectors, corpus.vectors
    else:
        queries = encode(trained.encoder, held.queries, on_batch=lambda n: report.encoding(n, len(held.queries)))
        documents = corpus.vectors
        if trained.documents is not None:
            documents = trained.documents
        elif trained.new_space:
            texts = [d.text for d in corpus.documents]
            documents = encode(trained.encoder, texts, on_batch=lambda n: report.encoding(n, len(texts)))
    return before, Side(adapter.apply(queries) if adapter else queries, documents)


async def _commit(consumer: Any, partition: Any, offset: int) -> None:
    """Tell the group that everything before ``offset`` is done.

    Where the partition went to another trainer meanwhile, that one does the command again, finds its versions
    in the store, and only announces them again.
    """
    try:
        await consumer.commit({partition: offset})
    except Exception as error:  # noqa: BLE001 - aiokafka's errors are known to clickloop.kafka alone
        logger().warning("offset not committed", offset=offset, reason=repr(error))

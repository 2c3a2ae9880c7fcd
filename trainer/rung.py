"""A rung of the ladder from top to bottom: load, train, gate, publish. It needs no broker.

``Ladder.climb`` does a command's rungs one after the other. Who calls it says where the data come from, is told
how far it is, and announces what was published: the service on topics, a replay in its report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import msgspec
import numpy as np
import stamina
import torch

import clickloop
from clickloop.base_model import base_model_folder
from clickloop.commands import Retrain
from clickloop.errors import StoreUnavailableError, TrainingError
from clickloop.events import GateResult, Lineage, Verdict, VersionKind
from clickloop.golden import GoldenSet, read_golden
from clickloop.model_store import Manifest, ModelStore, Published
from trainer.beside import Beside, Candidate
from trainer.cost import Served, cost_of
from trainer.dataset import Clicks, Corpus
from trainer.gate import GoldenTrial, Side, Thresholds, Trial, judge, measure
from trainer.loading import Loader
from trainer.methods.base import Job, Notes, Parent, Progress, Trained, deadline
from trainer.methods.checkpoint import Checkpoints
from trainer.methods.towers import NOT_REPRODUCIBLE
from trainer.model import Adapter, encode, pick_device
from trainer.past import Data, check_enough, past_of, with_parents
from trainer.publish import describe, leave_nothing, looked_at, publish, run_name, seen_vectors, version_name
from trainer.ranks import Ranks
from trainer.sampling import at_most
from trainer.settings import TrainerSettings
from trainer.strategies import method_of
from trainer.truth import DEPTH, Truth, top

COST: dict[VersionKind, float] = {"adapter": 1.0, "query_encoder": 10.0, "full": 100.0}
"""How the budget is shared among a command's rungs, as measured on CPUs."""
TRAINING_SHARE = 0.9
"""Part of a rung's time that training may take, and what it must encode; the rest is for gate and publishing."""
STORE_SECONDS = 300.0
"""For so long is a store that is away asked again for what to start from, and then to take what was trained."""
STORE_AWAY = "the store is away; it is asked again"
EPOCH = datetime.fromtimestamp(0.0, UTC)


class Told(Protocol):
    """Who is told how far a rung is. The two that are no coroutines are called from worker threads, and may raise
    StoppedError to end the work."""

    async def stage(
        self,
        kind: VersionKind,
        stage: str,
        *,
        version: str = "",
        verdict: Verdict | None = None,
        message: str = "",
    ) -> None: ...

    def from_thread(self, progress: Progress) -> None: ...

    def encoding(self, done: int, texts: int) -> None: ...


class Ladder:
    """Trains, judges and publishes into one store."""

    def __init__(self, settings: TrainerSettings, store: ModelStore, ranks: Ranks | None = None) -> None:
        self._settings = settings
        self._store = store
        self._ranks = ranks
        self.device = ranks.device if ranks else pick_device(settings.device)
        self.loader = Loader(store, self.device, seed=settings.seed)

    def base(self) -> Manifest:
        """The base model as the store's first version; published where it is not there yet."""
        name = self._settings.base_model
        return self._store.ensure_base(base_model_folder(name), name=name).manifest

    async def climb(
        self,
        command: Retrain,
        parent: Manifest,
        read: Callable[[], Awaitable[Data]],
        told: Told,
        *,
        live: Callable[[], Awaitable[str]] | None = None,
    ) -> AsyncIterator[Published]:
        """Each of the command's rungs, as soon as it is published. What passed is the next one's parent.

        ``live`` names the version that users have by then: what is not made of that must beat that as well. A
        version that is in the store already is not made again, and ``read`` is only called where one is not.

        Raises TooFewError, TrainingError where the budget is too small, StoppedError, ArtifactError.
        """
        left = deadline(command.budget_seconds)
        on_top = False
        data: Data | None = None
        below: dict[int, Adapter] = {}
        for number, kind in enumerate(command.kinds):
            version = version_name(kind, command.command_id)
            then: dict[int, Adapter] = {}
            if self._store.has(version):
                published = self._store.published(version)
                # Whoever made it may have died before it could clear up.
                leave_nothing(self._settings.work_dir, self._settings.index, version)
            else:
                if data is None:
                    data = await read()
                    check_enough(data, self._settings, first=parent.parent is None)
                share = COST[kind] / sum(COST[k] for k in command.kinds[number:])
                published, then = await self._train(
                    command,
                    kind,
                    version,
                    parent,
                    data,
                    told,
                    below,
                    live,
                    on_top=on_top,
                    share=share,
                    left=left,
                )
            yield published
            gate = published.manifest.gate
            if gate is not None and gate.verdict == "pass":
                parent, on_top, below, live = published.manifest, True, then, None

    async def _train(
        self,
        command: Retrain,
        kind: VersionKind,
        version: str,
        manifest: Manifest,
        data: Data,
        told: Told,
        below: Mapping[int, Adapter],
        live: Callable[[], Awaitable[str]] | None,
        *,
        on_top: bool,
        share: float,
        left: Callable[[], float],
    ) -> tuple[Published, dict[int, Adapter]]:
        """The rung and, where it is but an adapter, what it was with so many moments to go; ``below`` is that of
        the rung below.

        It may take its ``share`` of the command's seconds that are ``left`` when all is encoded: encoding serves
        the rungs above as well.
        """
        settings = self._settings
        await told.stage(kind, "encoding", version=version)
        loaded = await asyncio.to_thread(
            self.loader.load,
            manifest,
            data.documents,
            data.prepared.clicks,
            data.prepared.synthetic if data.given is None else data.given,
            on_text=told.encoding,
            seconds_left=left,
        )
        parent, corpus = loaded.parent, loaded.corpus
        method = method_of(kind, command.strategy, settings)
        past = with_parents(
            await asyncio.to_thread(
                past_of, loaded, data, settings, strategy=command.strategy, count=method.moments
            ),
            parent,
            below if manifest.lineage.command_id == command.command_id else None,
        )
        golden_set = await asyncio.to_thread(self._golden)
        started = time.monotonic()
        checkpoints = Checkpoints(settings.work_dir, settings.index, version)
        trained, trials, then = Trained(), list[Trial](), dict[int, Adapter]()
        seconds = share * left()
        left = deadline(seconds)
        sample = at_most([moment.later for moment in past], settings.gate_max_queries, seed=settings.seed)
        for number, (moment, later) in enumerate(zip(past, sample.later, strict=True)):
            step = f"moment {number + 1} of {len(past)}"
            await told.stage(kind, "training", version=version, message=step)
            part = TRAINING_SHARE * len(moment.known) / sum(len(m.known) for m in past[number:])
            job = Job(
                moment.parent,
                moment.known,
                corpus,
                loaded.domain,
                settings.seed,
                told.from_thread,
                trained,
                deadline(part * left()),
                partial(self.loader.seconds_to_encode, parent.document_encoder),
                checkpoints.of(f"moment-{number + 1}", *self._facts(command, manifest, corpus)),
                self._ranks,
                data.replayed_share,
                data.given is not None,
            )
            trained = await asyncio.to_thread(method.train, job)
            if not trained.is_finite:
                raise TrainingError(f"{kind}: the weights that were trained are no finite numbers")
            if not trained.steps and job.seconds_left() <= 0.0:
                raise TrainingError(
                    f"{max(seconds, 0.0):.1f} s of the budget were left for {kind}: no step was done"
                )
            await told.stage(kind, "gate", version=version, message=step)
            if len(later):
                before, after = await asyncio.to_thread(_sides, moment.parent, trained, corpus, later, told)
                trials.append(await asyncio.to_thread(measure, later, before, after))
            if trained.adapter and trained.encoder is None:
                then[len(past) - 1 - number] = trained.adapter
        golden = await asyncio.to_thread(golden_trial, golden_set, parent, trained, corpus, told)
        if golden is not None:
            golden = replace(golden, held=held_on_golden(manifest, golden.digest))
        asked = past[-1].later.queries or past[-1].known.queries
        served = Served.of(parent, trained)
        cost = await asyncio.to_thread(cost_of, Served.of(parent), served, asked, seed=settings.seed)
        gate = await asyncio.to_thread(
            judge,
            trials,
            thresholds=thresholds_of(settings),
            seed=settings.seed,
            on_top=on_top,
            golden=golden,
            cost=cost,
            apart=trained.new_space,
        )
        gate = sample.told(gate)
        users_have = await live() if live is not None else ""
        if users_have not in ("", manifest.version):
            last = past[-1]
            gate = await asyncio.to_thread(
                Beside(
                    self._store, self.loader, thresholds_of(settings), settings.gate_max_queries, settings.seed
                ),
                gate,
                users_have,
                Candidate(
                    last.later,
                    lambda clicks: _sides(last.parent, trained, corpus, clicks, told)[1],
                    served,
                    golden_set,
                    golden,
                ),
                corpus,
                data.prepared,
                on_text=told.encoding,
                seconds_left=left,
            )
        await told.stage(kind, "publishing", version=version, verdict=gate.verdict)
        lineage = Lineage(
            command_id=command.command_id,
            run_id=run_name(command.command_id),
            strategy=command.strategy,
            ranges=data.ranges or command.ranges,
            examples=int(past[-1].known.counted().sum()),
            documents=len(corpus),
            base_model=settings.base_model,
            settings=settings.for_lineage()
            | self._circumstances()
            | trained.notes
            | data.source
            | looked_at(data.prepared.examination)
            | seen_vectors(corpus, past[-1].known, loaded.domain)
            | _held(gate, golden)
            | {"steps": trained.steps, "replayed_examples": data.replayed, "dropped_examples": data.dropped},
            seed=settings.seed,
            code_version=clickloop.__version__,
            train_seconds=time.monotonic() - started,
            newest_example_at=data.prepared.newest_example_at,
        )
        new = describe(version=version, kind=kind, parent=manifest, lineage=lineage, gate=gate)
        enclosed = data.examples if not lineage.ranges else ()
        async for attempt in stamina.retry_context(StoreUnavailableError, timeout=STORE_SECONDS, attempts=None):
            with attempt:
                if attempt.num > 1:
                    told.from_thread(Progress("publishing", message=STORE_AWAY))
                published = await asyncio.to_thread(
                    publish, self._store, settings.work_dir, new, parent, trained, examples=enclosed
                )
        checkpoints.remove()
        # A space's vectors are those of the encoder that defines it, and of no other. Who dies before this leaves
        # none, and who comes second to another trainer's version has trained another encoder.
        ours = published.manifest.lineage.train_seconds == lineage.train_seconds
        if kind == "full" and gate.verdict == "pass" and ours:
            await asyncio.to_thread(self.loader.keep, version, corpus.documents, after.documents)
        return published, then

    def _facts(self, command: Retrain, parent: Manifest, corpus: Corpus) -> list[object]:
        """What must be the same for a checkpoint to fit, beside what the method knows itself."""
        documents = b"".join(document.digest for document in corpus.documents)
        return [
            # A replay gives the same command again, at another time.
            msgspec.structs.replace(command, issued_at=EPOCH),
            parent.version,
            self._settings.seed,
            self.device,
            torch.__version__,
            clickloop.__version__,
            documents,
            *([self._ranks.place.world] if self._ranks else []),
        ]

    def _golden(self) -> GoldenSet:
        """As it is now: operators may have changed it since the last run."""
        return read_golden(self._store, self._settings.index)

    def _circumstances(self) -> Notes:
        """On what the bits of the weights depend, beside settings and data."""
        found: Notes = {"device": self.device, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        if self._ranks:
            found |= {"ranks": self._ranks.place.world, "threads": self._ranks.threads}
        if not self.device.startswith("cpu"):
            found[NOT_REPRODUCIBLE] = f"sums on {self.device} are not made in a fixed order"
        return found


def thresholds_of(settings: TrainerSettings) -> Thresholds:
    return Thresholds(
        settings.gate_min_queries,
        settings.gate_max_lost_recall,
        settings.gate_max_golden_loss,
        settings.gate_max_domain_loss,
        settings.gate_max_slowdown,
    )


GOLDEN_HELD = "golden_held"
"""Name of the lineage's note on what a version has of the golden set's first MRR@10."""


def held_on_golden(version: Manifest, digest: str) -> float:
    """What the version has of the MRR@10 that there was before this set was first tried; 1 where it is new."""
    golden = version.gate.golden if version.gate else None
    held = version.lineage.settings.get(GOLDEN_HELD)
    return float(held) if golden and golden.digest == digest and isinstance(held, (int, float)) else 1.0


def _held(gate: GateResult, golden: GoldenTrial | None) -> Notes:
    if golden is None:
        return {}
    mrr = gate.golden.metrics.get("mrr_at_10") if gate.golden else None
    return {GOLDEN_HELD: golden.held * (1.0 + (mrr.change if mrr and mrr.before > 0.0 else 0.0))}


def golden_trial(
    golden: GoldenSet, parent: Parent, trained: Trained, corpus: Corpus, told: Told
) -> GoldenTrial | None:
    """The golden set as parent and candidate answer it, without figures where none of its queries has a document
    in this corpus; None where there is no set."""
    if not golden.judged:
        return None
    judged = golden.within({document.doc_id for document in corpus.documents})
    if not judged:
        return GoldenTrial(golden.digest, len(golden.judged), {}, {})
    texts = [one.query for one in judged]
    none = np.zeros(0, dtype=np.int64)
    of_parent = encode(parent.query_encoder, texts, on_batch=lambda n: told.encoding(n, len(texts)))
    no_weight = np.zeros(0, dtype=np.float32)
    asked = Clicks(texts, none, none, no_weight, no_weight, vectors=of_parent)
    truth = Truth(judged, corpus.documents)
    before, after = (
        truth.of_top(top(side.queries, side.documents, DEPTH))
        for side in _sides(parent, trained, corpus, asked, told)
    )
    return GoldenTrial(golden.digest, len(golden.judged) - len(judged), before, after)


def tried(job: Job, trained: Trained, later: Clicks, told: Told) -> Trial:
    """What the job made, on what came after its moment."""
    return measure(later, *_sides(job.parent, trained, job.corpus, later, told))


def _sides(parent: Parent, trained: Trained, corpus: Corpus, held: Clicks, told: Told) -> tuple[Side, Side]:
    """The hold-out as parent and candidate see it; a candidate of a new space encodes the corpus for it."""
    before = Side(parent.searched_with(held.vectors), corpus.vectors)
    adapter = trained.adapter or (parent.adapter if not trained.new_space else None)
    if trained.encoder is None:
        queries, documents = held.vectors, corpus.vectors
    else:
        queries = encode(trained.encoder, held.queries, on_batch=lambda n: told.encoding(n, len(held.queries)))
        documents = corpus.vectors
        if trained.documents is not None:
            documents = trained.documents
        elif trained.new_space:
            texts = [d.text for d in corpus.documents]
            documents = encode(trained.encoder, texts, on_batch=lambda n: told.encoding(n, len(texts)))
    return before, Side(adapter.apply(queries) if adapter else queries, documents)

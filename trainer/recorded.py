"""The trainer on recorded examples: the service's ladder and gate, without a broker, and what it was worth."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

import clickloop
from clickloop import codec
from clickloop.commands import Reason, Retrain
from clickloop.errors import TrainingError
from clickloop.events import DocumentChanged, ExampleFormed, Verdict, VersionKind
from clickloop.golden import GoldenSet, read_golden
from clickloop.model_store import Manifest, ModelStore, Published
from clickloop.recorded import Climbed, Judged, RungResult, Say
from trainer.examples import Document, ExampleCollector, document_of
from trainer.methods.base import Progress, StoppedError
from trainer.past import Data, data_of
from trainer.rung import Ladder
from trainer.sampling import chosen
from trainer.settings import TrainerSettings
from trainer.truth import Measured, Truth, comparison

EVERY_SECONDS = 10.0


def climb(
    documents: Iterable[DocumentChanged],
    examples: Iterable[ExampleFormed],
    judged: Sequence[Judged],
    *,
    index: str,
    kinds: Sequence[VersionKind],
    work: Path,
    budget_seconds: float,
    base_model: str | None,
    source: Mapping[str, str],
    say: Say,
    max_queries: int | None = None,
) -> Climbed:
    """Train, judge and publish ``kinds`` into a store of their own in ``work``, from the base model.

    A run on the same data and settings finds its versions there, and trains nothing anew. ``judged`` speaks only
    of ``documents``; ``source`` says for the lineage where all of it comes from. At most ``max_queries`` queries
    are measured by the gate, and of the judged ones; None leaves that to the setting.

    Raises SettingsError, ArtifactError.
    """
    run = recorded(
        documents,
        examples,
        index=index,
        work=work,
        base_model=base_model,
        say=say,
        gate_max_queries=max_queries,
    )
    settings, corpus, kept, ladder = run.settings, run.documents, run.examples, run.ladder
    data = data_of(kept, corpus, settings, dropped=run.dropped, source=dict(source))
    command = _command(run, kinds, budget_seconds)
    start = ladder.base()
    told = Lines(say)
    published, reason = asyncio.run(_climb(ladder, command, start, data, told))
    rungs = _results(command, published, start, reason)
    measured = [judged[i] for i in chosen(len(judged), settings.gate_max_queries, seed=settings.seed)]
    if measured:
        if len(measured) < len(judged):
            say(f"measuring {len(measured):,} of {len(judged):,} judged queries")
        rungs = _with_truth(ladder, rungs, Truth(measured, corpus), corpus, start, told)
    passed = [rung.version for rung in rungs if rung.verdict == "pass"]
    weighing = sum(example.weight > 0.0 for example in kept)
    live = passed[-1] if passed else start.version
    return Climbed(
        rungs, start.version, live, weighing, len(kept) - weighing, dropped=run.dropped, judged=len(measured)
    )


@dataclass(frozen=True)
class Recorded:
    """What is trained on, and where."""

    settings: TrainerSettings
    documents: list[Document]
    examples: list[ExampleFormed]
    """In their last revision, oldest impression first."""
    dropped: int
    """Older ones, for which there was no room."""
    golden: GoldenSet
    ladder: Ladder

    def digest(self, *facts: object) -> str:
        """A name for all that versions and their verdicts come from: these facts, settings, code, documents,
        examples and golden set."""
        settings = self.settings
        about = (*facts, settings.base_model, settings.for_lineage(), self.golden.digest)
        name = hashlib.sha256(repr(about).encode())
        name.update(clickloop.__version__.encode())
        for document in self.documents:
            name.update(document.doc_id.encode() + b"\0" + document.digest)
        for example in self.examples:
            name.update(codec.encode(example))
        return name.hexdigest()[:32]


def recorded(
    documents: Iterable[DocumentChanged],
    examples: Iterable[ExampleFormed],
    *,
    index: str,
    work: Path,
    base_model: str | None,
    say: Say,
    gate_max_queries: int | None = None,
) -> Recorded:
    """Raises SettingsError, ArtifactError."""
    settings = TrainerSettings.load(
        index=index,
        store_url=f"file://{work.resolve()}/store",
        work_dir=work / "trainer",
        base_model=base_model,
        gate_max_queries=gate_max_queries,
    )
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    corpus = sorted(map(document_of, documents), key=lambda document: document.doc_id)
    collector = ExampleCollector(index=index, most=settings.max_examples)
    for example in examples:
        collector.keep(example)
    # No one but this process reads these versions, so they are neither signed nor checked for a signature.
    store = ModelStore(settings.store_url, cache=settings.work_dir / "cache")
    ladder, golden = Ladder(settings, store), read_golden(store, settings.index)
    read = collector.result()
    if read.dropped:
        say(
            f"the oldest {read.dropped:,} of {len(read.examples) + read.dropped:,} examples are left out "
            f"(max_examples is {settings.max_examples:,})"
        )
    return Recorded(settings, corpus, read.examples, read.dropped, golden, ladder)


def _command(run: Recorded, kinds: Sequence[VersionKind], budget_seconds: float) -> Retrain:
    """A command that is named by everything that its versions come from."""
    return Retrain(
        command_id=f"replay-{run.digest(kinds, budget_seconds)}",
        index=run.settings.index,
        issued_at=codec.now(),
        kinds=list(kinds),
        ranges=[],
        reason=Reason(policies=["manual"], text="replay of recorded events"),
        budget_seconds=budget_seconds,
    )


async def _climb(
    ladder: Ladder, command: Retrain, start: Manifest, data: Data, told: Lines
) -> tuple[list[Published], str]:
    """What was published and, where the ladder ends early, why."""
    published: list[Published] = []

    async def read() -> Data:
        return data

    try:
        async for version in ladder.climb(command, start, read, told):
            published.append(version)
            manifest = version.manifest
            if manifest.gate is not None:
                reasons = "; ".join(manifest.gate.reasons)
                await told.stage(manifest.kind, "done", verdict=manifest.gate.verdict, message=reasons)
    except TrainingError as error:
        return published, str(error)
    except asyncio.CancelledError:
        # By Ctrl-C. The training thread would go on, and the process would wait for it.
        told.stopped = True
        raise
    return published, ""


def _results(command: Retrain, published: Sequence[Published], start: Manifest, reason: str) -> list[RungResult]:
    results: list[RungResult] = []
    parent = start.version
    for manifest in (one.manifest for one in published):
        gate = manifest.gate
        results.append(
            RungResult(
                kind=manifest.kind,
                verdict=gate.verdict if gate else "inconclusive",
                reasons=gate.reasons if gate else [],
                version=manifest.version,
                parent=manifest.parent or "",
                train_seconds=manifest.lineage.train_seconds,
                gate=gate,
            )
        )
        parent = manifest.version if results[-1].verdict == "pass" else parent
    too_few = [f"not enough: {reason}"]
    left = command.kinds[len(published) :]
    return results + [RungResult(kind, "inconclusive", too_few, "", parent, 0.0, None) for kind in left]


def _with_truth(
    ladder: Ladder, rungs: list[RungResult], truth: Truth, corpus: list[Document], start: Manifest, told: Lines
) -> list[RungResult]:
    """The results with what each version is worth; where none was made, its parent stays."""
    known: dict[str, Measured] = {}

    def measured(version: str) -> Measured:
        if version not in known:
            told.kind = version
            model, vectors = ladder.loader.searched(version, corpus, on_text=told.encoding)
            known[version] = truth.measure(model, vectors)
        return known[version]

    before = measured(start.version)
    found = []
    for rung in rungs:
        after, parent = measured(rung.version or rung.parent), measured(rung.parent)
        found.append(
            msgspec.structs.replace(
                rung,
                truth=comparison(before, after),
                over_parent=comparison(parent, after),
                slices=truth.slices(before, after),
            )
        )
    return found


class Lines:
    """Says a line for every stage, and while one lasts, every EVERY_SECONDS how far it is."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._next = time.monotonic() + EVERY_SECONDS
        self.kind: str = ""
        self.stopped = False

    async def stage(
        self,
        kind: VersionKind,
        stage: str,
        *,
        version: str = "",  # noqa: ARG002 - a part of what a report is told
        verdict: Verdict | None = None,
        message: str = "",
    ) -> None:
        self.kind = kind
        said = ", ".join(part for part in (verdict or "", message) if part)
        self._line(f"{kind}: {stage}{f' ({said})' if said else ''}")

    def from_thread(self, progress: Progress) -> None:
        if self.stopped:
            raise StoppedError("interrupted")
        if progress.message:
            self._line(f"{self.kind}: {progress.message}")
        if time.monotonic() >= self._next:
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            self._line(f"{self.kind}: {progress.stage} {progress.step:,} of {progress.steps:,}{loss}")

    def encoding(self, done: int, texts: int) -> None:
        self.from_thread(Progress("encoding", done, texts, examples=done))

    def _line(self, text: str) -> None:
        self._next = time.monotonic() + EVERY_SECONDS
        self._say(text)

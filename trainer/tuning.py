"""Search for settings of one rung on recorded examples, and what they are worth on time that chose nothing.

Time is in three parts. Trials learn from the first and are judged on the middle one by the gate's own figure, at
the moments of the past that the gate takes. The best of many is best by luck as well, so its figure there is too
good (Cawley and Talbot 2010, "On over-fitting in model selection"). So the winner and today's settings are tried
against one another on the last part, which no trial has seen, and that figure counts.

Each trial is in an SQLite file when it is done. What is asked for next depends on those trials alone, so a search
that was killed goes on as if it had not been.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from clickloop.accounts import changed, interval
from clickloop.commands import Strategy
from clickloop.errors import SettingsError, TrainingError
from clickloop.evaluation import compare
from clickloop.events import DocumentChanged, Estimate, ExampleFormed, GateResult, VersionKind
from clickloop.golden import GoldenSet
from clickloop.recorded import Say
from clickloop.text import normal_text
from clickloop.tuning import LastPart, TrialResult, Tuned, Value
from trainer.dataset import Clicks, Corpus, first_after, moments, too_few
from trainer.examples import Document
from trainer.gate import GoldenTrial, Trial, among_all, judge
from trainer.methods.base import Job, Parent, Trained
from trainer.past import check_enough, data_of, past_of
from trainer.recorded import Lines, Recorded, recorded
from trainer.rung import Told, golden_trial, thresholds_of, tried
from trainer.settings import TrainerSettings
from trainer.strategies import method_of

METRIC = "mrr_at_10"
STRATEGY: Strategy = "incremental"
FILE = "tune.sqlite"
_STARTING = 10
"""Trials at random before the sampler has enough to go by, optuna's own default."""

Settings = dict[str, Value]


def _rate(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


_EITHER = CategoricalDistribution((True, False))
SPACE: dict[VersionKind, dict[str, BaseDistribution]] = {
    "adapter": {
        "adapter_learning_rate": _rate(1e-4, 1e-2),
        "adapter_epochs": IntDistribution(1, 12),
        "adapter_batch": IntDistribution(32, 1024, log=True),
        "adapter_distillation": _rate(0.005, 0.5),
        "adapter_doubts": _EITHER,
    },
    "query_encoder": {
        "query_encoder_learning_rate": _rate(2e-5, 1e-3),
        "query_encoder_epochs": IntDistribution(1, 5),
        "query_encoder_batch": IntDistribution(16, 256, log=True),
        "query_encoder_distillation": _rate(0.01, 1.0),
        "query_encoder_doubts": _EITHER,
        "query_encoder_layers": IntDistribution(1, 4),
        "query_encoder_rank": CategoricalDistribution((0, 8, 16, 32)),
        "query_encoder_share": FloatDistribution(0.2, 1.0),
    },
    "full": {
        "full_learning_rate": _rate(2e-5, 6e-4),
        "full_epochs": IntDistribution(1, 8),
        "full_batch": IntDistribution(16, 128, log=True),
        "full_depth": FloatDistribution(0.3, 1.0),
        "full_share": FloatDistribution(0.2, 1.0),
        "full_doubts": _EITHER,
        "full_loss": CategoricalDistribution(("both_ways", "query_to_document")),
    },
}
"""Where to look. Today's value is always within: see ``space_of``."""
AS_SET = frozenset(
    {
        "full_accumulate",
        "full_cached_batch",
        "full_domain_batches",
        "full_head",
        "full_matryoshka",
        "full_patience",
        "full_seeds",
        "full_teacher",
    }
)
"""Settings that stay as they are: what a version is for decides them, or how much memory and time there is."""


def tune(
    documents: Iterable[DocumentChanged],
    examples: Iterable[ExampleFormed],
    *,
    index: str,
    kind: VersionKind,
    trials: int,
    work: Path,
    budget_seconds: float,
    base_model: str | None,
    say: Say,
) -> Tuned:
    """``trials`` trials, those of earlier runs on the same data included.

    Raises SettingsError, ArtifactError, and TrainingError where the disk keeps no trial.
    """
    end = time.monotonic() + budget_seconds
    with alone(work / "tune.lock"):
        run = recorded(documents, examples, index=index, work=work, base_model=base_model, say=say)
        today = today_of(run.settings, kind)
        told = Lines(say)
        told.kind = kind
        try:
            middle, last = parts_of(run, kind, told)
        except TrainingError as error:
            reason = f"not enough to learn from: {error}; today's settings stay"
            return Tuned(kind=kind, today=today, chosen=today, better=False, reason=reason)
        bench = Bench(kind, run.settings, told, run.golden)
        study = open_study(work / FILE, f"{kind}-{run.digest(kind, SPACE[kind])}")
        resumed = len(done(study))
        if resumed:
            say(f"going on with {resumed} trials that are done")
        with keeping(work / FILE):
            try:
                search(study, bench, middle, trials=trials, seconds_left=lambda: end - time.monotonic(), say=say)
            except KeyboardInterrupt:
                say(f"interrupted: {len(done(study))} trials are kept in {work / FILE}; the same command goes on")
                raise
            return concluded(study, bench, last, resumed=min(resumed, trials), trials=trials)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While inside, no other process is in here. Raises SettingsError where one is."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(f"--work {path.parent} is in use by another search") from None
        yield


# What is tried, and on what


@dataclass(frozen=True)
class Part:
    """Moments of a stretch of time, oldest first: what is trained on, and what judges it; see ``past_of``."""

    parent: Parent
    corpus: Corpus
    domain: Clicks
    past: list[tuple[Clicks, Clicks]]


def parts_of(run: Recorded, kind: VersionKind, told: Told) -> tuple[Part, Part]:
    """All that lies before the last part, and all there is. The last part is what the gate would hold out now.

    Raises TrainingError where they are too small.
    """
    settings = run.settings
    whole = _part(run, run.examples, kind, told)
    clicks = data_of(run.examples, run.documents, settings).prepared.clicks
    before = earlier(run.examples, run.documents, clicks.queries[first_after(clicks, settings.holdout_share)])
    return _part(run, before, kind, told), whole


def _part(run: Recorded, examples: list[ExampleFormed], kind: VersionKind, told: Told) -> Part:
    settings = run.settings
    data = data_of(examples, run.documents, settings)
    check_enough(data, settings, first=True)
    start = run.ladder.base()
    loaded = run.ladder.loader.load(
        start, run.documents, data.prepared.clicks, data.prepared.synthetic, on_text=told.encoding
    )
    if not moments(loaded.clicks, share=settings.holdout_share, count=1):
        raise TrainingError(too_few(loaded.clicks))
    count = method_of(kind, STRATEGY, settings).moments
    past = past_of(loaded, data, settings, strategy=STRATEGY, count=count)
    return Part(loaded.parent, loaded.corpus, loaded.domain, past)


def earlier(examples: list[ExampleFormed], documents: Iterable[Document], query: str) -> list[ExampleFormed]:
    """The examples of impressions before the first one of ``query`` that counts."""
    known, text = {document.doc_id for document in documents}, normal_text(query)
    moment = next(
        e.served_at for e in examples if e.weight > 0.0 and e.doc_id in known and normal_text(e.query) == text
    )
    return [e for e in examples if e.served_at < moment]


@dataclass(frozen=True)
class Tried:
    """What the gate judges: a trial for each moment that has something to judge by, the last moment's last."""

    trials: list[Trial]
    golden: GoldenTrial | None = None

    def last(self) -> Tried:
        return replace(self, trials=self.trials[-1:])


class Bench:
    """Trains a rung by some settings, publishes nothing, and says how it did."""

    def __init__(self, kind: VersionKind, settings: TrainerSettings, told: Told, golden: GoldenSet) -> None:
        self.kind = kind
        self.settings = settings
        self._told = told
        self._golden = golden

    def run(self, part: Part, tuned: Settings) -> Tried:
        settings = self.settings.model_copy(update=tuned)
        method, trained, found = method_of(self.kind, STRATEGY, settings), Trained(), list[Trial]()
        for known, later in part.past:
            job = Job(part.parent, known, part.corpus, part.domain, settings.seed, self._told.from_thread, trained)
            trained = method.train(job)
            if len(later):
                found.append(tried(job, trained, later, self._told))
        return Tried(found, golden_trial(self._golden, part.parent, trained, part.corpus, self._told))

    def gate(self, found: Tried) -> GateResult:
        settings = self.settings
        gate = judge(found.trials, thresholds=thresholds_of(settings), seed=settings.seed, golden=found.golden)
        if self.kind != "full":
            return gate
        # Settings that go further look better than they are, too: here there is no one who could promote them.
        mrr = among_all(found.trials, seed=settings.seed)
        lost = mrr is not None and mrr.high < 0.0
        return msgspec.structs.replace(gate, verdict="fail") if lost else gate


# The search


def today_of(settings: TrainerSettings, kind: VersionKind) -> Settings:
    of_rungs = settings.of_rungs()
    return {name: of_rungs[name] for name in SPACE[kind]}


def space_of(kind: VersionKind, today: Settings) -> dict[str, BaseDistribution]:
    """SPACE, widened to where today's settings are."""
    return {name: _widened(distribution, today[name]) for name, distribution in SPACE[kind].items()}


def _widened(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        choices = distribution.choices  # type: ignore[attr-defined]
        return CategoricalDistribution(choices if value in choices else (*choices, value))
    low, high = min(distribution.low, value), max(distribution.high, value)
    return type(distribution)(low, high, log=distribution.log and low > 0)


def neat(value: Any) -> Value:
    """Three digits of a fraction say enough; what is tried is what the file will say."""
    found: Value = float(f"{value:.3g}") if isinstance(value, float) else value
    return found


def open_study(path: Path, name: str) -> optuna.Study:
    """The study of this name in the file, ready to go on. Raises SettingsError where the file is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        # A name may hold what ends a path in a URL.
        storage = URL.create("sqlite", database=str(path.resolve())).render_as_string()
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        # What a killed process was at.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except (SQLAlchemyError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raise SettingsError(f"{path} can't be used for the search: {said}") from None
    return study


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """While inside, what the file does not take, as a disk is full, is a TrainingError that says so."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        # optuna names what it guesses; what sqlite found is behind it, and SQLAlchemy adds the statement.
        found = error.__cause__ if isinstance(error, StorageInternalError) else error
        said = str(getattr(found, "orig", None) or found or error).partition("\n")[0]
        raise TrainingError(f"{path}: {said}; the same command goes on with the trials that it keeps") from error


def done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def search(
    study: optuna.Study,
    bench: Bench,
    part: Part,
    *,
    trials: int,
    seconds_left: Callable[[], float],
    say: Say,
) -> None:
    """Until so many trials are done, or the time is up. The first is today's settings, and done in any case."""
    today = today_of(bench.settings, bench.kind)
    space = space_of(bench.kind, today)
    while (number := len(done(study)) + 1) <= trials:
        if number > 1 and seconds_left() <= 0.0:
            say(f"the budget is spent after {number - 1} of {trials} trials")
            return
        if number == 1 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(today)
        # A sampler of its own for each: what it draws depends on no trial that was lost.
        study.sampler = optuna.samplers.TPESampler(
            seed=bench.settings.seed + number, n_startup_trials=_STARTING, multivariate=True
        )
        trial = study.ask(fixed_distributions=space)
        tuned = today if number == 1 else {name: neat(value) for name, value in trial.params.items()}
        started = time.monotonic()
        try:
            gate = bench.gate(bench.run(part, tuned))
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        found = TrialResult(
            number=number,
            settings=tuned,
            mrr_at_10=gate.metrics[METRIC],
            queries=gate.queries,
            verdict=gate.verdict,
            seconds=time.monotonic() - started,
        )
        trial.set_user_attr("result", msgspec.to_builtins(found))
        study.tell(trial, found.mrr_at_10.change)
        change = f"MRR@10 {changed(found.mrr_at_10)}, {found.seconds:.1f} s"
        say(f"trial {number} of {trials}: {change}: {_words(tuned, bench.kind)}")


def _words(tuned: Settings, kind: VersionKind) -> str:
    return ", ".join(f"{name.removeprefix(f'{kind}_')}={value}" for name, value in tuned.items())


def results(study: optuna.Study) -> list[TrialResult]:
    """Of the trials that are done, in their order."""
    return [msgspec.convert(trial.user_attrs["result"], TrialResult) for trial in done(study)]


# What came of it


def concluded(study: optuna.Study, bench: Bench, last: Part, *, resumed: int, trials: int) -> Tuned:
    """The winner against today's settings on the last part; what was tried there before is not tried again."""
    found, today = results(study)[:trials], today_of(bench.settings, bench.kind)
    # What the gate fails for the documents that it loses is no winner, whatever its figure.
    winner = max((t for t in found if t.verdict != "fail" or t.number == 1), key=lambda t: t.mrr_at_10.change)
    rivals = winner.settings if winner.number != 1 else None
    known: dict[str, Any] = study.user_attrs.get("last", {})
    name = repr(rivals)
    if name not in known:
        known = known | {name: msgspec.to_builtins(on_last_part(bench, last, today, rivals))}
        study.set_user_attr("last", known)
    figures = msgspec.convert(known[name], LastPart)
    better, reason = verdict(figures, trials=len(found), fewest=bench.settings.gate_min_queries)
    return Tuned(
        kind=bench.kind,
        today=today,
        chosen=winner.settings if better else today,
        better=better,
        reason=reason,
        trials=found,
        resumed=resumed,
        winner=winner.number,
        last=figures,
        looks=len(known.keys() - {repr(None)}),
    )


def on_last_part(bench: Bench, last: Part, today: Settings, rivals: Settings | None) -> LastPart:
    """Each trained on all that came before, and tried on the last moment's later queries alone."""
    old = bench.run(last, today).last()
    gate = bench.gate(old)
    part = LastPart(queries=gate.queries, today=gate.metrics[METRIC], today_verdict=gate.verdict)
    if rivals is None:
        return part
    new = bench.run(last, rivals).last()
    of_new = bench.gate(new)
    # The same queries with the same documents of the same parent to rank, so that a pair is a query.
    before, after = old.trials[-1], new.trials[-1]
    gain = compare(before.after[METRIC], after.after[METRIC], weights=before.weight, seed=bench.settings.seed)
    return msgspec.structs.replace(part, winner=of_new.metrics[METRIC], winner_verdict=of_new.verdict, gain=gain)


def verdict(last: LastPart, *, trials: int, fewest: int) -> tuple[bool, str]:
    """Whether the winner is to be trained by, and why."""
    stay = "today's settings stay"
    if last.gain is None:
        return False, f"none of {trials} trials was better than today's settings: {stay}"
    said = f"{_said(last.gain)} against today's settings on {last.queries} later queries"
    if last.queries < fewest:
        return False, f"the winner is {said}, and {fewest} are needed to tell: {stay}"
    if last.winner_verdict == "fail":
        return False, f"the gate fails the winner on the last part ({said}): {stay}"
    if last.gain.low <= 0.0:
        return False, f"the winner is not better beyond chance, {said}: {stay}"
    return True, f"the winner is better beyond chance, {said}"


def _said(gain: Estimate) -> str:
    return f"MRR@10 {changed(gain)}, 95 % interval {interval(gain)},"

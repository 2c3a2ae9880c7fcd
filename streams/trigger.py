"""When to retrain. Reads what was measured, decides, and says why, or why not.

Policies (``streams/policies.py``) make the case for a retrain; any of those that are switched on is enough.
Between a case and a command stand the pause switch, one command in flight, a cool-down, which grows while gates
fail, the seconds of training that a day may cost, and the least counts of examples by domain and difficulty
(``streams/balance.py``). What a training is expected to bring and cost (``streams/payoff.py``) goes with the
command, and chooses its rungs where the setting ``kinds`` is ``auto``.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from clickloop.commands import Pause, Promote, Reason, Retrain
from clickloop.events import (
    DriftMeasured,
    Message,
    ModelVersionPublished,
    NodeReported,
    OffsetRange,
    SplitChanged,
    TrainingProgressed,
    VersionKind,
)
from clickloop.retention import live_of
from streams.balance import Balance, parsed
from streams.buffer import merge_ranges
from streams.commanded import FROM_LIVE, Commanded, Undecided, in_order, undecided
from streams.payoff import LADDER, Expectation, History
from streams.pending import Pending, is_covered
from streams.policies import DAY_SECONDS, Case, Facts, Manual, Moved, NewDocuments, Rule, Schedule, Threshold
from streams.settings import StreamsSettings
from streams.watched import Watched

MAX_COMMANDS = 1000
QUIET_SECONDS = 120.0
"""A command one of whose rungs has ended, and that is silent for so long, is over."""
SILENT_SECONDS = 300.0
"""A node that reported so long before the newest report is gone, whatever it had indexed."""
GRACE_SECONDS = 600.0
"""A command whose run is silent for longer than its budget and this is lost."""
UNHEARD_SECONDS = DAY_SECONDS
"""So long a command waits for a trainer to begin with it: given up sooner, more would pile up before one comes."""


@dataclass(frozen=True)
class NotNow:
    """Why there is no retrain at this moment."""

    reason: str
    until: float | None = None
    """The answer stays so until then unless something is heard; None: for as long as nothing is."""


@dataclass(frozen=True)
class Outlook:
    """All that speaks for and against a retrain at one moment. ``held_back`` is empty where nothing does so."""

    held_back: str
    cases: Sequence[Case]
    ranges: Sequence[OffsetRange]
    kinds: Sequence[VersionKind]
    expected: Expectation
    figures: dict[str, float]
    failures: int
    """Commands in a row, up to the latest, whose gate was failed."""
    undecided: int
    """Examples of ``ranges`` that were commanded before, and on which no gate has decided."""
    until: float | None
    """When time alone may change this next; None for never."""

    @property
    def holding(self) -> list[Case]:
        return [case for case in self.cases if case.holds]


@dataclass(slots=True)
class _InFlight:
    wish: Retrain
    command: Commanded
    last_heard: float


class Trigger:
    """The trigger of one index. Everything it knows comes from the log, so a restart rebuilds it.

    Times are seconds since the epoch.
    """

    def __init__(self, settings: StreamsSettings) -> None:
        self._settings = settings
        self._rules = _rules(settings)
        self._balance = Balance(parsed(settings.domain_minimums), parsed(settings.difficulty_minimums))
        self._pending = Pending(self._balance)
        self._watched = Watched()
        self._commands: OrderedDict[str, Commanded] = OrderedDict()
        self._again: dict[bool, Undecided] = {}
        """What is covered again, without the command that is under way or with it; empty where it must be made."""
        self._served: set[str] = set()
        self._in_flight: _InFlight | None = None
        self._ended_at: float | None = None
        self._history = History()
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._nodes: dict[str, tuple[float, int]] = {}
        """When each reported last, and how many documents it had."""
        self._trained_documents: int | None = None
        self.paused = False
        self.awaited = ""
        """A version that passed and is not live yet: what is trained now would start from the one before it."""

    def hear(self, message: Message, *, offset: int, appended: float = 0.0) -> None:
        """Any message of the topics that the trigger follows. In whatever order the topics are read.

        ``appended``: when the broker took it, which goes before the sender's clock.
        """
        match message:
            case DriftMeasured():
                self.report(message, offset=offset)
            case Retrain():
                self.retrain(message, heard=appended)
            case TrainingProgressed():
                self.training(message, heard=appended)
            case ModelVersionPublished():
                self.version(message, heard=appended)
            case NodeReported(state="stopping"):
                self._nodes.pop(message.node_id, None)
            case NodeReported():
                self._node(message, appended)
            case Pause():
                self.paused = message.paused
            case SplitChanged():
                self.served(live_of(message))
            case Promote():
                self.served(message.version)

    def _node(self, event: NodeReported, appended: float) -> None:
        """One that was killed said no more, and must not be counted for ever, whatever its clock said."""
        self._nodes[event.node_id] = (appended, event.documents)
        newest = max(at for at, _ in self._nodes.values())
        self._nodes = {name: known for name, known in self._nodes.items() if known[0] >= newest - SILENT_SECONDS}

    def report(self, event: DriftMeasured, *, offset: int) -> None:
        """A window was measured. A report with a known id takes the place of that one."""
        end = event.window_end.timestamp()
        if any(
            c.issued is not None and is_covered(event.ranges, end, c.ranges, c.issued)
            for c in self._commands.values()
        ):
            return
        known = event.event_id in self._pending
        self._pending.add(event, offset=offset)
        if not known:
            self._watched.report(event)

    def retrain(self, command: Retrain, *, heard: float = 0.0) -> None:
        """A command is in the log, whoever sent it: the reports that it covers are done with."""
        issued = heard or command.issued_at.timestamp()
        known = self._command(command.command_id, issued)
        if known.issued is not None:
            return
        self._again.clear()
        known.issued = issued
        known.ranges = merge_ranges(command.ranges)
        known.strategy = command.strategy
        known.new_examples = command.reason.figures.get("examples")
        self._pending.drop_covered(known.ranges, issued)
        self._watched.command(issued)
        self._in_flight = _InFlight(command, known, max(issued, known.heard))
        self._maybe_end()

    def training(self, event: TrainingProgressed, *, heard: float = 0.0) -> None:
        """A run moved on. Its command ends with its last rung done, or with the run failed."""
        at = heard or event.at.timestamp()
        command = self._command(event.command_id, at)
        command.heard = max(command.heard, at)
        if event.stage != "waiting":
            command.began = min(at, command.began or at)
        over = set(LADDER) if event.stage == "failed" else {event.kind} if event.stage == "done" else set()
        if over:
            self._again.clear()
            command.ended |= over
            if event.stage == "failed" and event.verdict is None:
                command.broken_at = at
            command.judged(event.verdict)
        self._heard_of_a_run(at)

    def version(self, event: ModelVersionPublished, *, heard: float = 0.0) -> None:
        """A version was published: what it brought and cost, and how it did at its gate."""
        lineage = event.lineage
        if not lineage.command_id:
            return
        at = heard or event.published_at.timestamp()
        self._history.version(event)
        self._spent[event.version] = (at, lineage.train_seconds)
        while len(self._spent) > MAX_COMMANDS:
            self._spent.popitem(last=False)
        self._trained_documents = lineage.documents or self._trained_documents
        self._again.clear()
        command = self._command(lineage.command_id, at)
        command.versions.add(event.version)
        # Of a run's messages the log may keep the last alone.
        command.ended.add(event.kind)
        if event.gate is not None:
            command.judged(event.gate.verdict)
            command.learnt = max(float(lineage.examples), command.learnt or 0.0)
            command.held_out = max(event.gate.queries, command.held_out or 0)
        self._heard_of_a_run(at)

    def served(self, version: str) -> None:
        """It is live, or is to be by an operator's wish."""
        if version not in self._served:
            self._served.add(version)
            self._again.clear()

    def decide(self, now: float) -> Retrain | NotNow:
        """A command with its ranges and reason, or the reason why there is none. Changes nothing."""
        outlook = self.outlook(now)
        if outlook.held_back:
            return NotNow(outlook.held_back, outlook.until)
        holding = outlook.holding
        if not holding or not outlook.ranges:
            reason = ", and ".join(case.text for case in outlook.cases if not case.holds) or "no examples"
            return NotNow(reason, outlook.until)
        if not outlook.kinds:
            return NotNow(f"no rung is expected to pay for its time ({holding[0].text})", outlook.until)
        again = [f"{outlook.undecided} again on which no gate has decided"] if outlook.undecided else []
        return Retrain(
            command_id=_command_id(self._settings.index, outlook.ranges),
            index=self._settings.index,
            issued_at=datetime.fromtimestamp(now, UTC),
            kinds=list(outlook.kinds),
            ranges=list(outlook.ranges),
            reason=Reason(
                policies=[case.policy for case in holding],
                text="; ".join(dict.fromkeys([self._count_text(), *(case.text for case in holding), *again])),
                figures=outlook.figures,
            ),
            budget_seconds=min(self._settings.budget_seconds, self._left_today(now)),
        )

    def outlook(self, now: float) -> Outlook:
        """What the policies say, what stands in the way, what a retrain would bring and cost. Changes nothing."""
        facts = self._facts(now)
        moved = self._watched.most_moved
        chosen = self._settings.kinds
        new, again = self.ranges, self.undecided(now).ranges
        examples = facts.examples + facts.undecided
        kinds = [kind for kind in chosen if kind != "auto"] or self._history.choose(
            examples=examples, moved=moved, gain_per_hour=self._settings.gain_per_hour
        )
        expected = self._history.expect(kinds, examples=examples, moved=moved)
        cases = [rule.case(facts) for rule in self._rules]
        return Outlook(
            held_back=self._waiting_for(now) or self._too_dear(now, expected.seconds) or self._lacking(),
            cases=cases,
            ranges=merge_ranges([*again, *new]) if new else [],
            kinds=kinds,
            expected=expected,
            figures={
                "examples": float(facts.examples),
                "undecided": float(facts.undecided),
                "threshold": float(self._settings.threshold),
                "queries": float(self._pending.totals.queries),
                "drifted_windows": float(facts.drifted_windows),
                "measured_windows": float(facts.measured_windows),
                "expected_gain": round(expected.gain, 6),
                "expected_seconds": round(expected.seconds, 3),
                "learnt_from_runs": float(expected.runs),
            },
            failures=self._failures(),
            undecided=facts.undecided,
            until=self._next_moment(now, cases),
        )

    def expect(self, kinds: Sequence[VersionKind], *, undecided: int = 0) -> Expectation:
        """What other rungs than the chosen ones would bring now, with so many older examples again, and cost."""
        examples = self.new_examples + undecided
        return self._history.expect(kinds, examples=examples, moved=self._watched.most_moved)

    def undecided(self, now: float) -> Undecided:
        """The examples that the next command covers again."""
        flight = self._in_flight
        under_way = flight.command if flight is not None and now < _given_up_at(flight) else None
        without = under_way is not None
        if without not in self._again:
            over = [command for command in self._commands.values() if command is not under_way]
            self._again[without] = undecided(over, served=self._served, most=self._settings.undecided_examples)
        return self._again[without]

    @property
    def newest_version(self) -> str:
        """The version that passed its gate last; empty where none did."""
        return self._history.newest

    @property
    def documents(self) -> int | None:
        """In the index, as its nodes count them; None where none has said so."""
        return max((documents for _, documents in self._nodes.values()), default=None)

    @property
    def ranges(self) -> list[OffsetRange]:
        """Where the new examples lie."""
        return list(self._pending.totals.ranges)

    def is_new(self, report: DriftMeasured) -> bool:
        """No command covers this report."""
        return report.event_id in self._pending

    @property
    def low_water(self) -> int | None:
        """Offset of the oldest report that no command covers."""
        return self._pending.low_water

    @property
    def new_examples(self) -> int:
        return self._pending.totals.examples

    def _facts(self, now: float) -> Facts:
        latest = in_order(self._commands.values())[-1:]
        oldest = self._pending.totals.oldest
        return Facts(
            now=now,
            examples=self.new_examples,
            undecided=self.undecided(now).examples,
            drifting=sorted(self._watched.drifting),
            drifted_windows=max(self._watched.counts.values(), default=0),
            measured_windows=self._watched.windows,
            documents=self.documents,
            trained_documents=self._trained_documents,
            since=latest[0].issued if latest else oldest if oldest < math.inf else None,
        )

    # What stands in the way

    def _waiting_for(self, now: float) -> str:
        if self.paused:
            return "paused by an operator"
        flight = self._in_flight
        if flight is not None and now < _given_up_at(flight):
            return f"command {flight.wish.command_id} is in flight"
        if self.awaited:
            return f"{self.awaited} passed its gate and is on its way to all traffic"
        ended_at = self._ended_at
        if flight is not None and flight.command.ended:
            ended_at = max(flight.last_heard, ended_at or 0.0)
        if ended_at is None:
            return ""
        failures = self._failures()
        left = ended_at + self._cool_down(failures) - now
        if left <= 0.0:
            return ""
        after = f" after {failures} failed command{'s' * (failures > 1)}" if failures else ""
        return f"cooling down for another {left:.0f} s{after}"

    def _cool_down(self, failures: int) -> float:
        """It doubles with each failed command in a row, up to a day."""
        normal = self._settings.cool_down_seconds
        if not failures:
            return normal
        longer: float = self._settings.failed_cool_down_seconds * 2.0 ** min(failures - 1, 20)
        return max(normal, min(longer, DAY_SECONDS))

    def _too_dear(self, now: float, seconds: float) -> str:
        left = self._left_today(now)
        if seconds <= left:
            return ""
        return (
            f"the day's budget is spent: {left:.0f} of {self._settings.daily_budget_seconds:.0f} s are left, "
            f"and a retrain takes about {seconds:.0f} s"
        )

    def _lacking(self) -> str:
        return self._balance.lacking(self._pending.totals.counts)

    def _left_today(self, now: float) -> float:
        """Seconds of training that may still be spent in the 24 hours up to now."""
        spent = sum(seconds for at, seconds in self._runs() if at <= now < at + DAY_SECONDS)
        return max(0.0, self._settings.daily_budget_seconds - spent)

    def _runs(self) -> list[tuple[float, float]]:
        """When each run ended, and how many seconds of training it took.

        One that broke took what passed since it began; its versions have been counted.
        """
        broken = []
        for command in self._commands.values():
            if command.broken_at is not None and command.began is not None:
                counted = sum(self._spent[name][1] for name in command.versions if name in self._spent)
                broken.append((command.broken_at, max(0.0, command.broken_at - command.began - counted)))
        return [*self._spent.values(), *broken]

    def _next_moment(self, now: float, cases: Sequence[Case]) -> float | None:
        """When time alone may next change a verdict, or take away what stands in the way."""
        moments = [case.due for case in cases if case.due is not None]
        if self._in_flight is not None:
            moments.append(_given_up_at(self._in_flight))
            moments.append(self._in_flight.last_heard + self._cool_down(self._failures()))
        if self._ended_at is not None:
            moments.append(self._ended_at + self._cool_down(self._failures()))
        moments += [at + DAY_SECONDS for at, _ in self._runs()]
        return min((moment for moment in moments if moment > now), default=None)

    def _failures(self) -> int:
        """Commands in a row that failed, up to the latest. One that was inconclusive says nothing.

        Nor does one of another strategy, which someone asked for by hand, of what the next command is worth.
        """
        count = 0
        for command in reversed(in_order(self._commands.values())):
            if command.strategy not in FROM_LIVE:
                continue
            if command.passed:
                break
            count += command.failed or command.broken_at is not None
        return count

    # The log, told in any order

    def _command(self, command_id: str, at: float) -> Commanded:
        """For it to be changed, told of at this time. Of too many, what was told of longest ago is forgotten."""
        command = self._commands.setdefault(command_id, Commanded())
        command.told = max(command.told, at)
        if len(self._commands) > MAX_COMMANDS:
            del self._commands[min(self._commands, key=lambda name: self._commands[name].told)]
        return command

    def _heard_of_a_run(self, at: float) -> None:
        """The trainer is there, though it may be another command's that the one in flight waits for."""
        if self._in_flight is not None:
            self._in_flight.last_heard = max(self._in_flight.last_heard, at)
            self._maybe_end()

    def _maybe_end(self) -> None:
        flight = self._in_flight
        if flight is not None and flight.command.ended >= set(flight.wish.kinds):
            self._in_flight = None
            self._ended_at = max(flight.last_heard, self._ended_at or 0.0)

    def _count_text(self) -> str:
        return f"{self.new_examples} new examples (threshold {self._settings.threshold})"


def _given_up_at(flight: _InFlight) -> float:
    """When a command is over though its end has not been heard."""
    heard = flight.command.heard or flight.command.ended
    lost = flight.last_heard + (flight.wish.budget_seconds + GRACE_SECONDS if heard else UNHEARD_SECONDS)
    return min(lost, flight.last_heard + QUIET_SECONDS) if flight.command.ended else lost


def _rules(settings: StreamsSettings) -> list[Rule]:
    """The policies that are switched on, in the order of the setting."""
    least = settings.drift_min_examples
    known: dict[str, Rule] = {
        "threshold": Threshold(settings.threshold),
        "drift": Moved("drift", least),
        "performance": Moved("performance", least),
        "new_documents": NewDocuments(settings.document_threshold, least),
        "manual": Manual(),
    }
    if settings.schedule:
        known["schedule"] = Schedule.parse(settings.schedule, least=least)
    return [known[name] for name in settings.policies]


def _command_id(index: str, ranges: Sequence[OffsetRange]) -> str:
    """Told by what is to be trained on, so that the same wish, sent twice, is one command."""
    text = index + "".join(f"|{r.topic}/{r.partition}/{r.start}/{r.end}" for r in ranges)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

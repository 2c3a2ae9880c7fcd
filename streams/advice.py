"""What an operator should know about training now: recommendations, the most urgent first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clickloop.events import VersionKind
from streams.settings import StreamsSettings
from streams.trigger import Outlook, Trigger

MANY_FAILURES = 2


@dataclass(frozen=True)
class Recommendation:
    """``gain`` is the expected relative change of MRR@10 (0.06 is +6 %), ``seconds`` what it costs to train."""

    what: str
    why: str
    when: str = "now"
    gain: float | None = None
    seconds: float | None = None
    runs: int = 0
    """Earlier runs that gain and cost were learnt from; without any they are what one corpus showed."""


def recommendations(trigger: Trigger, settings: StreamsSettings, *, now: float) -> list[Recommendation]:
    """All of them, the most urgent first. Never empty."""
    return list(_recommendations(trigger, trigger.outlook(now), settings))


def _recommendations(trigger: Trigger, outlook: Outlook, settings: StreamsSettings) -> Iterator[Recommendation]:
    examples = trigger.new_examples
    if trigger.paused:
        yield Recommendation("clickloop resume", "an operator paused training and rollout of this index")
    if outlook.failures >= MANY_FAILURES:
        yield Recommendation(
            "look at the examples: clickloop buffer, and clickloop versions list for the verdicts",
            f"the last {outlook.failures} commands failed, at their gate or before: more of the same will not do",
        )
    if outlook.holding and outlook.ranges and outlook.kinds:
        why = "; ".join(case.text for case in outlook.holding)
        yield _train(list(outlook.kinds), _counted(outlook, examples), why, outlook)
    elif outlook.holding and outlook.ranges:
        yield Recommendation(
            "train nothing, or lower gain_per_hour",
            f"no rung is expected to raise MRR by {settings.gain_per_hour:.1%} for an hour of training",
        )
    if "full" not in outlook.kinds and examples:
        deeper = trigger.expect([*outlook.kinds, "full"], undecided=outlook.undecided)
        extra, hours = deeper.gain - outlook.expected.gain, (deeper.seconds - outlook.expected.seconds) / 3600.0
        if extra >= settings.gain_per_hour * hours:
            command = " ".join(f"--kind {kind}" for kind in [*outlook.kinds, "full"])
            yield Recommendation(
                f"clickloop retrain {command}",
                f"the rung full is expected to add {extra:+.1%} MRR on the {_counted(outlook, examples)}",
                "when the documents may be encoded anew",
                deeper.gain,
                deeper.seconds,
                deeper.runs,
            )
    for case in outlook.cases:
        if not case.holds:
            yield Recommendation(f"wait: {case.policy}", case.text, "later")


def _train(kinds: list[VersionKind], on: str, why: str, outlook: Outlook) -> Recommendation:
    expected = outlook.expected
    when = outlook.held_back or "now"
    return Recommendation(
        f"train {', '.join(kinds)} on {on}", why, when, expected.gain, expected.seconds, expected.runs
    )


def _counted(outlook: Outlook, new: int) -> str:
    again = f" and {outlook.undecided} that no gate has decided on" if outlook.undecided else ""
    return f"{new} new examples{again}"

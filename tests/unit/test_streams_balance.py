"""Enough of everything: minimums by domain and difficulty hold a retrain back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clickloop.commands import Reason, Retrain
from clickloop.errors import SettingsError
from clickloop.events import DriftMeasured, SliceCounts
from streams.balance import Balance
from streams.settings import StreamsSettings
from streams.trigger import NotNow, Trigger
from tests.unit.streams_facts import NOON, at, click, partition, progress, query, range_, report


def told(number: int, *slices: SliceCounts) -> DriftMeasured:
    examples = sum(part.examples for part in slices)
    return replace(
        report(number, examples=examples, ranges=[range_(0, number * 10, number * 10 + 10)]), slices=list(slices)
    )


def command(start: int, end: int) -> Retrain:
    return Retrain(
        command_id=f"{start}-{end}",
        index="default",
        issued_at=at(0),
        kinds=["adapter"],
        ranges=[range_(0, start, end)],
        reason=Reason(policies=["manual"], text=""),
    )


def test_what_is_lacking_is_named_with_its_figures_until_there_is_enough() -> None:
    rule = Balance(domains={"shoes": 5, "hats": 2}, difficulties={"hard": 3})
    slices = [SliceCounts(examples=4, domain="shoes", difficulty="hard")]
    assert (
        rule.lacking(rule.counts(slices))
        == "4 of 5 new examples of domain 'shoes', 0 of 2 new examples of domain 'hats'"
    )
    slices += [SliceCounts(examples=1, domain="shoes"), SliceCounts(examples=2, domain="hats")]
    assert rule.lacking(rule.counts(slices)) == ""


def test_what_no_minimum_names_takes_no_room() -> None:
    """Who asks may name the domain."""
    rule = Balance(domains={"shoes": 5}, difficulties={})
    slices = [SliceCounts(examples=1, domain=f"shop-{number}", difficulty="hard") for number in range(400)]
    assert rule.counts(slices) == {}
    assert rule.counts([*slices, SliceCounts(examples=3, domain="shoes")]) == {("domain", "shoes"): 3}


def test_without_minimums_nothing_is_held_back() -> None:
    assert Balance(domains={}, difficulties={}).lacking({}) == ""


def trigger() -> Trigger:
    return Trigger(
        StreamsSettings.load(
            domain_minimums="shoes=5,hats=2", difficulty_minimums="hard=3", threshold=1, cool_down_seconds=0
        )
    )


def reason(rule: Trigger) -> str:
    wish = rule.decide(NOON + 60)
    return wish.reason if isinstance(wish, NotNow) else ""


@pytest.mark.parametrize("command_first", [True, False])
def test_what_a_command_covers_is_not_new_whichever_is_read_first(command_first: bool) -> None:
    rule = trigger()
    enough = told(
        1, SliceCounts(examples=9, domain="shoes", difficulty="hard"), SliceCounts(examples=9, domain="hats")
    )
    steps = [lambda: rule.retrain(command(0, 20)), lambda: rule.report(enough, offset=0)]
    for step in steps if command_first else reversed(steps):
        step()
    rule.training(progress("0-20", "adapter", "done", when=1))
    assert reason(rule).startswith("0 of 5 new examples of domain 'shoes'")
    rule.report(told(2, *enough.slices), offset=1)
    assert isinstance(rule.decide(NOON + 60), Retrain)


def test_a_report_that_is_told_again_counts_once() -> None:
    rule = trigger()
    for _ in range(3):
        rule.report(
            told(1, SliceCounts(examples=2, domain="hats"), SliceCounts(examples=4, domain="shoes")), offset=0
        )
    assert reason(rule).startswith("4 of 5 new examples of domain 'shoes'")


def test_folded_reports_keep_what_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.pending.MAX_PENDING", 2)
    rule = trigger()
    for number in range(1, 7):
        rule.report(told(number, SliceCounts(examples=1, domain="shoes", difficulty="hard")), offset=number)
    assert reason(rule) == "0 of 2 new examples of domain 'hats'"


def test_a_partition_reports_its_new_examples_by_domain_and_difficulty() -> None:
    part = partition()
    now = {"log_time": NOON, "now": NOON}
    part.query(query("q1", domain="shoes", scores=(0.9, 0.5, 0.4, 0.3)), offset=0, **now)
    part.query(query("q2"), offset=1, **now)
    for offset, event in enumerate((click("a"), click("a", when=80.0), click("d"), click("b", "q2"))):
        part.feedback(event, offset=offset, **now)
    done = part.report(NOON + 1)
    assert done is not None
    assert {(s.domain, s.difficulty): s.examples for s in done.event.slices} == {
        ("shoes", "easy"): 1,
        ("shoes", "hard"): 1,
        ("", None): 1,
    }


def test_minimums_are_written_as_names_and_counts() -> None:
    settings = StreamsSettings.load(domain_minimums="shoes=50, hats=20", difficulty_minimums="hard=10")
    assert settings.domain_minimums == ["shoes=50", "hats=20"]
    for wrong in ({"domain_minimums": "shoes"}, {"difficulty_minimums": "tricky=3"}):
        with pytest.raises(SettingsError):
            StreamsSettings.load(**wrong)

"""Enough of everything: minimums by domain and difficulty hold a retrain back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clickloop.commands import Reason, Retrain
from clickloop.errors import SettingsError
from clickloop.events import DriftMeasured, SliceCounts
from streams.balance import Balance
from streams.settings import StreamsSettings
from tests.unit.streams_facts import NOON, at, click, partition, query, range_, report


def told(number: int, *slices: SliceCounts) -> DriftMeasured:
    return replace(report(number, ranges=[range_(0, number * 10, number * 10 + 10)]), slices=list(slices))


def command(start: int, end: int) -> Retrain:
    return Retrain(
        command_id=f"{start}-{end}",
        index="default",
        issued_at=at(0),
        kinds=["adapter"],
        ranges=[range_(0, start, end)],
        reason=Reason(policies=["manual"], text=""),
    )


def balance() -> Balance:
    return Balance(domains={"shoes": 5, "hats": 2}, difficulties={"hard": 3})


def test_what_is_lacking_is_named_with_its_figures_until_there_is_enough() -> None:
    rule = balance()
    rule.report(told(1, SliceCounts(examples=4, domain="shoes", difficulty="hard")))
    assert rule.lacking() == "4 of 5 new examples of domain 'shoes', 0 of 2 new examples of domain 'hats'"
    rule.report(told(2, SliceCounts(examples=1, domain="shoes"), SliceCounts(examples=2, domain="hats")))
    assert rule.lacking() == ""


def test_a_report_that_is_told_again_counts_once() -> None:
    rule = Balance(domains={"": 5}, difficulties={})
    for _ in range(3):
        rule.report(told(1, SliceCounts(examples=2)))
    assert rule.lacking() == "2 of 5 new examples of domain ''"


@pytest.mark.parametrize("command_first", [True, False])
def test_what_a_command_covers_is_not_new_whichever_is_read_first(command_first: bool) -> None:
    rule = balance()
    enough = told(
        1, SliceCounts(examples=9, domain="shoes", difficulty="hard"), SliceCounts(examples=9, domain="hats")
    )
    steps = [lambda: rule.retrain(command(0, 20)), lambda: rule.report(enough)]
    for step in steps if command_first else reversed(steps):
        step()
    assert rule.lacking().startswith("0 of 5 new examples of domain 'shoes'")
    rule.report(told(2, *enough.slices))
    assert rule.lacking() == ""


def test_without_minimums_nothing_is_held_back_nor_kept() -> None:
    rule = Balance(domains={}, difficulties={})
    rule.report(told(1, SliceCounts(examples=1)))
    assert rule.lacking() == ""
    assert not rule._pending


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

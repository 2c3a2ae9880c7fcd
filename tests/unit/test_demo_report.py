"""When the demo says that something went wrong."""

from __future__ import annotations

import pytest

from clickloop.events import Estimate, VersionKind
from demo.report import Report, Rung

BOTH: list[VersionKind] = ["adapter", "query_encoder"]


def rung(kind: VersionKind, verdict: str, low: float | None = None) -> Rung:
    made = Rung(kind, f"{kind}-1", verdict, 9.0, None)
    if low is not None:
        made.dense["mrr_at_10"] = Estimate(before=0.5, after=0.54, change=0.08, low=low, high=0.2)
    return made


@pytest.mark.parametrize(
    ("rungs", "said"),
    [
        ([rung("adapter", "pass", 0.03), rung("query_encoder", "pass", 0.05)], []),
        ([rung("adapter", "pass", 0.03), rung("query_encoder", "inconclusive")], []),
        (
            [rung("adapter", "pass", -0.01), rung("query_encoder", "pass", 0.05)],
            ["adapter-1 is not better than the base model beyond chance"],
        ),
        (
            [rung("adapter", "pass", 0.03), rung("query_encoder", "fail")],
            ["query_encoder-1 did not pass its gate (fail)"],
        ),
        (
            [rung("adapter", "inconclusive"), rung("query_encoder", "inconclusive")],
            [
                "adapter-1 did not pass its gate (inconclusive)",
                "query_encoder-1 did not pass its gate (inconclusive)",
            ],
        ),
        ([rung("adapter", "pass", 0.03)], ["no query_encoder version was trained"]),
        ([], ["no adapter version was trained", "no query_encoder version was trained"]),
    ],
)
def test_what_is_served_must_be_better_and_one_rung_must_be_served(rungs: list[Rung], said: list[str]) -> None:
    assert Report(rungs=rungs).problems_of_rungs(BOTH) == said

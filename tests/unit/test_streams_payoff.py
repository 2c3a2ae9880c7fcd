"""What a training should bring is learnt from those before it, and what it should cost too."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from streams.payoff import PRIOR_GAIN, PRIOR_SECONDS, History
from streams.policies import Schedule
from streams.settings import StreamsSettings
from tests.unit.streams_facts import trained


def test_without_runs_the_prior_speaks() -> None:
    found = History().expect(["adapter"], examples=5742)
    assert found.gain == pytest.approx(0.06, abs=0.005), "what the adapter brought where the prior is from"
    assert found.seconds == PRIOR_SECONDS["adapter"]
    assert found.runs == 0


def test_the_more_is_known_the_less_new_examples_bring() -> None:
    history = History()
    gains = []
    for number in range(4):
        gains.append(history.expect(["adapter"], examples=100).gain)
        history.version(trained(f"v{number}", f"k{number}", parent=f"v{number - 1}", gain=0.01))
    assert gains == sorted(gains, reverse=True)
    assert gains[3] < gains[0] / 2


def test_a_curve_that_the_runs_follow_is_found() -> None:
    history, known, truth = History(), 0, 3.0
    for number in range(12):
        gain = truth * PRIOR_GAIN["adapter"] * math.log1p(400 / (100 + known))
        history.version(trained(f"v{number}", f"k{number}", parent=f"v{number - 1}", gain=gain, examples=400))
        known += 400
    found = history.expect(["adapter"], examples=400)
    assert found.runs == 12
    assert found.gain == pytest.approx(truth * PRIOR_GAIN["adapter"] * math.log1p(400 / (100 + known)), rel=0.25)


def test_runs_that_made_things_worse_expect_nothing_but_no_loss() -> None:
    history = History()
    for number in range(6):
        history.version(trained(f"v{number}", f"k{number}", verdict="fail", gain=-0.2))
    assert history.expect(["adapter"], examples=100).gain == 0.0


def test_a_version_that_is_told_again_counts_once() -> None:
    history = History()
    for _ in range(3):
        history.version(trained("v1", "k1", seconds=50))
    assert history.expect(["adapter"], examples=100).runs == 1


def test_rungs_of_one_command_learn_from_the_same_examples_once() -> None:
    one, two = History(), History()
    one.version(trained("a1", "k1", examples=300))
    two.version(trained("a1", "k1", examples=300))
    two.version(trained("q1", "k1", kind="query_encoder", parent="a1", examples=300, gain=0.005))
    assert one.expect(["full"], examples=100).gain == pytest.approx(two.expect(["full"], examples=100).gain)


def test_a_rung_on_top_of_another_brings_what_it_adds() -> None:
    history = History()
    both = history.expect(["adapter", "query_encoder"], examples=1000)
    alone = history.expect(["query_encoder"], examples=1000)
    assert both.gain == pytest.approx(alone.gain)
    assert both.seconds > alone.seconds


def test_when_the_world_has_moved_known_examples_are_worth_less() -> None:
    history = History()
    history.version(trained("v1", "k1", examples=5000))
    still, moved = (history.expect(["adapter"], examples=100, moved=share).gain for share in (0.0, 0.5))
    assert moved > 1.5 * still


def test_cost_is_the_mean_of_the_latest_runs() -> None:
    history = History()
    for number, seconds in enumerate([1000, 10, 10, 10, 10, 20]):
        history.version(trained(f"v{number}", f"k{number}", seconds=seconds))
    assert history.seconds("adapter") == 12.0


@pytest.mark.parametrize("text", ["", "12", "0h", "25:00", "3:00", "1w", "-1h", "12h\n"])
def test_a_schedule_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="interval"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "soon"}, "interval"),
        ({"policies": "schedule"}, "needs the setting schedule"),
        ({"kinds": "auto,full"}, "auto stands alone"),
        ({"policies": ""}, "at least 1"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StreamsSettings(**changes)  # type: ignore[arg-type]

"""Which turns of benchmarks.join count, and what it says of a Kafka that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import join
from benchmarks.join import QUIET, Turn, counted, undecided

QUIET_TURN, LOUD = Turn(300.0, 150.0, 100.0, QUIET), Turn(900.0, 450.0, 100.0, QUIET + 0.001)


def test_turns_go_on_until_enough_were_quiet() -> None:
    assert undecided([], turns=3, most=6)
    assert undecided([QUIET_TURN, QUIET_TURN, LOUD], turns=3, most=6)
    assert not undecided([QUIET_TURN, LOUD, QUIET_TURN, QUIET_TURN], turns=3, most=6)
    assert not undecided([LOUD] * 6, turns=3, most=6), "a host that never gets quiet is measured all the same"


def test_the_quietest_turns_count_and_not_the_best() -> None:
    figures = counted([LOUD, Turn(200.0, 120.0, 100.0, 0.01), Turn(250.0, 130.0, 100.0, 0.0), QUIET_TURN], turns=3)
    assert (figures["turns"], figures["turns_left_out"], figures["stolen_share"]) == (3, 1, QUIET)
    assert (figures["ratio_least"], figures["ratio"], figures["ratio_most"]) == (2.0, 2.5, 3.0)
    assert (figures["events_per_second"], figures["bare_events_per_second"]) == (250.0, 100.0)
    assert (figures["one_process_events_per_second"], figures["one_process_ratio"]) == (130.0, 1.3)


def test_the_ratio_is_of_turns_and_not_of_medians() -> None:
    """Worker and bare loop of one turn met the same host."""
    turns = [Turn(300.0, 200.0, 100.0, 0.0), Turn(200.0, 150.0, 50.0, 0.0), Turn(100.0, 50.0, 20.0, 0.0)]
    assert counted(turns, turns=3)["ratio"] == 4.0


def test_a_kafka_home_without_kafka_is_one_line_and_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/java")
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path / "nowhere"))
    app = typer.Typer()
    app.command()(join.command)
    found = CliRunner().invoke(app, ["--quick"])
    assert found.exit_code == 2
    assert found.stderr.splitlines() == [
        f"clickloop: KAFKA_HOME={tmp_path}/nowhere: no folder with Apache Kafka's libs/"
    ]

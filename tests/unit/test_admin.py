"""What an operator sees and sends, without a broker."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable

import pytest
import typer
from typer.testing import CliRunner

from clickloop import admin, topics
from clickloop.admin import read_topic, show_table
from clickloop.codec import short_key
from clickloop.commands import ForgetUser
from clickloop.errors import BrokerError
from clickloop.events import Message, MessageQuarantined
from clickloop.settings import Settings
from tests.unit.busy_topic import Silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("cell", ["a click on [/x]", "shoes [waterproof] red", "[bold]", ":shoe: 3"])
def test_a_table_on_a_terminal_shows_data_as_they_are(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show_table("Dead letters", ["letter", "reason"], [["0", cell]])
    assert cell in terminal.getvalue()


def test_no_cell_gives_a_terminal_orders_or_breaks_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[2Jb\tc\nd\x9be"
    show_table("Dead letters", ["letter", "reason"], [["0", hostile]])
    assert capsys.readouterr().out == "0\ta\\x1b[2Jb\\tc\\nd\\x9be\n"
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show_table("Dead letters", ["letter", "reason"], [["0", hostile]])
    assert "a\\x1b[2Jb" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["forget-user", ""], "split_key"),
        (["promote", "", "--reason", "better"], "version"),
        (["retrain", "--cancel", "x" * 300], "retrain"),
        (["retrain", "--budget-seconds", "-1"], "budget_seconds"),
        (["retrain", "--budget-seconds", "nan"], "budget_seconds"),
    ],
)
def test_a_wish_that_every_reader_would_refuse_is_not_sent(
    arguments: list[str], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def held(*_: object) -> dict[int, tuple[int, int]]:
        return {0: (0, 5)}

    class Sent:
        def __init__(self, *_: object, **__: object) -> None:
            raise AssertionError("sent")

    monkeypatch.setattr(admin, "end_offsets", held)
    monkeypatch.setattr(admin, "Producer", Sent)
    app = typer.Typer()
    admin.add_to(app)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("clickloop: not sent: not a valid ")
    assert field in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_user_of_a_long_split_key_is_forgotten_by_what_it_is_kept_as(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes: list[Message] = []

    class Sending:
        def __init__(self, *_: object, **__: object) -> None: ...
        async def __aenter__(self) -> Sending:
            return self

        async def __aexit__(self, *_: object) -> None: ...
        async def send_and_wait(self, _: topics.Topic, message: Message) -> None:
            wishes.append(message)

    monkeypatch.setattr(admin, "Producer", Sending)
    app = typer.Typer()
    admin.add_to(app)
    assert CliRunner().invoke(app, ["forget-user", "x" * 300]).exit_code == 0
    assert [wish.split_key for wish in wishes if isinstance(wish, ForgetUser)] == [short_key("x" * 300)]


@pytest.mark.parametrize(
    "read",
    [
        lambda settings: read_topic(settings, topics.DEAD_LETTERS, MessageQuarantined),
        lambda settings: admin._announced(settings, "adapter-1"),
    ],
    ids=["read_topic", "announced"],
)
async def test_a_topic_whose_broker_has_died_is_given_up(
    read: Callable[[Settings], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "Follower", Silent)
    monkeypatch.setattr("clickloop.kafka.SILENT_SECONDS", 0.05)
    async with asyncio.timeout(2):
        with pytest.raises(BrokerError, match="nowhere:1 stopped answering"):
            await read(Settings(bootstrap_servers="nowhere:1"))

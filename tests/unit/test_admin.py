"""What an operator sees and sends, without a broker."""

from __future__ import annotations

import io
import sys

import pytest

from clickloop.admin import show_table


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

"""What ends a command: one line for a person, a code for a script."""

from __future__ import annotations

import errno
import os
import sqlite3

import pytest
import typer

from clickloop import cli
from clickloop.errors import ArtifactError, SettingsError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingsError("no such file"), 2, "no such file"),
        (ArtifactError("torn"), 1, "torn"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 1, "[Errno 28] No space left on device: 'x'"),
        (FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), "x"), 1, "[Errno 17] File exists: 'x'"),
        (TimeoutError(), 1, "TimeoutError"),
        (sqlite3.OperationalError("database or disk is full"), 1, "database or disk is full"),
    ],
)
def test_what_goes_wrong_ends_a_command_with_one_line_and_a_code(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        cli.checked(work)
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"clickloop: {said}\n"

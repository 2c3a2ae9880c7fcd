"""What every benchmark has: ``--json``, ``--quick``, and a plain way to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small run, under 50 seconds: a check, not a measurement.")]


class Stolen:
    """How much of this machine's processor time its host gives to others from now on (``steal`` in proc(5))."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    @property
    def share(self) -> float:
        """Of all the time since, in [0, 1]; 0 where the system does not tell."""
        before, now = self._before, psutil.cpu_times()
        passed = sum(now) - sum(before)
        return (getattr(now, "steal", 0.0) - getattr(before, "steal", 0.0)) / passed if passed > 0 else 0.0


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def finish(figures: Mapping[str, Any], *, json_file: Path | None) -> None:
    """Print the figures, one a line, and write them where asked."""
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(f"{name:<{width}}  {_shown(value)}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

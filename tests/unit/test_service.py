"""How a service ends, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SERVICE = """
import asyncio, sys
from clickloop.service import run_service
from clickloop.settings import Settings

class ProbeSettings(Settings):
    table = "probe"

async def main(stop):
    if sys.argv[1] == "by itself":
        stop.set()  # as one does whose work is done, before it has left all in order
    print("ready", flush=True)
    await asyncio.sleep(60) if sys.argv[1] == "never" else await stop.wait()
    await asyncio.sleep(0.5)
    print("in order", flush=True)

sys.exit(run_service("probe", ProbeSettings(), main))
"""


@pytest.mark.parametrize(
    ("how", "signals", "code", "said"),
    [
        ("by signal", 1, 0, "in order"),
        ("by itself", 0, 0, "in order"),
        ("by itself", 1, 0, "in order"),
        ("by itself", 2, 128 + signal.SIGTERM, ""),
        ("never", 2, 128 + signal.SIGTERM, ""),
    ],
)
def test_only_a_second_signal_cuts_a_service_short(how: str, signals: int, code: int, said: str) -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with service:
        assert service.stdout is not None
        assert service.stderr is not None
        assert service.stdout.readline() == "ready\n"
        for number in range(signals):
            service.send_signal(signal.SIGTERM)
            if number + 1 < signals:
                assert "stopping" in service.stderr.readline()
        assert service.wait(20) == code
        assert service.stdout.read().strip() == said

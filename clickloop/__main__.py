"""The console script, and ``python -m clickloop``.

Loading the commands takes a moment. Ctrl-C during it ends the process as at any other time: 130, no traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line. A user's mistake is one line on standard error and exit code 2."""
    signal.signal(signal.SIGINT, _leave)
    from clickloop import cli

    cli.add_commands()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(cli.run(cli.app))


if __name__ == "__main__":
    main()

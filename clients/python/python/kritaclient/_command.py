"""The command `kritaclient`, which the package installs: the same program, linked into the native module."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from . import _native


def main() -> NoReturn:
    """Runs the command with this process's arguments; it ends the process."""
    # Ctrl-C ends it as it ends any other command; Python would only take note of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _native.run_command(["kritaclient", *sys.argv[1:]])

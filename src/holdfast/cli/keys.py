"""Single keys from the terminal, without Enter. Where stdin is no terminal only time passes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Keys arrive at once and are not echoed; Ctrl-C stays an interrupt. On leaving the terminal is as it was."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def key_within(timeout_s: float) -> str:
    """The key that was pressed, or "" when the time is over. A terminal that has gone counts as "q"."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return ""
    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    if not ready:
        return ""
    return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1] or "q"

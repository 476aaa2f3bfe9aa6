"""The other end of the pipe: a variant serves orders until its standard input ends."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Protocol


class Program(Protocol):
    """A variant: each order, `setup` first, calls the method of its name and answers the dict that it returns."""

    def end(self) -> None:
        """Clean up; called once, also after an error."""


def serve(program: Program) -> None:
    """Obey until standard input ends or an order fails. Whatever the program prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for order in _orders():
            name = order.pop("do")
            try:
                answer = getattr(program, name)(**order)
            except Exception:
                # The order's answer carries it: the harness shows it and stops.
                answer = {"error": traceback.format_exc()}
            out.write(json.dumps(answer) + "\n")
            out.flush()
            if "error" in answer:
                break
    finally:
        program.end()


def _orders() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)

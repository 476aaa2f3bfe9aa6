"""Long-lived variant processes, told over a pipe to take one sample at a time.

A variant is a module with a `main` that calls `serve`. Orders and answers are one JSON line each, so that two variants
are alive side by side and take their samples in turn without paying for a start each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
Handler = Callable[..., dict[str, Any]]
_START_S, _ORDER_S, _END_S = 180.0, 300.0, 60.0


LOG_VARIABLE = "HOLDFAST_BENCH_LOG"
"""Names a file for what variants print; without it they print where the harness does."""


def _log() -> contextlib.AbstractContextManager[IO[bytes] | None]:
    path = os.environ.get(LOG_VARIABLE)
    return open(path, "ab") if path else contextlib.nullcontext()


class VariantError(RuntimeError):
    """A variant failed, died or did not answer in time."""


class Variant:
    """A variant process. Use as a context manager; leaving it ends the process, waiting for it.

    Args:
        module: run as `python -m module`.
        setup: its first order; answered when the variant is ready.
    """

    def __init__(self, module: str, env: dict[str, str], **setup: Any) -> None:
        self.name = module.rpartition(".")[2]
        with _log() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=env,
            )
        self._buffer = b""
        self._send({"do": "setup", **setup})

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """Wait for the answer to the set-up order. Two variants can so be started side by side."""
        return self.receive("setup", _START_S)

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give one order and wait for its answer. Raises: VariantError."""
        self.send(order, **arguments)
        return self.receive(order)

    def send(self, order: str, **arguments: Any) -> None:
        """Give one order; `receive` has to follow."""
        self._send({"do": order, **arguments})

    def receive(self, order: str, limit_s: float = _ORDER_S) -> dict[str, Any]:
        """Wait for the answer to the order that was given last. Raises: VariantError."""
        answer: dict[str, Any] = json.loads(self._line(time.monotonic() + limit_s, order))
        if "error" in answer:
            raise VariantError(f"{self.name} failed at {order!r}:\n{answer['error']}")
        return answer

    def fileno(self) -> int:
        """What becomes readable when an answer comes."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def kill(self) -> None:
        """kill -9, and wait until the process is gone; what it started goes, too, but for an agent of ours."""
        children = self._children()
        self._process.kill()
        self._process.wait()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=_END_S)
        self._hang_up()

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.pid).children(recursive=True)
            return [p for p in found if "holdfast.agent" not in p.cmdline()]
        return []

    def hang_up(self) -> None:
        """No more orders: the process ends by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def __enter__(self) -> Variant:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is not None:
            self._hang_up()
            return
        self.hang_up()
        try:
            self._process.wait(timeout=_END_S)
            self._hang_up()
        except subprocess.TimeoutExpired:
            self.kill()

    def _hang_up(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as e:
            raise VariantError(f"{self.name} is gone: exit {self._process.wait()}") from e

    def _line(self, deadline: float, order: str) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.kill()
                raise VariantError(f"{self.name} did not answer {order!r} in time")
            data = os.read(fd, 1 << 16)
            if not data:
                raise VariantError(f"{self.name} died at {order!r}: exit {self._process.wait()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

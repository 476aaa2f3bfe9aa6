"""Trainers and agents as processes: started, watched and killed by their ids."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fault.harness.oracle import Violation

ROOT = Path(__file__).parents[3]
_POLL_S = 0.005
# torch imports torch._dynamo when the first optimizer is made, in every process.
_IMPORTS = (
    *("torch", "torch.distributed", "torch._dynamo", "numpy", "msgspec", "awscrt.checksums", "http.client", "psutil"),
    *("asyncio", "aiohttp.web", "prometheus_client", "logging", "concurrent.futures.thread", "hashlib", "uuid"),
    *("difflib", "secrets", "statistics", "tests.fault.harness.scripts", "tests.fault.inject.spawning"),
    # What does no I/O, so that a recorded disk is told all, and has taken no function by name that a fault replaces.
    *("holdfast.lifecycle.node", "holdfast.lifecycle.run", "holdfast.wire.messages", "holdfast.wire.pages"),
    *("holdfast.wire.status", "holdfast.format.image", "holdfast.format.manifest", "holdfast.format.plain"),
)


class Zygote:
    """The process that forks trainers and agents. One per test session. Threads: one.

    Args:
        imports: the modules that what it forks finds imported.
    """

    def __init__(self, imports: Sequence[str] = _IMPORTS) -> None:
        environ = dict(os.environ)
        paths = [str(ROOT / "tests/fault/site"), str(ROOT), str(ROOT / "src"), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        self._directory = tempfile.mkdtemp()
        self.socket = os.path.join(self._directory, "socket")
        command = [sys.executable, "-m", "tests.fault.harness.zygote", self.socket, *imports]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is not for it: scenes that are closed then ask it for their agents
        )
        self._pending = b""
        self._answers: list[dict[str, Any]] = []
        self.exits: dict[int, int] = {}
        self._answer(60.0)

    def fork(self, job: dict[str, Any], environ: dict[str, str], out: Path) -> int:
        """The process id of a new trainer."""
        self._ask({"job": job, "environ": environ, "out": str(out)})
        pid: int = self._answer()["pid"]
        return pid

    def agents(self, arena: Path) -> list[int]:
        """The agents it forked for an arena below this directory, those that were just asked for included."""
        self._ask({"agents": f"{arena}/"})
        pids: list[int] = self._answer()["agents"]
        return pids

    def code(self, pid: int) -> int | None:
        """How a process it forked ended; None while it lives."""
        self._read(0.0)
        return self.exits.get(pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30.0)
        finally:
            self._process.kill()
            self._process.stdout.close()
        shutil.rmtree(self._directory)

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()

    def _answer(self, limit_s: float = 30.0) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while not self._answers:
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"the zygote does not answer (exit code {self._process.poll()})")
            self._read(0.1)
        return self._answers.pop(0)

    def _read(self, wait_s: float) -> None:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while select.select([fd], [], [], wait_s)[0]:
            data = os.read(fd, 1 << 16)
            if not data:
                return
            *lines, self._pending = (self._pending + data).split(b"\n")
            for line in map(json.loads, lines):
                if "exit" in line:
                    self.exits[line["exit"]] = line["status"]
                else:
                    self.exits.pop(line.get("pid"), None)  # of an earlier process of that number
                    self._answers.append(line)
            wait_s = 0.0


class Trainer:
    """One rank of one life."""

    def __init__(self, zygote: Zygote, pid: int, out: Path) -> None:
        self.pid = pid
        self.out = out
        self._zygote = zygote

    @property
    def code(self) -> int | None:
        return self._zygote.code(self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """And wait until it is gone."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if number == signal.SIGKILL:
                self.wait(30.0)

    def wait(self, limit_s: float) -> int:
        """Its exit code. Raises: Violation when it does not end."""
        end = time.monotonic() + limit_s
        while self.code is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGUSR2)
                time.sleep(0.5)
                raise Violation(f"trainer {self.pid} did not end within {limit_s:g} s; it wrote: {self.said()}")
            time.sleep(_POLL_S)
        assert self.code is not None
        return self.code

    def said(self) -> str:
        return self.out.read_text()[-3000:] if self.out.exists() else ""


def started_agents(arena: Path) -> list[int]:
    """Agents that were started, not forked, for an arena below this directory."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                _, *words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                # Not the shell that starts one, which has these words, too.
                if words[:2] == [b"-m", b"holdfast.agent"] and words[2].startswith(os.fsencode(arena) + b"/"):
                    found.append(int(entry.name))
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL, and wait until they are gone."""
    _signal(pids, signal.SIGKILL)
    end = time.monotonic() + 30.0
    while any(_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(_POLL_S)


def _alive(pid: int) -> bool:
    return _state(f"/proc/{pid}/stat") not in b"ZX"


def _state(stat_file: str) -> bytes:
    """The letter for the state of a process or thread; X, as for a dead one, when there is none."""
    try:
        stat = Path(stat_file).read_bytes()
    except OSError:
        return b"X"
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3]


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """No thread of these processes does anything meanwhile; those that are gone are passed over."""
    try:
        _signal(pids, signal.SIGSTOP)
        end = time.monotonic() + 30.0
        while any(_runs(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(_POLL_S)
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _runs(pid: int) -> bool:
    """Whether a thread of it is not stopped yet: one may be amid a system call."""
    return any(_state(path) not in b"TtZX" for path in glob.glob(f"/proc/{pid}/task/*/stat"))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

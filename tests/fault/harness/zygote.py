"""A process that has imported torch and forks trainers and agents: a restart costs 0.2 s instead of 2 s.

It computes nothing itself, so that it has one thread when it forks. What it imports are its arguments but the first;
faults of its children come after that and before all else. Requests and answers are JSON lines on stdin and stdout; a
trainer that wants an agent asks on the socket whose path is the first argument. It ends, and its children with it, when
stdin does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL_S = 0.005


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)
    path, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(64)
    server = _Server(answers, listening)
    server.say({"ready": os.getpid()})
    server.serve()


class _Server:
    """Invariant: every child is known, and reaped."""

    def __init__(self, answers: int, listening: socket.socket) -> None:
        self._answers = answers
        self._listening = listening
        self._agents: dict[int, str] = {}
        self._trainers: set[int] = set()

    def serve(self) -> None:
        pending = b""
        while True:
            self._reap()
            ready = select.select([0, self._listening.fileno()], [], [], _POLL_S)[0]
            if self._listening.fileno() in ready:
                self._fork_agents()
            if 0 not in ready:
                continue
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._answer(json.loads(line))
        for pid in (*self._agents, *self._trainers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def say(self, message: dict[str, Any]) -> None:
        os.write(self._answers, (json.dumps(message) + "\n").encode())

    def _answer(self, request: dict[str, Any]) -> None:
        if "agents" in request:
            self._fork_agents()
            self._reap()
            self.say({"agents": [p for p, arena in self._agents.items() if arena.startswith(request["agents"])]})
            return
        pid = self._fork(lambda: _be_trainer(request))
        self._trainers.add(pid)
        self.say({"pid": pid})

    def _fork_agents(self) -> None:
        """All that trainers, dead or alive, have asked for."""
        while select.select([self._listening], [], [], 0)[0]:
            connection, _ = self._listening.accept()
            with connection, connection.makefile("rb") as lines:
                text = lines.readline()
                if text.endswith(b"\n"):
                    request = json.loads(text)
                    pid = self._fork(lambda request=request: _be_agent(request))  # type: ignore[misc]
                    self._agents[pid] = request["arena"]
                    with contextlib.suppress(OSError):
                        connection.sendall(b"%d\n" % pid)

    def _fork(self, become: Callable[[], int]) -> int:
        pid = os.fork()
        if pid == 0:
            os.close(self._answers)
            self._listening.close()
            _run(become)
        return pid

    def _reap(self) -> None:
        while self._agents or self._trainers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._agents.pop(pid, None)
            self._trainers.discard(pid)
            self.say({"exit": pid, "status": os.waitstatus_to_exitcode(status)})


# In the child ---------------------------------------------------------------------------------------------------------
def _run(become: Callable[[], int]) -> None:
    """Never returns. SIGUSR2 shows where all threads stand."""
    code = 1
    try:
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        code = become()
    except KeyboardInterrupt:
        code = 3
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _say_into(path: str) -> None:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, onto in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, onto)
    os.close(null)
    os.close(out)


def _be_trainer(request: dict[str, Any]) -> int:
    os.environ.update(request["environ"])
    _say_into(request["out"])
    import torch
    from tests.fault.harness.job import Job
    from tests.fault.inject.faults import install

    torch.set_num_threads(1)
    described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["job"].items()}
    job = Job(**described)
    install(job.process, job.rank)
    module, _, name = job.script.partition(":")
    getattr(importlib.import_module(module), name)(job)
    return 0


def _be_agent(request: dict[str, Any]) -> int:
    """As `python -m holdfast.agent`, started by spawn_agent, would be."""
    os.environ.clear()
    os.environ.update(request["environ"])
    _say_into(request["log"])
    os.setsid()
    os.chdir("/")
    from tests.fault.inject.faults import AGENT, install

    install(AGENT)
    code: int = importlib.import_module("holdfast.agent.main").run(Path(request["arena"]))
    return code


if __name__ == "__main__":
    main()

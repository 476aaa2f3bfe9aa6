"""A process that has imported torch and forks a trainer per request: a restart costs 0.2 s instead of 2 s.

It computes nothing itself, so that it has one thread when it forks, and imports nothing of holdfast, so that each
child's faults are in place before that. Requests and answers are JSON lines on stdin and stdout; it ends, and its
children with it, when stdin does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

_POLL_S = 0.005


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)
    _import_what_trainers_need()
    _say(answers, {"ready": os.getpid()})
    children: set[int] = set()
    pending = b""
    while True:
        _reap(children, answers)
        if not select.select([0], [], [], _POLL_S)[0]:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _run(json.loads(line), answers)
            children.add(pid)
            _say(answers, {"pid": pid})
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _import_what_trainers_need() -> None:
    for name in ("torch", "torch.distributed", "numpy", "msgspec", "awscrt.checksums", "http.client", "psutil"):
        importlib.import_module(name)


def _reap(children: set[int], answers: int) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        _say(answers, {"exit": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, (json.dumps(message) + "\n").encode())


def _run(request: dict[str, Any], answers: int) -> None:
    """In the child: become the trainer the request describes. Never returns."""
    code = 1
    try:
        os.close(answers)
        os.environ.update(request["environ"])
        out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, onto in ((null, 0), (out, 1), (out, 2)):
            os.dup2(fd, onto)
        os.close(null)
        os.close(out)
        _become(request["job"])
        code = 0
    except KeyboardInterrupt:
        code = 3
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(described: dict[str, Any]) -> None:
    import torch
    from tests.fault.harness.job import Job
    from tests.fault.inject.faults import TRAINER, install

    torch.set_num_threads(1)
    job = Job(**{**described, "force": tuple(described["force"])})
    install(TRAINER, job.rank)
    module, _, name = job.script.partition(":")
    getattr(importlib.import_module(module), name)(job)


if __name__ == "__main__":
    main()

"""In a trainer under test: have the zygote fork the agent instead of starting a Python for it, which takes 0.6 s."""

from __future__ import annotations

import json
import os
import socket
from types import SimpleNamespace
from typing import Any

from tests.fault.inject.faults import Patch

VARIABLE = "HOLDFAST_TEST_ZYGOTE"
_RESPAWN_S = 0.5


def install(patch: Patch) -> None:
    """Everything of `spawn_agent` is as ever but the one call that starts a process."""
    if os.environ.get(VARIABLE):
        patch(
            "holdfast.wire.spawn:subprocess",
            lambda real: SimpleNamespace(run=_fork, DEVNULL=real.DEVNULL, PIPE=real.PIPE),
        )
        # An agent that is killed while it starts is missed after this long; nothing under test depends on it.
        patch("holdfast.wire.spawn:_RESPAWN_S", lambda real: _RESPAWN_S)


def _fork(command: list[str], *, stderr: int, env: dict[str, str], **rest: Any) -> SimpleNamespace:
    request = {"arena": command[-1], "environ": env, "log": os.readlink(f"/proc/self/fd/{stderr}")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.environ[VARIABLE])
        connection.sendall((json.dumps(request) + "\n").encode())
        return SimpleNamespace(stdout=connection.recv(16) or b"0")

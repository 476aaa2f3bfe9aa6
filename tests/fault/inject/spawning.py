"""In a process under test: have a zygote fork the agent instead of starting a Python for it, which takes 0.6 s."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from tests.fault.inject.faults import Patch, Wrap

VARIABLE = "HOLDFAST_TEST_ZYGOTE"
"""Names the zygote's socket. An agent whose environment lacks it is started as ever."""
_RESPAWN_S = 0.5


def install(patch: Patch) -> None:
    """Everything of `spawn_agent` is as ever but the one call that starts a process."""
    if os.environ.get(VARIABLE):
        patch(
            "holdfast.wire.spawn:subprocess",
            lambda real: SimpleNamespace(**{**vars(real), "run": partial(_fork, real)}),
        )
        # An agent that is killed while it starts is missed after this long; nothing under test depends on it.
        patch("holdfast.wire.spawn:_RESPAWN_S", lambda real: _RESPAWN_S)


def install_here(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """The same where holdfast is imported already."""
    from holdfast.wire import spawn

    def patch(at: str, wrap: Wrap) -> None:
        name = at.partition(":")[2]
        replace(spawn, name, wrap(getattr(spawn, name)))

    install(patch)


def _fork(real: Any, command: list[str], *, stderr: int, env: dict[str, str], **rest: Any) -> Any:
    if not env.get(VARIABLE):
        return real.run(command, stderr=stderr, env=env, **rest)
    request = {"arena": command[-1], "environ": env, "log": os.readlink(f"/proc/self/fd/{stderr}")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(env[VARIABLE])
        connection.sendall((json.dumps(request) + "\n").encode())
        return SimpleNamespace(stdout=connection.recv(16) or b"0")

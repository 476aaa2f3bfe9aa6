"""An agent that cannot be started, or does not come round to its callers, is an error of ours."""

import contextlib
import socket
import subprocess
import threading

import pytest

from holdfast.config import Config
from holdfast.errors import AgentError, DeadlineError
from holdfast.wire.client import AgentClient, Attachment, connect
from holdfast.wire.spawn import spawn_agent


@pytest.fixture
def settings(tmp_path):
    return Config.from_url(str(tmp_path / "home")).resolve({"HOLDFAST_ARENA_DIR": str(tmp_path / "memory")})


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/bin/sh"),
        BlockingIOError(11, "Resource temporarily unavailable"),
        subprocess.CalledProcessError(2, "/bin/sh"),
    ],
)
def test_an_agent_that_cannot_be_started_is_an_error_of_ours(settings, monkeypatch, error):
    def refuse(*args, **more):
        raise error

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(AgentError, match="cannot start the agent") as caught:
        spawn_agent(settings)
    assert "/bin/sh" in caught.value.hint


@pytest.fixture
def stuck(tmp_path):
    """An agent that accepts nobody: it listens, and its queue is full."""
    path = tmp_path / "agent.sock"
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield path, listener


def test_an_agent_that_accepts_nobody_is_waited_for_and_not_taken_for_gone(stuck):
    path, listener = stuck
    with pytest.raises(DeadlineError, match=r"did not answer rank 3 within 0\.05 s"):
        Attachment(path, 3, 0.05)
    with pytest.raises(DeadlineError, match=r"did not answer GET /status within 0\.05 s"):
        AgentClient(path).get("/status", dict, timeout_s=0.05)

    def accept():
        listener.accept()[0].close()

    accepting = threading.Timer(0.05, accept)
    accepting.start()
    connect(path, 30.0).close()
    accepting.join()

"""An agent that cannot be started, or does not come round to its callers, is an error of ours."""

import subprocess

import pytest

from holdfast.config import Config
from holdfast.errors import AgentError
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

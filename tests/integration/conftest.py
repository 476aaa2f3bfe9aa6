"""What tests with real processes share: a place of their own, agents that are ended, ranks that are forked quickly."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration import processes
from tests.integration.mounts import Mounts
from tests.integration.place import Place

from holdfast.cli import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An arena directory in shared memory and a home on disk that no other test knows; its agents are ended after."""
    arena_dir = Path(tempfile.mkdtemp(prefix=f"holdfast-test-{os.getpid()}-", dir="/dev/shm"))
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(arena_dir))
    # Short enough that a test that goes wrong ends, long enough for a loaded machine.
    monkeypatch.setenv("HOLDFAST_IDLE_S", "60")
    monkeypatch.setenv("HOLDFAST_CLOSE_TIMEOUT_S", "30")
    monkeypatch.setenv("HOLDFAST_LOAD_TIMEOUT_S", "30")
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "15")
    monkeypatch.delenv("HOLDFAST_RUN", raising=False)
    made = Place(tmp_path / "run", arena_dir)
    yield made
    processes.end_agents(arena_dir)
    shutil.rmtree(arena_dir, ignore_errors=True)


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    """Small file systems, where this user may mount them."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    made = Mounts()
    yield made
    made.close()


@pytest.fixture(scope="session")
def forker() -> "multiprocessing.context.ForkServerContext":
    """A process that has imported torch once, of which every rank is a copy: 1.4 s less for each."""
    return processes.start_forker()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs a command in this process: its exit code and its JSON document."""

    def call(*args: object) -> tuple[int, Any]:
        code = main([*map(str, args), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call

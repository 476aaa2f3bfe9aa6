"""What tests with real processes share: a place of their own, agents and ranks that are forked quickly, faults."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fault.harness.processes import ROOT, Zygote
from tests.fault.inject import spawning
from tests.fault.inject.faults import VARIABLE, Fault, Plan
from tests.integration import processes
from tests.integration.mounts import Mounts
from tests.integration.place import Place

from holdfast.cli import main


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that has imported what an agent is made of, of which agents are copies: 0.6 s less for each."""
    made = Zygote(["holdfast.agent.main"])
    processes.zygotes.append(made)
    yield made
    processes.zygotes.remove(made)
    made.close()


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, zygote: Zygote
) -> Iterator[Place]:
    """An arena directory in shared memory and a home on disk that no other test knows; its processes are ended after.

    Agents are forked, but for those of tests that are marked `started_agents` and those that have faults.
    """
    arena_dir = Path(tempfile.mkdtemp(prefix=f"holdfast-test-{os.getpid()}-", dir="/dev/shm"))
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(arena_dir))
    # Short enough that a test that goes wrong ends, long enough for a loaded machine.
    monkeypatch.setenv("HOLDFAST_IDLE_S", "60")
    monkeypatch.setenv("HOLDFAST_CLOSE_TIMEOUT_S", "30")
    monkeypatch.setenv("HOLDFAST_LOAD_TIMEOUT_S", "30")
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "15")
    monkeypatch.setenv("HOLDFAST_STOP_WAIT_S", "30")
    monkeypatch.setenv("HOLDFAST_SLOT_WAIT_S", "5")
    monkeypatch.setenv("HOLDFAST_AGENT_NICE", "0")  # else it gets nearly nothing beside other work
    monkeypatch.delenv("HOLDFAST_RUN", raising=False)
    if not request.node.get_closest_marker("started_agents"):
        monkeypatch.setenv(spawning.VARIABLE, zygote.socket)
    spawning.install_here(monkeypatch.setattr)
    monkeypatch.setattr(processes, "meeting_dir", tmp_path)
    made = Place(tmp_path / "run", arena_dir)
    yield made
    processes.end_ranks()
    processes.end_agents(arena_dir)
    shutil.rmtree(arena_dir, ignore_errors=True)


@pytest.fixture
def inject(
    place: Place, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Callable[[], list[str]]]:
    """Gives agents that start from now on these faults, or none any more. Returns what tells the faults that fired."""
    plan, fired = tmp_path / "plan.json", tmp_path / "fired"

    def call(*faults: Fault) -> Callable[[], list[str]]:
        if faults:
            Plan(str(fired), faults).write(plan)
            monkeypatch.setenv(VARIABLE, str(plan))
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / p) for p in ("tests/fault/site", "src", ".")))
            # Faults have to be in place before anything is imported, so these agents are started.
            monkeypatch.delenv(spawning.VARIABLE, raising=False)
        else:
            monkeypatch.delenv(VARIABLE, raising=False)
            monkeypatch.setenv(spawning.VARIABLE, zygote.socket)
        return lambda: fired.read_text().splitlines() if fired.exists() else []

    return call


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

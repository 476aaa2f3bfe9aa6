"""A tier that hangs: the agent that waits for it still ends, and makes room for the next one."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.fault.inject.faults import AGENT, VARIABLE, Fault, Plan  # noqa: E402
from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Agents from now on hang in their first flush. Returns the file that says that one does."""
    plan = tmp_path / "plan.json"
    fault = Fault(AGENT, "holdfast.store.flush:flush_while_sealed", do="pause", arg=str(tmp_path / "never"))
    Plan(str(tmp_path / "fired"), faults=(fault,)).write(plan)
    monkeypatch.setenv(VARIABLE, str(plan))
    paths = [str(ROOT / "tests/fault/site"), str(ROOT / "src"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path / "fired"


def test_a_hanging_tier_does_not_keep_the_next_agent_out(place, hanging, monkeypatch):
    monkeypatch.setenv("HOLDFAST_GRACE_S", "1")
    state = {"x": torch.ones(1000)}
    with suppress(ZeroDivisionError), holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        due(ckpt.save(1, state)).wait("memory", timeout_s=30)
        until(hanging.exists, "the flush hangs")
        raise ZeroDivisionError
    monkeypatch.delenv(VARIABLE)
    [agent] = processes.agents(place.arena_dir)
    agent.terminate()
    until(lambda: not (place.arena / "agent.sock").exists(), "the grace is over")
    began = time.monotonic()
    loaded = {"x": torch.zeros(1000)}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(loaded) == 1
        assert time.monotonic() - began < 9
        assert (loaded["x"] == 1).all()
        log = (place.arena / "agent.log").read_text()
    assert "what still runs" in log
    assert "faults.py" in log, "where it hangs"
    assert place.committed() == [(1, 1)]


def test_memory_is_freed_though_a_tier_hangs(place, hanging):
    ckpt = holdfast.Checkpointer(place.url)
    state = {"x": torch.ones(1000)}
    ckpt.load(state)
    due(ckpt.save(1, state)).wait("memory", timeout_s=30)
    until(hanging.exists, "the flush hangs")
    ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "the agent ends", within_s=9)
    assert not place.arena.exists()

"""A tier that hangs: the agent that waits for it still ends, and makes room for the next one."""

import time
from contextlib import suppress

import pytest

torch = pytest.importorskip("torch")

from tests.fault.inject.faults import AGENT, Fault  # noqa: E402
from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def hanging(tmp_path, inject):
    """Agents from now on hang in their first flush. Returns what tells whether one does."""
    return inject(Fault(AGENT, "holdfast.store.flush:flush_while_sealed", do="pause", arg=str(tmp_path / "never")))


def test_a_hanging_tier_does_not_keep_the_next_agent_out(place, hanging, inject, monkeypatch):
    monkeypatch.setenv("HOLDFAST_GRACE_S", "1")
    state = {"x": torch.ones(1000)}
    with suppress(ZeroDivisionError), holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        due(ckpt.save(1, state)).wait("memory", timeout_s=30)
        until(hanging, "the flush hangs")
        raise ZeroDivisionError
    inject()
    agent = processes.the_agent(place.arena_dir)
    agent.terminate()
    until(lambda: not (place.arena / "agent.sock").exists(), "the grace is over")
    began = time.monotonic()
    loaded = {"x": torch.zeros(1000)}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(loaded) == 1
        assert time.monotonic() - began < 25
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
    until(hanging, "the flush hangs")
    ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "the agent ends")
    assert not place.arena.exists()

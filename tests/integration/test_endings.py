"""How a job's time with its agent ends: close, discard, promotion, leaving without a word, the next job."""

import os
import signal
import time

import pytest

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import HoldfastError, RunBusyError  # noqa: E402

pytestmark = pytest.mark.torch


def filled(value):
    return {"x": torch.full((1000,), float(value)), "step": value}


def tiers(place, **cadence):
    return holdfast.Config(
        tiers=(holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(place.url, **cadence))
    )


def test_checkpointers_one_after_another_in_one_process(place):
    for life in range(4):
        state = filled(-1)
        with holdfast.Checkpointer(place.url) as ckpt:
            assert ckpt.load(state) == (None if life == 0 else life - 1)
            assert state["step"] == life - 1
            ckpt.save(life, filled(life))
    assert place.committed() == [(life + 1, life) for life in range(4)]


def test_a_job_that_only_loads_closes_well_and_leaves_nothing(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0))
        ckpt.save(1, filled(1))
    until(lambda: not processes.agents(place.arena_dir), "the first agent ends")
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(filled(0)) == 1
    until(lambda: not processes.agents(place.arena_dir), "the second agent ends")
    assert not list(place.arena_dir.rglob("slot-*"))
    assert len(list((place.home / "attempts").iterdir())) == 1, "loading claims nothing"


def test_close_with_discard_waits_for_nothing_and_keeps_nothing_new(place):
    config = tiers(place, every_steps=10)
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(filled(0))
    due(ckpt.save(10, filled(10))).wait("durable", timeout_s=30)
    due(ckpt.save(11, filled(11))).wait("memory", timeout_s=30)
    ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "the agent ends")
    assert not list(place.arena_dir.rglob("slot-*"))
    assert place.committed() == [(1, 10)]
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(filled(0)) == 10


def test_leaving_by_an_exception_keeps_the_memory_for_the_next(place):
    config = tiers(place, every_steps=1000)

    def fails():
        with holdfast.Checkpointer(config) as ckpt:
            ckpt.load(filled(0))
            due(ckpt.save(7, filled(7))).wait("memory", timeout_s=30)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    state = filled(0)
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(state) == 7
        assert (state["x"] == 7).all()


@pytest.mark.started_agents  # by the trainer that dies
def test_an_agent_survives_its_trainer_and_serves_the_restart_from_memory(place, forker):
    job = processes.start(forker, 1, jobs.hold, place.url, step=3)
    job.hear(0)
    agent = processes.the_agent(place.arena_dir)
    job.signal(0, signal.SIGKILL)
    job.results()
    assert agent.is_running()
    # Nothing on disk can be read any more: what loads comes from memory.
    until(place.committed, "what was in memory is flushed")
    for path in place.images(1, 3):
        path.write_bytes(b"")
    state = {"x": torch.zeros(1000), "step": 0}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == 3
        assert place.status()["pid"] == agent.pid
    assert (state["x"] == 3).all()


def test_an_idle_agent_promotes_and_goes(place, forker):
    env = {"HOLDFAST_IDLE_S": "0.5"}
    job = processes.start(forker, 1, jobs.until_told, place.url, step_s=0, every_steps=1, steps=6, ask=False, env=env)
    job.hear(0)
    job.signal(0, signal.SIGKILL)
    job.results()
    until(lambda: not processes.agents(place.arena_dir), "the agent goes")
    [newest] = [place.committed()[-1]]
    assert newest[1] >= 3
    assert not list(place.arena_dir.rglob("slot-*"))


def test_a_process_that_forgets_to_close_loses_nothing(place, forker):
    job = processes.start(forker, 1, jobs.forgets, place.url, step=4, env={"HOLDFAST_IDLE_S": "0.5"})
    assert job.results()[0].error is None
    until(lambda: place.committed() == [(1, 4)], "the agent flushes")
    until(lambda: not processes.agents(place.arena_dir), "the agent goes by itself")
    x = torch.zeros(10)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load({"x": x}) == 4
    assert (x == 4).all()


def test_after_a_failed_close_the_agent_goes_on_trying_and_then_goes(place, monkeypatch):
    monkeypatch.setenv("HOLDFAST_IDLE_S", "1")
    ckpt = holdfast.Checkpointer(tiers(place, every_steps=1000))
    ckpt.load(filled(0))
    due(ckpt.save(5, filled(5))).wait("memory", timeout_s=30)
    images = place.home / "images"
    images.write_text("a file where a directory is needed")
    with pytest.raises(HoldfastError) as caught:
        ckpt.close()
    assert caught.value.tier == "posix"
    time.sleep(1.5)
    assert processes.agents(place.arena_dir), "it keeps the only copy"
    images.unlink()
    until(lambda: place.committed() == [(1, 5)], "the agent makes the step durable after all")
    until(lambda: not processes.agents(place.arena_dir), "nothing keeps the agent any longer")
    assert not list(place.arena_dir.rglob("slot-*"))


def test_a_new_job_takes_over_after_a_failed_close(place):
    config = tiers(place, every_steps=1000)
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(filled(0))
    due(ckpt.save(5, filled(5))).wait("memory", timeout_s=30)
    images = place.home / "images"
    images.write_text("a file where a directory is needed")
    with pytest.raises(HoldfastError):
        ckpt.close()
    images.unlink()
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(filled(0)) == 5
        assert ckpt.last_load is not None
        assert ckpt.last_load.bytes_by_tier.keys() == {"memory"}
    assert place.committed() == [(1, 5)]


@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_close_ends_promptly_when_another_rank_left_by_an_exception(place, forker, after_s):
    config = tiers(place, every_steps=1000)
    run = {"leaver": 1, "after_s": after_s}
    closed, left = processes.start(forker, 2, jobs.left_by_one, config, step=7, **run).values()
    assert left["kind"] == "left"
    assert closed["took_s"] < after_s + 20, "it waited for a rank that will never come"
    assert closed["kind"] == "rank-gone"
    assert "rank 1" in closed["message"]
    assert "step 7" in closed["message"]
    assert closed["hint"]
    assert place.committed() == [(1, 7)], "promoted, though it was due in memory only"
    assert list(place.arena.glob("slot-*")), "the memory stays for the restart"
    again = processes.start(forker, 2, jobs.left_by_one, config, step=8, leaver=-1, after_s=0).values()
    assert [(r["kind"], r["found"], set(r["from"])) for r in again] == [("", 7, {"memory"})] * 2
    until(lambda: not processes.agents(place.arena_dir), "all ranks closed, so the agent goes")
    assert not list(place.arena_dir.rglob("slot-*"))


def test_close_ends_promptly_when_another_rank_is_killed(place, forker):
    job = processes.start(forker, 2, jobs.closes_or_waits, place.url, step=3)
    for rank in (0, 1):
        job.hear(rank)
    job.signal(1, signal.SIGKILL)
    kind, message = job.results()[0].value
    assert kind == "rank-gone"
    assert "rank 1" in message
    assert place.committed() == [(1, 3)]


def test_another_arena_of_the_run_is_refused_while_trainers_are_attached_there_and_only_then(place, monkeypatch):
    first = holdfast.Checkpointer(place.url)
    first.load(filled(0))
    due(first.save(1, filled(1))).wait("durable", timeout_s=30)
    other_arena = place.arena_dir / "other"
    other_arena.mkdir()
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(other_arena))
    with holdfast.Checkpointer(place.url) as second:
        assert second.load(filled(0)) == 1
        with pytest.raises(RunBusyError) as caught:
            second.save(2, filled(2))
        assert str(os.getpid()) in caught.value.message
        with pytest.raises(ZeroDivisionError), first:
            raise ZeroDivisionError
        until(lambda: len(processes.agents(place.arena_dir)) == 2, "the first agent stays, idle")
        due(second.save(2, filled(2))).wait("durable", timeout_s=30)
    assert place.committed() == [(1, 1), (2, 2)]


def test_a_step_saved_right_before_close_is_there(place):
    for step in range(1, 6):
        with holdfast.Checkpointer(place.url) as ckpt:
            ckpt.load(filled(0))
            ckpt.save(step, filled(step))
        assert place.committed()[-1][1] == step

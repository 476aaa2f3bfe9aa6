"""Stop together: a signal to any rank ends all ranks after the same step, and that step is saved."""

import itertools
import os
import signal
import time

import pytest

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.place import until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("world_size", "rank", "step_s", "number"),
    [
        (2, 1, 0.001, signal.SIGTERM),
        (3, 0, 0.001, signal.SIGUSR1),
        (2, 0, 0.2, signal.SIGUSR1),
        (3, 2, 0.2, signal.SIGTERM),
    ],
)
def test_a_signal_to_any_rank_stops_all_after_the_same_saved_step(place, forker, world_size, rank, step_s, number):
    job = processes.start(forker, world_size, jobs.until_told, place.url, step_s=step_s)
    for each in range(world_size):
        job.hear(each)
    job.signal(rank, number)
    last = job.values()
    assert len(set(last)) == 1
    assert place.committed() == [(1, last[0])], "a step that was not due, saved everywhere"
    assert last[0] % 1000 != 0
    state = {"x": torch.zeros(1000), "step": 0}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == last[0]
    assert state["step"] == last[0]
    assert (state["x"] == last[0]).all()


def test_signals_to_every_rank_at_once_stop_once(place, forker):
    job = processes.start(forker, 2, jobs.until_told, place.url, step_s=0.02)
    for rank in range(2):
        job.hear(rank)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for rank in range(2):
            job.signal(rank, number)
    assert len(set(job.values())) == 1


def test_a_job_that_never_asks_dies_of_sigterm(place, forker):
    job = processes.start(forker, 1, jobs.until_told, place.url, step_s=0.01, every_steps=1, ask=False)
    job.hear(0)
    job.signal(0, signal.SIGTERM)
    assert job.results()[0].exit_code == -signal.SIGTERM
    until(place.committed, "the agent promotes what is in memory")


def test_handlers_that_were_there_are_called_and_come_back(place, forker):
    job = processes.start(forker, 1, jobs.chained, place.url)
    job.hear(0)
    job.signal(0, signal.SIGTERM)
    told = job.values()[0]
    assert told["heard"] == [signal.SIGTERM]
    assert told["back"]
    assert place.committed() == [(1, told["last"])]


def test_a_forked_child_dies_of_its_signal_and_disturbs_nobody(place, forker):
    job = processes.start(forker, 1, jobs.with_a_forked_child, place.url)
    child, kinds = job.hear(0)
    os.kill(child, signal.SIGTERM)
    told = job.values()[0]
    assert told == {"child": -signal.SIGTERM, "last": 19}, "only the child was meant"
    assert kinds == ["usage"] * len(kinds)
    assert len(kinds) == 4, "what was settled is known without asking"
    assert place.committed()[-1] == (1, 19)


def test_in_one_process_the_next_step_is_the_last(place):
    before = signal.getsignal(signal.SIGUSR1)
    with holdfast.Checkpointer(place.url, every_steps=500) as ckpt:
        ckpt.load({"x": torch.zeros(3)})
        assert not ckpt.should_stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 60
        for step in itertools.count(1):
            assert time.monotonic() < deadline
            saved = ckpt.save(step, {"x": torch.full((3,), float(step))})
            if ckpt.should_stop():
                break
            time.sleep(0.005)
        assert saved is not None
        assert saved.due == {"memory", "posix"}
    assert signal.getsignal(signal.SIGUSR1) is before
    assert place.committed()[-1] == (1, step)

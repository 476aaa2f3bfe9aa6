"""Cadence by time, and errors that end training: on all ranks at the same step, without a collective."""

import itertools
import shutil
import time

import pytest

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def state_of(value):
    return {"x": torch.full((100,), float(value)), "step": value}


def test_a_tier_gets_a_step_whenever_its_time_is_over(place):
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", every_steps=100_000, keep_last=2),
            holdfast.TierConfig(place.url, every_s="300 ms"),
        )
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(state_of(0))
        saved, at = [], []
        deadline = time.monotonic() + 60
        for step in itertools.count(1):
            assert time.monotonic() < deadline
            time.sleep(0.005)
            handle = ckpt.save(step, state_of(step))
            if handle is not None:
                assert handle.due == {"posix"}
                saved.append(handle)
                at.append(time.monotonic())
            if len(saved) == 8:
                break
        assert saved[0].step == 1, "the first step begins the time"
        # Each at its time; a step in between may be late once, on a busy machine by much.
        assert at[-1] - at[0] > 7 * 0.3 / 2
        for handle in saved:
            handle.wait("posix", timeout_s=30)
    assert [s for _, s in place.committed()][: len(saved)] == [h.step for h in saved]


def test_whichever_comes_first(place):
    tiers = (holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(place.url, every_steps=10, every_s=3600))
    with holdfast.Checkpointer(holdfast.Config(tiers=tiers)) as ckpt:
        ckpt.load(state_of(0))
        times = [due(ckpt.save(step, state_of(step))).due for step in range(1, 31)]
        assert [n for n, tiers in enumerate(times, 1) if "posix" in tiers] == [1, 10, 20, 30]


@pytest.mark.parametrize("killed", [False, True])
def test_ranks_save_the_same_steps_by_time_and_wait_for_nobody(place, forker, killed):
    job = processes.start(forker, 2, jobs.by_time, place.url, every_s=0.4, step_s=0.002, saves=9 if killed else 5)
    for rank in range(2):
        job.hear(rank)
    if killed:
        time.sleep(1)
        for agent in processes.agents(place.arena_dir):
            agent.kill()
    told = job.values(within_s=100)
    durable = [{s for s, kind in r["outcomes"].items() if kind == "durable"} for r in told]
    assert all(d == durable[0] for d in durable)
    assert len(durable[0]) >= 3, told
    lost = {"step-lost", "step-dropped"} if killed else set()
    assert {kind for r in told for kind in r["outcomes"].values()} <= {"durable", "skipped"} | lost
    if not killed:
        assert all(r["warnings"] == [] for r in told), "what a rank read too late is nobody's trouble"
    kept = {s for _, s in place.committed()}
    assert durable[0] <= kept
    assert len(kept - durable[0]) <= 1, "and the newest, promoted at the end"


@pytest.mark.parametrize("on_save_error", ["raise", 3])
def test_a_save_that_fails_is_raised_on_all_ranks_at_the_same_step(place, forker, mounts, on_save_error):
    full = mounts.tmpfs("1m")
    job = processes.start(forker, 2, jobs.failing, place.url, str(full / "run"), on_save_error=on_save_error)
    first, second = job.values(within_s=100)
    assert first == second
    assert len(first["raised"]) == 2, "who catches it and goes on hears of the next"
    for _, kind, tier, hint in first["raised"]:
        assert (kind, tier) == ("tier-full", "full")
        assert f"on_save_error is '{on_save_error}'" in hint
        assert "free space" in hint
    assert first["raised"][0][0] > (5 if on_save_error == "raise" else 15)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # it may be warned of first
def test_in_one_process_a_failed_save_is_raised_at_the_next_step(place, mounts):
    full = mounts.tmpfs("1m")
    config = holdfast.Config(
        tiers=(holdfast.TierConfig(place.url), holdfast.TierConfig(str(full / "run"), name="full")),
        on_save_error="raise",
    )
    state = {"x": torch.zeros(1_000_000)}
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(state)

    def train():
        for step in range(1, 1000):
            ckpt.save(step, state)
            time.sleep(0.05)

    with pytest.raises(holdfast.HoldfastError) as caught:
        train()
    assert caught.value.kind == "tier-full"
    ckpt.close()
    until(place.committed, "the other tier has its copy")


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # it may be warned of first
def test_a_tier_that_lost_its_directory_to_a_file_is_a_failure(place, tmp_path):
    gone = tmp_path / "gone" / "run"
    gone.parent.mkdir()
    config = holdfast.Config(
        tiers=(holdfast.TierConfig(place.url), holdfast.TierConfig(str(gone), name="gone")), on_save_error="raise"
    )
    state = {"x": torch.zeros(1000)}
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(state)
    saved = ckpt.save(1, state)
    assert saved is not None
    saved.wait("gone", timeout_s=60)
    shutil.rmtree(gone)
    gone.write_text("in the way")

    def train():
        for step in range(2, 1000):
            ckpt.save(step, state)
            time.sleep(0.05)

    try:
        with pytest.raises(holdfast.HoldfastError) as caught:
            train()
    finally:
        ckpt.close(discard=True)
    assert caught.value.tier == "gone"
    # Whether it is met looking for the image, or writing it.
    assert "a file stands where a directory" in str(caught.value) or "restart the job" in str(caught.value.hint)

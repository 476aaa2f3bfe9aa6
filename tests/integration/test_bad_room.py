"""Too little room, or none that may be written: told before training where that can be known, and nothing is lost."""

import pytest

from holdfast.errors import (
    CapacityError,
    HoldfastError,
    TierError,
    TierFullError,
)

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402
from tests.integration.refusals import filled, load, refused, save_steps  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_read_only_home(place, mounts):
    folder = mounts.tmpfs("8m")
    url = f"file://{folder}/run"
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(filled(0))
        due(ckpt.save(1, filled(1))).wait("durable", timeout_s=30)
    until(lambda: not processes.agents(place.arena_dir), "the agent lets go of the mount")
    mounts.read_only(folder)
    with refused(TierError, folder, within_s=20) as caught:
        holdfast.Checkpointer(url)
    assert caught.value.kind == "tier-permission"


def test_a_disk_that_fills_up_in_mid_flush(place, mounts):
    folder = mounts.tmpfs("3m")
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", keep_last=2),
            holdfast.TierConfig(f"file://{folder}/small", name="small"),
            holdfast.TierConfig(place.url, name="large"),
        )
    )
    n = 300_000  # 1.2 MB a step
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(filled(0, n))
    first = due(ckpt.save(1, filled(1, n)))
    first.wait("small", timeout_s=30)
    second = due(ckpt.save(2, filled(2, n)))
    second.wait("small", timeout_s=30)
    third = due(ckpt.save(3, filled(3, n)))
    with refused(TierFullError, "small", within_s=40):
        third.wait("small", timeout_s=35)
    third.wait("large", timeout_s=30)  # the other tier gets its copy all the same
    assert third.error is not None
    assert third.error.kind == "tier-full"
    assert third.error.tier == "small"
    until(third.done, "nothing is under way any more")
    with pytest.warns(RuntimeWarning, match="small"):
        ckpt.save(4, filled(4, n))
    ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "the agent ends")
    assert load(place.url, n) in (3, 4)
    assert load(f"file://{folder}/small", n) == 2


def test_a_state_larger_than_the_budget_is_refused_before_training_with_the_sum(place, monkeypatch):
    save_steps(place, 1)
    monkeypatch.setenv("HOLDFAST_ARENA_BUDGET_BYTES", "1 MiB")
    with holdfast.Checkpointer(place.url) as ckpt:
        with refused(CapacityError, "4 slots x 3.83 MiB", "budget 1 MiB", within_s=20) as caught:
            ckpt.prepare(filled(0, n=1_000_000))
        assert "HOLDFAST_ARENA_BUDGET_BYTES" in caught.value.hint
    monkeypatch.delenv("HOLDFAST_ARENA_BUDGET_BYTES")
    assert load(place.url) == 1


def test_an_arena_directory_that_is_too_small_is_refused(place, mounts, monkeypatch):
    small = mounts.tmpfs("2m")
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(small))
    try:
        with holdfast.Checkpointer(place.url) as ckpt, refused(CapacityError, small, within_s=20) as caught:
            ckpt.prepare(filled(0, n=1_000_000))
        assert "HOLDFAST_ARENA_DIR" in caught.value.hint
    finally:
        processes.end_agents(small)


def test_an_arena_directory_that_cannot_be_used(place, monkeypatch):
    file = place.home.parent / "file"
    file.write_text("")
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(file))
    with refused(HoldfastError, file, within_s=20) as caught:
        holdfast.Checkpointer(place.url)
    assert "HOLDFAST_ARENA_DIR" in caught.value.hint

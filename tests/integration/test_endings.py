"""How a job's time with its agent ends: close, discard, promotion, leaving without a word, the next job."""

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import until  # noqa: E402

import holdfast  # noqa: E402

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

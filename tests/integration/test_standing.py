"""What a job stands on between its load and its first save, also while the claims of the run cannot be read."""

import os

import pytest

pytest.importorskip("torch")

import torch
from tests.integration.place import due

import holdfast
from holdfast.errors import SupersededError, TierError
from holdfast.format import attempt as codec
from holdfast.format import names
from holdfast.model.identity import Attempt, CheckpointId

pytestmark = pytest.mark.torch


def state_of(step):
    return {"x": torch.full((1000,), float(step)), "step": step}


def config(place):
    """Steps stay in memory: the home gets one in a thousand."""
    memory = holdfast.TierConfig("memory:", every_steps=1, keep_last=3)
    return holdfast.Config(tiers=(memory, holdfast.TierConfig(place.url, every_steps=1000)))


def save(ckpt, *steps):
    for step in steps:
        due(ckpt.save(step, state_of(step))).wait("memory", timeout_s=30)


def pinned(place):
    return {s["image"] for s in place.status()["slots"] if s["pins"]}


def test_a_step_of_memory_alone_stays_pinned_until_the_first_save_has_claimed(place):
    with holdfast.Checkpointer(config(place)) as ckpt:
        live = state_of(0)
        ckpt.load(live)
        save(ckpt, 1, 2, 3)
        assert ckpt.load(live, step=2) == 2
        assert pinned(place) == {"image 0 of rank 0, step 2 (attempt 1)"}
        save(ckpt, 3)
        assert not pinned(place)
        assert ckpt.load(live) == 3
        assert ckpt.load(live, step=2) == 2, "it is on the lineage"
        assert live["step"] == 2


@pytest.fixture
def claims(place):
    """Takes the claims of the run away, or gives them back."""
    there, hidden = place.home / "attempts", place.home / "hidden"

    class Claims:
        def hide(self):
            there.rename(hidden)
            there.symlink_to("attempts")  # a loop: listing it is an error, whoever asks

        def show(self, *, another=False):
            there.unlink()
            hidden.rename(there)
            if another:
                taken = Attempt("run", 2, CheckpointId(1, 1), "elsewhere")
                (place.home / names.attempt_key(2)).write_bytes(codec.encode(taken))

    return Claims()


def test_memory_is_loaded_while_the_claims_cannot_be_read(place, claims, caplog):
    with holdfast.Checkpointer(config(place)) as ckpt:
        live = state_of(0)
        ckpt.load(live)
        save(ckpt, 1, 2)
        claims.hide()
        assert [s.step for s in ckpt.steps()] == [1, 2]
        assert ckpt.load(live) == 2
        assert "attempt 1 counts as before" in caplog.text
        with pytest.raises(TierError):
            ckpt.save(3, state_of(3))
        claims.show()
        save(ckpt, 3)
        assert os.listdir(place.home / "attempts") == ["00000001", "00000002"]


def test_a_load_without_the_claims_is_not_built_upon_when_another_job_claimed_meanwhile(place, claims):
    with holdfast.Checkpointer(config(place)) as ckpt:
        live = state_of(0)
        ckpt.load(live)
        save(ckpt, 1, 2)
        claims.hide()
        assert ckpt.load(live) == 2
        claims.show(another=True)
        with pytest.raises(SupersededError, match="attempt 2 was claimed while"):
            ckpt.save(3, state_of(3))
        assert ckpt.load(live) == 1, "what the other attempt stands on"
        save(ckpt, 3)

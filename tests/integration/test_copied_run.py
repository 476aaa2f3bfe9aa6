"""A run directory copied elsewhere is a run of its own: what the copy does is nothing to the original, dead or not."""

import os
import shutil

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import Place, due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import RunBusyError  # noqa: E402

pytestmark = pytest.mark.torch


def filled(value):
    return {"x": torch.full((20_000,), float(value)), "step": value}


def save(ckpt, step):
    due(ckpt.save(step, filled(step))).wait("durable", timeout_s=30)


def copied(place):
    copy = Place(place.home.parent / "copy of run", place.arena_dir)
    shutil.copytree(place.home, copy.home)
    return copy


def test_beside_the_living_original(place, run):
    state = filled(-1)
    with holdfast.Checkpointer(place.url) as original:
        original.load(state)
        for step in (1, 2, 3):
            save(original, step)
        copy = copied(place)
        # Its claim names the original's agent, which lives and is no concern of it.
        code, listed = run("ls", copy.url)
        assert (code, listed["agent"], [s["step"] for s in listed["steps"]]) == (0, False, [1, 2, 3])
        assert run("verify", copy.url, "--all")[0] == 0
        code, pruned = run("prune", copy.url, "--step", 1, "--yes")
        assert (code, pruned["through"]) == (0, "store")
        assert [s for _, s in copy.committed()] == [2, 3]
        assert [s for _, s in place.committed()] == [1, 2, 3]
        with holdfast.Checkpointer(copy.url) as other:
            assert other.load(state) == 3
            assert copy.arena != place.arena
            save(other, 4)
            save(original, 4)
            save(original, 5)
        assert copy.committed() == [(1, 2), (1, 3), (2, 4)], "attempts go on from the highest"
        assert place.committed() == [(1, step) for step in (1, 2, 3, 4, 5)]
    for home, newest in ((place, 5), (copy, 4)):
        with holdfast.Checkpointer(home.url) as ckpt:
            assert ckpt.load(state) == newest
        assert (state["x"] == newest).all()


def test_after_the_original(place):
    """With what a dead agent left in it, too: unfinished files and images without a manifest."""
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(-1))
        save(ckpt, 1)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    (place.home / ".tmp").mkdir(exist_ok=True)
    (place.home / ".tmp" / "0123456789ab.0-dead").write_bytes(b"x")
    copy = copied(place)
    shutil.rmtree(place.home)
    state = filled(-1)
    with holdfast.Checkpointer(copy.url) as ckpt:
        assert ckpt.load(state) == 1
        save(ckpt, 2)
    assert copy.committed() == [(1, 1), (2, 2)]
    assert not place.home.exists()


def test_another_path_to_the_same_directory_is_no_copy(place, monkeypatch):
    """Two arenas, one home: the second job is refused as ever."""
    alias = Place(place.home.parent / "alias", place.arena_dir)
    place.home.mkdir()
    os.symlink(place.home, alias.home)
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(-1))
        save(ckpt, 1)
        monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "0.3")
        assert alias.arena != place.arena
        other = holdfast.Checkpointer(alias.url)
        state = filled(-1)
        assert other.load(state) == 1
        with pytest.raises(RunBusyError):
            other.save(2, filled(2))
        other.close(discard=True)
        save(ckpt, 2)
    assert place.committed() == [(1, 1), (1, 2)]

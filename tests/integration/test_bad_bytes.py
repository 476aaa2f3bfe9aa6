"""Damaged, missing and newer files: the step before is taken, or an error says what is there."""

import os
import random

import pytest

from holdfast.errors import (
    LoadError,
)

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import until  # noqa: E402
from tests.integration.refusals import filled, load, load_and_leave, refused, save_steps  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def truncate(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def newer(path, rng):
    data = path.read_bytes()
    # Of an image and of a manifest alike: the version is the string after this key.
    for key in (b'"holdfast.format":"0"', b'"format":0', b'"version":0'):
        if key in data:
            path.write_bytes(data.replace(key, key.replace(b"0", b"9")))
            return
    flip(path, rng)


def noise(path, rng):
    path.write_bytes(rng.randbytes(path.stat().st_size))


def emptied(path, rng):
    path.write_bytes(b"")


@pytest.mark.parametrize("what", ["manifest", "image"])
def test_damage_of_any_kind_takes_the_step_before_and_says_so(place, what, caplog):
    save_steps(place, 1, 2)
    victim = place.manifest(1, 2) if what == "manifest" else place.images(1, 2)[0]
    whole = victim.read_bytes()
    rng = random.Random(what)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    for damage in (truncate, flip, flip, flip, newer, noise, emptied):
        damage(victim, rng)
        if victim.read_bytes() == whole:
            continue
        caplog.clear()
        found = load_and_leave(place.url)
        assert found == 1, f"{damage.__name__}: {found}"
        assert "step 2" in caplog.text
        victim.write_bytes(whole)
    processes.end_agents(place.arena_dir)  # what it has seen damaged is mended behind its back
    assert load(place.url) == 2


def test_asking_for_a_damaged_step_is_an_error(place):
    save_steps(place, 1, 2)
    noise(place.images(1, 2)[0], random.Random(2))
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    with holdfast.Checkpointer(place.url) as ckpt:
        with refused(LoadError, "step 2", within_s=20):
            ckpt.load(filled(0), step=2)
        assert ckpt.load(filled(0)) == 1


def test_nothing_there_is_none(place):
    assert load(place.url) is None


def test_something_there_and_nothing_loadable_is_an_error(place):
    save_steps(place, 1)
    place.manifest(1, 1).write_bytes(b"\0" * 100)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    state = filled(7)
    with holdfast.Checkpointer(place.url) as ckpt, refused(LoadError, "step 1", within_s=20) as caught:
        ckpt.load(state)
    assert "prune" in caught.value.hint
    assert state["step"] == 7


def test_a_step_that_never_was(place):
    save_steps(place, 1)
    with holdfast.Checkpointer(place.url) as ckpt, refused(LoadError, "step 5", within_s=20):
        ckpt.load(filled(0), step=5)
    assert load(place.url) == 1

"""Loads past the arena: what is on a tier alone goes straight into the tensors, each byte read once and proven."""

import threading

import pytest

torch = pytest.importorskip("torch")

from tests.integration import direct_jobs, processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import DeadlineError, StructureError  # noqa: E402
from holdfast.store.ranged import RangedImage  # noqa: E402
from holdfast.tiers import open_tier  # noqa: E402
from holdfast.trainer import direct  # noqa: E402

pytestmark = pytest.mark.torch
MIB = 1 << 20


def filled(value):
    return {"x": torch.full((3, MIB), float(value)), "t": torch.full((100, 70), float(value)).t(), "step": value}


def saved(place, *steps):
    """A run that has these steps on disk and nothing in memory."""
    with holdfast.Checkpointer(place.url, keep_last=9) as ckpt:
        ckpt.load(filled(0))
        for step in steps:
            due(ckpt.save(step, filled(step))).wait("durable", timeout_s=60)
        ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")


def by_tier(ckpt):
    """From where the last load had its bytes."""
    assert ckpt.last_load is not None
    return ckpt.last_load.bytes_by_tier


def is_filled(state, value):
    return bool((state["x"] == value).all() and (state["t"] == value).all() and state["step"] == value)


def test_nothing_passes_through_memory(place):
    saved(place, 1)
    state = filled(0)
    with holdfast.Checkpointer(place.url, keep_last=9) as ckpt:
        assert ckpt.load(state) == 1
        assert is_filled(state, 1)
        assert by_tier(ckpt).keys() == {"posix"}
        [image] = place.images(1, 1)
        assert by_tier(ckpt)["posix"] <= image.stat().st_size
        assert ckpt.load(state) == 1
        assert by_tier(ckpt).keys() == {"posix"}, "a fetch would have left it in memory"
        due(ckpt.save(2, state)).wait("durable", timeout_s=60)
        assert ckpt.load(state) == 2
        assert by_tier(ckpt).keys() == {"memory"}


def test_a_flipped_bit_is_not_loaded_but_the_good_copy_of_another_tier(place):
    other = place.home.parent / "other"
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", keep_last=2),
            holdfast.TierConfig(place.url),
            holdfast.TierConfig(str(other), name="other"),
        )
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        save = due(ckpt.save(1, filled(1)))
        for tier in ("posix", "other"):
            save.wait(tier, timeout_s=60)
        ckpt.close(discard=True)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    with place.images(1, 1)[0].open("r+b") as file:
        file.seek(9 * MIB)
        byte = file.read(1)
        file.seek(9 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    state = filled(0)
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(state) == 1
        assert is_filled(state, 1)
        assert by_tier(ckpt).keys() == {"other"}


def test_a_state_that_differs_is_refused_and_untouched_or_taken_as_far_as_it_fits(place):
    saved(place, 1)
    state = {**filled(0), "new": torch.zeros(3)}
    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.raises(StructureError, match="new"):
            ckpt.load(state)
        assert is_filled(state, 0)
        with pytest.warns(RuntimeWarning, match="new"):
            assert ckpt.load(state, strict=False) == 1
        assert is_filled(state, 1)
        assert ckpt.last_load is not None
        assert [(d.kind, d.path) for d in ckpt.last_load.differences] == [("missing", "new")]


def test_a_tier_that_hangs_ends_the_load_in_time(place, monkeypatch):
    saved(place, 1)
    answers = threading.Event()
    monkeypatch.setattr(direct, "open_tier", lambda *args, **options: answers.wait(60) and open_tier(*args, **options))
    monkeypatch.setenv("HOLDFAST_LOAD_TIMEOUT_S", "3")
    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.raises(DeadlineError, match="posix"):
            ckpt.load(filled(0))
        answers.set()
        state = filled(0)
        assert ckpt.load(state) == 1
        assert is_filled(state, 1)


def test_a_read_that_answers_after_the_load_was_given_up_fills_nothing(place, monkeypatch):
    saved(place, 1)
    asked, answers = threading.Event(), threading.Event()
    real, done = RangedImage.read, []

    def read(image, first, buffer, **options):
        asked.set()
        answers.wait(60)
        try:
            return real(image, first, buffer, **options)
        finally:
            done.append(first)

    monkeypatch.setattr(RangedImage, "read", read)
    monkeypatch.setenv("HOLDFAST_LOAD_TIMEOUT_S", "3")
    state = filled(0)
    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.raises(DeadlineError, match="posix"):
            ckpt.load(state)
        assert asked.is_set()
        answers.set()
        until(lambda: done and not [t for t in threading.enumerate() if t.name == "holdfast-load"], "it to end")
        assert is_filled(state, 0)


def test_ranks_that_need_the_same_bytes_have_them_read_once(place, forker):
    found = processes.start(forker, 2, direct_jobs.replicated, place.url).values(80)
    size_bytes = sum(p.stat().st_size for p in place.images(1, 1))
    assert found == [(True, {"posix": size_bytes})] * 2, "read by the agent, into memory"


def test_ranks_that_need_other_bytes_read_their_own(place, forker):
    found = processes.start(forker, 2, direct_jobs.sharded, place.url).values(80)
    size_bytes = sum(p.stat().st_size for p in place.images(1, 1))
    for good, by_tier in found:
        assert good
        assert by_tier.keys() == {"posix"}
        # Each rank opens both images: their first blocks, and their tables.
        assert by_tier["posix"] < size_bytes + 2 * 4 * MIB + 65536
        assert by_tier["posix"] != size_bytes

"""Bad input: a clear error that names the thing and says what to do, in time, and nothing saved before is lost."""

import os
import random
import signal
import time
from contextlib import contextmanager, suppress

import pytest

from holdfast.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    HoldfastError,
    LoadError,
    NotDueError,
    RunBusyError,
    StepExistsError,
    TierError,
    TierFullError,
    UsageError,
)

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def filled(value, n=20_000):
    return {"x": torch.full((n,), float(value)), "step": value}


def save_steps(place, *steps, n=20_000):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0, n))
        for step in steps:
            due(ckpt.save(step, filled(step, n))).wait("durable", timeout_s=30)


class Leave(Exception):
    """Leaves a `with` without closing, so that the agent stays for the next load: starting one takes a second."""


def load_and_leave(url):
    state = filled(-1)
    with suppress(Leave), holdfast.Checkpointer(url) as ckpt:
        step = ckpt.load(state)
        raise Leave
    assert (state["x"] == step).all()
    return step


def load(url, n=20_000):
    """The step that loads, proven to be what was saved."""
    state = filled(-1, n)
    with holdfast.Checkpointer(url) as ckpt:
        step = ckpt.load(state)
    assert step is None or (state["step"] == step and (state["x"] == step).all())
    return step


@contextmanager
def refused(kind, *named, within_s=30.0):
    """An error of that kind, which names these things, has a hint, and comes in time."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        yield caught
    assert time.monotonic() - began < within_s
    for name in named:
        assert str(name) in str(caught.value)
    assert caught.value.hint, str(caught.value)


# Where ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["ftp://host/run", "fiel:///data/run", "https://x/y"])
def test_an_unknown_scheme(url):
    with refused(ConfigError, url.split(":", maxsplit=1)[0], within_s=5):
        holdfast.Checkpointer(url)


@pytest.mark.parametrize("url", ["file://data/run7", "file:/data/run7"])
def test_a_file_url_without_three_slashes(url):
    with refused(ConfigError, url, within_s=5) as caught:
        holdfast.Checkpointer(url)
    assert "file:///data/run7" in caught.value.hint


def test_no_url_at_all():
    with refused(ConfigError, "empty", within_s=5):
        holdfast.Checkpointer("")


def test_memory_alone():
    with refused(ConfigError, "memory", within_s=5):
        holdfast.Checkpointer("memory:")


def test_a_parent_directory_that_is_missing(place):
    with refused(ConfigError, place.home / "deeper", within_s=10):
        holdfast.Checkpointer(f"file://{place.home}/deeper/run")
    assert not place.home.exists()


def test_a_home_that_is_a_file(place):
    place.home.write_text("not a directory")
    with refused(HoldfastError, place.home, within_s=10):
        holdfast.Checkpointer(place.url)
    assert place.home.read_text() == "not a directory"


@pytest.mark.parametrize(
    ("name", "value"), [("SLOT_WAIT_S", "soon"), ("ARENA_BUDGET_BYTES", "much"), ("AGENT_NICE", "abc")]
)
def test_a_setting_that_means_nothing(place, monkeypatch, name, value):
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with refused(ConfigError, f"HOLDFAST_{name}", value, within_s=5):
        holdfast.Checkpointer(place.url)


def test_a_cadence_that_means_nothing(place):
    with refused(ConfigError, "every_steps"):
        holdfast.Checkpointer(place.url, every_steps=0)


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


# Bytes ---------------------------------------------------------------------------------------------------------------
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


# Calls ---------------------------------------------------------------------------------------------------------------
def test_a_step_saved_twice_or_backwards(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0))
        ckpt.save(5, filled(5))
        with refused(StepExistsError, "step 5", within_s=5):
            ckpt.save(5, filled(6))
        with refused(StepExistsError, "step 4", within_s=5):
            ckpt.save(4, filled(4))
    assert load(place.url) == 5


@pytest.mark.parametrize("step", [-1, 1.0, True, "7", None])
def test_a_step_that_is_no_step(place, step):
    with holdfast.Checkpointer(place.url) as ckpt, refused(UsageError, repr(step), within_s=5):
        ckpt.save(step, filled(1))


def test_calls_after_close(place):
    ckpt = holdfast.Checkpointer(place.url)
    ckpt.load(filled(0))
    saved = due(ckpt.save(1, filled(1)))
    ckpt.close()
    ckpt.close()
    for call in (lambda: ckpt.save(2, filled(2)), lambda: ckpt.load(filled(0)), ckpt.steps, ckpt.should_stop):
        with refused(ClosedError, within_s=5):
            call()
    assert saved.step == 1
    assert load(place.url) == 1


def test_waiting_for_what_is_not_due(place):
    config = holdfast.Config(
        tiers=(holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(place.url, every_steps=10))
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        saved = due(ckpt.save(1, filled(1)))
        for what in ("durable", "posix", "no-such-tier"):
            with refused(NotDueError, what, within_s=5):
                saved.wait(what)
        saved.wait("memory", timeout_s=20)


# Another job ---------------------------------------------------------------------------------------------------------
def test_a_second_job_is_refused_while_the_first_lives_and_welcome_after(place, forker, monkeypatch):
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "0.3")
    job = processes.start(forker, 1, jobs.hold, place.url, step=3)
    assert job.hear(0) is None
    with refused(RunBusyError, job.pid(0), within_s=20):
        holdfast.Checkpointer(place.url)
    job.signal(0, signal.SIGKILL)
    assert job.results()[0].exit_code == -signal.SIGKILL
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "15")
    state = {"x": torch.zeros(1000), "step": 0}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == 3
    assert (state["x"] == 3).all()


# Room ----------------------------------------------------------------------------------------------------------------
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

"""A disk that fails, fills, hangs or lies in short writes under a running job: training goes on, the other tier gets
its copy, the error says what to do, nothing durable is lost, and all is well again when the disk is.

The disk of one tier is sick, that of the other is not. Faults are real where the system can make them (mounts, limits
of the agent's process), else system calls of the agent fail by injection. Each proves that it happened.
"""

import os
import resource
import time
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.fault.inject.faults import AGENT, Fault  # noqa: E402
from tests.integration import processes  # noqa: E402
from tests.integration.place import Place, due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import DeadlineError, HoldfastError  # noqa: E402

# The next save warns of what failed; that it does is told elsewhere.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

N = 400_000


def filled(value):
    return {"x": torch.full((N,), float(value)), "step": value}


class Job:
    """Trains on a sick and on a sound tier. `inject` gives agents faults, or takes them away."""

    def __init__(self, sick, sound, inject, *, sick_home):
        self.sick, self.sound, self.inject = sick, sound, inject
        self.step = 0
        memory = holdfast.TierConfig("memory:", keep_last=2)
        files = [
            holdfast.TierConfig(sick.url, name="sick", keep_last=3),
            holdfast.TierConfig(sound.url, name="sound", keep_last=3),
        ]
        tiers = (memory, *(files if sick_home else reversed(files)))
        self.ckpt = holdfast.Checkpointer(holdfast.Config(tiers=tiers))

    def begin(self):
        assert self.ckpt.load(filled(0)) is None
        self.save_well()

    def save(self):
        self.step += 1
        began = time.monotonic()
        saved = due(self.ckpt.save(self.step, filled(self.step)))
        assert time.monotonic() - began < 25, "training waits for a disk"
        return saved

    def save_well(self):
        saved = self.save()
        for tier in ("sick", "sound"):
            saved.wait(tier, timeout_s=60)
        assert saved.error is None

    def save_badly(self, kind, *named):
        """The sick tier fails, the sound one has the step, and what was durable still is."""
        before = set(self.sick.manifests())
        saved = self.save()
        with pytest.raises(HoldfastError) as caught:
            saved.wait("sick", timeout_s=90)
        assert (caught.value.kind, caught.value.tier) == (kind, "sick"), caught.value
        assert caught.value.hint
        for text in named:
            assert text in str(caught.value) + caught.value.hint
        saved.wait("sound", timeout_s=60)
        assert saved.error.kind == kind
        assert set(self.sick.manifests()) == before

    def end(self):
        self.ckpt.close()
        until(lambda: not processes.agents(self.sick.arena_dir), "the agent ends")
        self.inject()
        for place in (self.sick, self.sound):
            state = filled(-1)
            with holdfast.Checkpointer(place.url) as ckpt:
                assert ckpt.load(state) == self.step
            assert (state["x"] == self.step).all()
            assert not list(place.home.glob(".tmp/*"))


@pytest.fixture
def train(place, sound, inject):
    """Begins a job; ends it also when the test fails."""
    jobs = []

    def begin(sick=place, *, sick_home=True):
        jobs.append(Job(sick, sound, inject, sick_home=sick_home))
        jobs[0].begin()
        return jobs[0]

    yield begin
    for job in jobs:
        with suppress(HoldfastError):
            job.ckpt.close(discard=True)


@pytest.fixture
def sound(place):
    return Place(place.home.parent / "sound", place.arena_dir)


KINDS = {
    "EIO": ("tier-unavailable", "dmesg"),
    "EDQUOT": ("tier-full", "quota"),
    "ENOSPC": ("tier-full", "free space"),
    "EFBIG": ("tier", "ulimit -f"),
    "ENXIO": ("tier", "dmesg"),
}


def test_system_calls_that_fail(place, train, tmp_path, inject):
    """Writes, syncs and renames, one after the other, in one job."""
    # A failed fsync is never tried again: the kernel calls clean what it could not write.
    calls = {"os:pwrite": KINDS, "os:fsync": {"EIO": ("tier", "dmesg"), "EDQUOT": KINDS["EDQUOT"]}}
    faults = {
        (at, name): Fault(
            AGENT, at, do="fail", arg=name, while_there=str(tmp_path / f"{at}-{name}"), below=str(place.home)
        )
        for at, names in calls.items()
        for name in names
    }
    fired = inject(*faults.values())
    job = train()
    for (at, name), fault in faults.items():
        now = Path(fault.while_there)
        now.touch()
        job.save_badly(*calls[at][name])
        assert str(fault) in fired()
        now.unlink()
    job.save_well()
    assert not any(t["degraded"] for t in place.status()["tiers"])
    job.end()


def test_short_writes_are_gone_on_with(place, train, inject):
    fault = Fault(AGENT, "os:pwrite", do="half", below=str(place.home))
    fired = inject(fault)
    job = train()
    job.save_well()
    assert str(fault) in fired()
    job.end()


def test_a_sync_that_hangs(place, train, tmp_path, inject):
    """Saves go on, the sound tier gets every step but those that had no slot, and waiting ends when it was told to."""
    go, hangs = tmp_path / "go", tmp_path / "hangs"
    fault = Fault(AGENT, "os:fsync", do="pause", arg=str(go), while_there=str(hangs), below=str(place.home))
    fired = inject(fault)
    job = train()
    hangs.touch()
    saved = job.save()
    until(lambda: str(fault) in fired(), "the sync hangs")
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="sick"):
        saved.wait("sick", timeout_s=0.5)
    assert time.monotonic() - began < 20
    saved.wait("sound", timeout_s=60)
    for _ in range(4):
        job.save().wait("sound", timeout_s=60)
    go.touch()
    hangs.unlink()
    until(saved.done, "the first one is settled", within_s=60)
    job.save_well()
    job.end()


def test_a_listing_that_hangs(place, train, tmp_path, inject):
    """Images are written; what looks into a directory hangs, as a commit does. The sound tier's commits go on."""
    go, hangs = tmp_path / "go", tmp_path / "hangs"
    fault = Fault(AGENT, "os:scandir", do="pause", arg=str(go), while_there=str(hangs), below=str(place.home))
    fired = inject(fault)
    job = train(sick_home=False)
    hangs.touch()
    saved = [job.save()]
    saved[0].wait("sound", timeout_s=60)
    for _ in range(6):
        saved.append(job.save())
        saved[-1].wait("sound", timeout_s=60)
    assert str(fault) in fired()
    go.touch()
    hangs.unlink()
    until(lambda: all(s.done() for s in saved), "all are settled", within_s=60)
    job.save_well()
    job.end()


def test_an_agent_that_starts_beside_a_disk_that_hangs(place, train, tmp_path, inject, monkeypatch):
    """Memory is found and loaded; the sound tier goes on; the sick one has the step when it answers again."""
    monkeypatch.setenv("HOLDFAST_AGENT_START_TIMEOUT_S", "30")
    go, hangs = tmp_path / "go", tmp_path / "hangs"
    fault = Fault(AGENT, "os:scandir", do="pause", arg=str(go), while_there=str(hangs), below=str(place.home))
    fired = inject(fault)
    job = train(sick_home=False)
    saved = job.save()
    saved.wait("memory", timeout_s=60)
    until(saved.done, "all is settled")
    hangs.touch()
    agent = processes.the_agent(place.arena_dir)
    agent.kill()
    agent.wait(30)
    began = time.monotonic()
    state = filled(-1)
    assert job.ckpt.load(state) == job.step
    assert time.monotonic() - began < 60
    assert (state["x"] == job.step).all()
    job.save().wait("sound", timeout_s=60)
    assert str(fault) in fired()
    go.touch()
    hangs.unlink()
    job.save_well()
    job.end()


def test_a_disk_remounted_read_only(place, train, mounts):
    folder = mounts.tmpfs("64m")
    job = train(Place(folder / "run", place.arena_dir))
    mounts.read_only(folder)
    job.save_badly("tier-permission", "read-only", "remount")
    job.save_badly("tier-permission")
    mounts.writable(folder)
    job.save_well()
    job.end()


@pytest.fixture
def limited(place):
    """Gives the living agent another limit; `limited.back()` takes it away."""

    class Limited:
        def __call__(self, which, value):
            self.agent = processes.the_agent(place.arena_dir)
            self.which, self.was = which, resource.prlimit(self.agent.pid, which)
            resource.prlimit(self.agent.pid, which, (value, self.was[1]))

        def back(self):
            resource.prlimit(self.agent.pid, self.which, self.was)

    return Limited()


def test_an_agent_out_of_descriptors(place, train, limited):
    """It has as many open as it may: it neither dies nor loses a step, and says what to raise."""
    job = train()
    agent = processes.the_agent(place.arena_dir)
    limited(resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{agent.pid}/fd")))
    saved = job.save()
    time.sleep(1.0)
    limited.back()
    saved.wait("memory", timeout_s=60)
    until(saved.done, "all is settled", within_s=90)
    assert saved.error is None or (saved.error.kind, "ulimit -n" in saved.error.hint) == ("tier-unavailable", True)
    job.save_well()
    assert processes.the_agent(place.arena_dir).pid == agent.pid, "it died of it"
    job.end()


def test_files_that_may_not_grow(place, train, limited):
    """`ulimit -f` in the agent: both tiers fail, memory does not, and all goes on when the limit is gone."""
    job = train()
    limited(resource.RLIMIT_FSIZE, 1 << 20)
    saved = job.save()
    saved.wait("memory", timeout_s=60)
    for tier in ("sick", "sound"):
        with pytest.raises(HoldfastError, match="EFBIG") as caught:
            saved.wait(tier, timeout_s=60)
        assert "ulimit -f" in caught.value.hint
    limited.back()
    job.save_well()
    job.end()


def test_clocks_that_jump_a_year(place, sound, train, tmp_path, inject):
    """Forth and back, in the agent and in the trainer, and every file of the run is a year old or of next year."""
    year_s = 365 * 86400.0
    jumps = [
        Fault(AGENT, "time:time", do="later", arg=str(by), while_there=str(tmp_path / f"jump{by:.0f}"))
        for by in (year_s, -2 * year_s)
    ]
    fired = inject(*jumps)
    job = train()
    for jump in jumps:
        Path(jump.while_there).touch()
        at_s = time.time() + float(jump.arg)
        for path in (p for home in (place.home, sound.home) for p in home.rglob("*")):
            os.utime(path, (at_s, at_s))
        place.status()
        job.save_well()
        assert str(jump) in fired()
        job.ckpt.load(filled(-1))
        Path(jump.while_there).unlink()
        job.save_well()
    job.end()

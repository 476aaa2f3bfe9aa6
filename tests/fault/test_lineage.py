"""Which step is the run's: over restarts, after going back, after a person deleted one."""

from pathlib import Path

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.checks import check
from tests.fault.harness.oracle import Committed
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, COMMAND, TRAINER, Fault

pytestmark = pytest.mark.torch


@pytest.fixture
def go(scene: Scene) -> Path:
    """A file that does not exist yet; what is held up goes on when it does."""
    return scene.directory / "go"


def test_an_old_attempts_flush_ends_after_a_restart(scene: Scene, go: Path):
    """The trainer dies in mid flush; the run goes on as attempt 2; then attempt 1's step becomes durable."""
    scene.job = scene.job_with(keep_last=None)
    held_up = Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", do="pause", arg=str(go), nth=2)
    scene.inject(held_up)
    scene.start(steps=3, end="linger")
    scene.wait_for("memory", step=2)
    scene.until(lambda: scene.fired(held_up), "the flush to be held up")
    scene.kill_trainers()
    scene.start(steps=2, end="told", go=str(go))
    scene.wait_for("memory", step=4)
    stuck = {Committed(1, step) for step in range(3)} - oracle.committed(scene.home)
    assert stuck, "nothing was held up"
    go.touch()
    assert scene.trainers[0].wait(60.0) == 0
    assert oracle.committed(scene.home) == {
        Committed(1, 0),
        Committed(1, 1),
        Committed(1, 2),
        Committed(2, 3),
        Committed(2, 4),
    }
    scene.lose_memory()
    scene.finish(steps=1)
    assert scene.loaded() == 4
    check(scene)


def test_going_back_and_on_and_crashing(scene: Scene):
    """load(step=50) after 100, on to 70, crash: 70 comes back, not the abandoned 100."""
    scene.job = scene.job_with(keep_last=None, every_steps=10, pace_s=0.001)
    scene.finish(steps=101)
    scene.start(load_step=50, steps=20, end="linger")
    scene.wait_for("memory", step=70)
    scene.kill_trainers()
    scene.finish(steps=1)
    assert scene.loaded(2) == 50
    assert scene.loaded() == 70
    last = scene.events("steps")[-1]["steps"]
    assert {step for _, step, _, abandoned in last if abandoned} == {60, 70, 80, 90, 100}
    check(scene, asked=[2])


BEFORE_WHOLE = {
    "nothing copied": Fault(TRAINER, "holdfast.trainer.plan:StagePlan.stage"),
    "copied, not staged": Fault(TRAINER, "holdfast.trainer.filling:copy", "after"),
}


@pytest.mark.parametrize("point", BEFORE_WHOLE)
def test_a_crash_before_the_first_whole_step_goes_back_again(scene: Scene, point: str):
    """load(step=50) after 100, and the crash comes before anything is whole: 50 again, for the run went back."""
    scene.job = scene.job_with(keep_last=None, every_steps=10, pace_s=0.001)
    scene.finish(steps=101)
    fault = BEFORE_WHOLE[point]
    scene.inject(fault)
    assert scene.run(load_step=50, steps=20) == [-9]
    assert scene.fired(fault) == 1
    scene.finish(steps=10)
    assert scene.loaded() == 50
    scene.finish(steps=1)
    assert scene.loaded() == 60
    check(scene, asked=[2])


def test_a_load_that_saves_nothing_changes_nothing(scene: Scene):
    """load(step=50) after 100 and a crash before the first save: the run never went back."""
    scene.job = scene.job_with(keep_last=None, every_steps=10, pace_s=0.001)
    scene.finish(steps=101)
    scene.finish(load_step=50, steps=5, end="exit")
    scene.finish(steps=1)
    assert scene.loaded() == 100


def test_a_pruned_newest_step_stays_gone(scene: Scene, go: Path):
    """A person prunes the diverged newest step while the job lives; it is closed and started again."""
    scene.start(steps=6, end="told", go=str(go))
    scene.wait_for("durable", step=5)
    code, said = scene.command("prune", scene.job.url, "--step", "5", "--yes")
    assert code == 0, said
    go.touch()
    assert scene.trainers[0].wait(60.0) == 0, scene.trainers[0].said()
    pruned = Committed(1, 5)
    assert pruned not in oracle.committed(scene.home)
    scene.finish(steps=3, end="durable")
    assert scene.loaded() == 4
    scene.lose_memory()
    scene.finish(steps=1)
    assert scene.loaded() == scene.events("staged", life=2)[-1]["step"]
    assert pruned not in oracle.committed(scene.home)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("how", ["again", "restart"])
def test_prune_killed_half_way(scene: Scene, nth: int, how: str):
    """A person's prune dies after tombstone, manifest or image; the command, or the next job, finishes it."""
    scene.job = scene.job_with(keep_last=None)
    scene.finish(steps=6)
    fault = Fault(COMMAND, "holdfast.tiers.posix.tier:PosixTier.delete", nth=nth)
    scene.inject(fault)
    url = scene.job.url
    scene.until(lambda: not scene.agents(), "the agent to leave")
    code, said = scene.command("prune", url, "--step", "2", "--step", "3", "--yes")
    assert code == -9, said
    assert scene.fired(fault) == 1
    assert Committed(1, 2) not in oracle.committed(scene.home), "its tombstone stands"
    if how == "again":
        code, said = scene.command("prune", url, "--step", "3", "--yes")
        assert code == 0, said
        assert not {Committed(1, 2), Committed(1, 3)} & oracle.committed(scene.home)
    scene.finish(steps=3, end="durable")
    assert scene.loaded() == 5
    left = sorted(p.parent.name for p in scene.home.glob("images/00000001/*/*"))
    gone = {"000000000002"} | ({"000000000003"} if how == "again" else set())
    assert not gone & set(left), "what was being deleted is gone, images included"
    assert not list(scene.home.glob("tombstones/*")), "a newer step is committed: no tombstone is needed any more"
    check(scene, pruned=[Committed(1, 2), Committed(1, 3)])

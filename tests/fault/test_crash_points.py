"""kill -9 at named points: every phase of a trainer's life and of an agent's. After each, the run goes on."""

import pytest
from tests.fault.harness.checks import check, check_tidy
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, TRAINER, Fault

pytestmark = pytest.mark.torch

CHECKPOINTER = "holdfast.trainer.checkpointer:Checkpointer"
SESSION = "holdfast.trainer.session:Session"
SHELF = "holdfast.agent.shelf:Shelf"
EXECUTOR = "holdfast.agent.executor:Executor"

TRAINER_POINTS = {
    "attaching": Fault(TRAINER, f"{SESSION}._attach", "after"),
    "preparing": Fault(TRAINER, f"{SESSION}.prepare"),
    "prepared": Fault(TRAINER, f"{SESSION}.prepare", "after"),
    "slots being dealt": Fault(TRAINER, "holdfast.wire.pages:populate"),
    "claiming": Fault(TRAINER, f"{CHECKPOINTER}._claim"),
    "claimed": Fault(TRAINER, f"{CHECKPOINTER}._claim", "after"),
    "slot taken": Fault(TRAINER, f"{SESSION}.take", "after", 3),
    "before the copy": Fault(TRAINER, "holdfast.trainer.plan:StagePlan.stage", "before", 3),
    "copied, no header": Fault(TRAINER, "holdfast.trainer.stage:copy", "after", 3),
    "staged, not returned": Fault(TRAINER, "holdfast.trainer.plan:StagePlan.stage", "after", 3),
    "waiting for a save": Fault(TRAINER, "holdfast.trainer.save:Save.wait", "before", 4),
    "closing": Fault(TRAINER, f"{CHECKPOINTER}._await_end"),
    "closed, not let go": Fault(TRAINER, f"{CHECKPOINTER}._await_end", "after"),
}

RESTART_POINTS = {
    "finding what loads": Fault(TRAINER, "holdfast.trainer.load:Loader._loadable", "after"),
    "fetched": Fault(TRAINER, "holdfast.trainer.load:Loader._fetch_and_verify", "after"),
    "before applying": Fault(TRAINER, "holdfast.trainer.apply:LoadPlan.run"),
    "applied": Fault(TRAINER, "holdfast.trainer.apply:LoadPlan.run", "after"),
    "agent admits": Fault(AGENT, "holdfast.agent.admission:Admission.launch"),
    "agent admitted": Fault(AGENT, "holdfast.agent.admission:Admission.launch", "after"),
    "agent adopts": Fault(AGENT, "holdfast.agent.agent:Agent._adopt_slots"),
    "agent verifies what it adopted": Fault(AGENT, "holdfast.agent.executor:check_image"),
    "agent verified": Fault(AGENT, "holdfast.agent.executor:check_image", "after"),
    "agent looks what loads": Fault(AGENT, "holdfast.agent.loading:Loading.loadable", "after"),
    "agent asked to fetch": Fault(AGENT, "holdfast.agent.loading:Loading.fetch"),
    "agent unpins": Fault(AGENT, "holdfast.agent.loading:Loading.unpin"),
    "agent rolls forward": Fault(AGENT, f"{SHELF}.roll_forward"),
    "agent rolled forward": Fault(AGENT, f"{SHELF}.roll_forward", "after"),
    "agent tidies": Fault(AGENT, f"{SHELF}.tidy", "after"),
}

AGENT_POINTS = {
    "preparing": Fault(AGENT, "holdfast.agent.admission:Admission.prepare"),
    "dealing": Fault(AGENT, "holdfast.agent.admission:Admission._deal"),
    "claiming": Fault(AGENT, f"{SHELF}.claim"),
    "claimed, not told": Fault(AGENT, f"{SHELF}.claim", "after"),
    "before sealing": Fault(AGENT, "holdfast.agent.executor:seal_image", "before", 3),
    "sealed": Fault(AGENT, "holdfast.agent.executor:seal_image", "after", 3),
    "before held": Fault(AGENT, f"{EXECUTOR}._hold", "before", 3),
    "held": Fault(AGENT, f"{EXECUTOR}._hold", "after", 3),
    "before a flush": Fault(AGENT, f"{SHELF}.upload", "before", 2),
    "between the parts of a flush": Fault(AGENT, "holdfast.tiers.posix.upload:PosixUpload.write", "after", 4),
    "before an image is published": Fault(AGENT, "holdfast.tiers.posix.upload:PosixUpload.publish", "before", 3),
    "synced, not renamed": Fault(AGENT, "holdfast.tiers.posix.tier:PosixTier.move", "before", 3),
    "renamed, directory not synced": Fault(AGENT, "holdfast.tiers.posix.tier:PosixTier.move", "after", 3),
    "published": Fault(AGENT, f"{SHELF}.upload", "after", 2),
    "checking coverage": Fault(AGENT, f"{SHELF}.check_whole", "after", 2),
    "before the manifest": Fault(AGENT, "holdfast.store.commit:publish_manifest", "before", 2),
    "the manifest stands, nobody told": Fault(AGENT, "holdfast.store.commit:publish_manifest", "after", 2),
    "before a slot is freed": Fault(AGENT, f"{EXECUTOR}._free"),
    "a slot was freed": Fault(AGENT, f"{EXECUTOR}._free", "after"),
    "before a prune": Fault(AGENT, f"{SHELF}.prune"),
    "before the tombstone": Fault(AGENT, "holdfast.store.prune:_delete"),
    "tombstone put": Fault(AGENT, "holdfast.tiers.posix.tier:PosixTier.delete", "before", 1),
    "manifest deleted": Fault(AGENT, "holdfast.tiers.posix.tier:PosixTier.delete", "after", 1),
    "image deleted": Fault(AGENT, "holdfast.tiers.posix.tier:PosixTier.delete", "after", 2),
    "tombstone not yet deleted": Fault(AGENT, "holdfast.store.prune:_delete", "after"),
    "asked to close": Fault(AGENT, "holdfast.agent.closing:Closing.close_rank"),
    "the end": Fault(AGENT, "holdfast.agent.closing:Closing.ended"),
    "memory not yet given back": Fault(AGENT, "holdfast.agent.arena:Arena.destroy"),
}


@pytest.mark.parametrize("name", TRAINER_POINTS)
def test_trainer_killed(scene: Scene, name: str):
    """The trainer dies at the point, in its first life or its second; the third goes on and ends well."""
    fault = TRAINER_POINTS[name]
    scene.run(steps=3, end="exit")
    scene.inject(fault)
    assert scene.run(steps=5) == [-9]
    scene.until(lambda: scene.fired(fault) == 1, "the fault to happen")
    go_on(scene)


@pytest.mark.parametrize("name", RESTART_POINTS)
def test_killed_while_loading(scene: Scene, name: str):
    """Trainer or agent die while a run is taken up again by a new trainer and a new agent."""
    fault = RESTART_POINTS[name]
    scene.run(steps=4, end="exit")
    scene.kill_agent()
    scene.inject(fault)
    scene.run(steps=3)
    scene.until(lambda: scene.fired(fault) == 1, "the fault to happen")
    go_on(scene)


@pytest.mark.parametrize("name", AGENT_POINTS)
def test_agent_killed(scene: Scene, name: str):
    """The agent dies at the point; the trainer never notices but by starting another, and everything ends well."""
    fault = AGENT_POINTS[name]
    scene.inject(fault)
    scene.finish(steps=6, end="durable", pace_s=0.05)
    scene.until(lambda: scene.fired(fault) == 1, "the fault to happen")
    go_on(scene)


def go_on(scene: Scene) -> None:
    """The run is taken up once more, saves, and ends."""
    scene.finish(steps=4, end="durable")
    history = check(scene)
    check_tidy(scene)
    assert history.durable, "this tested nothing"

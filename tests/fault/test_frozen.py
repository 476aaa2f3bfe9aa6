"""Steps that rely on an image of an older one: whatever dies or rots, each loads as it was saved, or not at all."""

import pytest
from tests.fault.harness import frozen, oracle
from tests.fault.harness.frozen import COLUMNS, ROWS
from tests.fault.harness.scenarios import flip_bit
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, COMMAND, Fault

import holdfast
from holdfast.format import names
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import read_catalog, read_manifest
from holdfast.store.verify import find_damage
from holdfast.tiers import open_tier
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState

pytestmark = pytest.mark.torch

TRAIN = "tests.fault.harness.frozen:train"


def check(scene: Scene) -> list[int]:
    """Every checkpoint that stands is whole and loads as it was saved; the steps that do."""
    saved = {(e["life"], e["step"]): e["digest"] for e in scene.events("saved")}
    tier = open_tier(scene.job.url, name="home", owner="test")
    try:
        catalog = read_catalog(tier)
        loadable = [e for e in catalog if e.loadable]
        assert {oracle.Committed(e.id.attempt, e.id.step) for e in loadable} == oracle.committed(scene.home)
        for entry in loadable:
            assert entry.manifest is not None
            assert find_damage(tier, read_manifest(tier, entry.id)) is None, entry.id
        stray = {i for e in catalog for i in e.images} - catalog.named()
    finally:
        tier.close()
    for event in scene.events("loaded"):
        digests = [d for (life, step), d in saved.items() if step == event["step"] and life < event["life"]]
        assert event["step"] is None or event["digest"] in digests, f"life {event['life']} loaded what nobody saved"
    newest = max(e.id for e in loadable)
    assert not [i for i in stray if i.checkpoint < newest], "images that nobody names are left"
    state = frozen.make()
    holdfast.load(scene.job.url, state)
    assert frozen.digest(state) in [d for (_, step), d in saved.items() if step == newest.step]
    return sorted(e.id.step for e in loadable)


def shared_slots(scene: Scene) -> list[tuple[int, "str"]]:
    """(step, path) of what stands in slots for steps to share."""
    found = []
    for path in scene.slots():
        page = SlotPage(memoryview(bytearray(path.read_bytes()[:PAGE_BYTES])))
        if page.state == SlotState.HELD and page.image:
            found.append((page.step, str(path)))
    return found


def flip_shared(scene: Scene) -> None:
    """One bit in the middle of the frozen bytes in memory."""
    [(_, path)] = shared_slots(scene)
    flip_bit(scene.arena / path, PAGE_BYTES + 4096 + ROWS * COLUMNS * 2)


AGENT_DIES = [
    Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", nth=4),
    Fault(AGENT, "holdfast.agent.executor:seal_image", when="after", nth=4),
    Fault(AGENT, "holdfast.agent.executor:Executor._free"),
    Fault(AGENT, "holdfast.store.commit:publish_manifest", nth=3),
    Fault(AGENT, "holdfast.store.commit:publish_manifest", when="after", nth=3),
]


@pytest.mark.parametrize("fault", AGENT_DIES, ids=str)
def test_the_agent_dies_between_steps_that_rely_on_an_older_image(scene: Scene, fault: Fault):
    scene.inject(fault)
    scene.finish(script=TRAIN, steps=6, args=("change 4",), end="exit")
    assert scene.fired(fault) == 1
    scene.finish(script=TRAIN, steps=2)
    assert scene.loaded() == 5
    assert check(scene) == [5, 6, 7]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_prune_dies_half_way(scene: Scene, nth: int):
    """The step whose image others share is deleted by hand, and the command is killed."""
    scene.job = scene.job_with(keep_last=None)
    scene.finish(script=TRAIN, steps=4)
    scene.until(lambda: not scene.agents(), "the agent to leave")
    fault = Fault(COMMAND, "holdfast.tiers.posix.tier:PosixTier.delete", nth=nth)
    scene.inject(fault)
    code, said = scene.command("prune", scene.job.url, "--step", "0", "--yes")
    assert (code, scene.fired(fault)) == (-9, 1), said
    scene.finish(script=TRAIN, steps=2)
    assert scene.loaded() == 3
    assert check(scene) == [1, 2, 3, 4, 5]
    assert (scene.home / names.image_key(shared_of(scene, 1))).exists(), "others name it"
    code, said = scene.command("verify", scene.job.url, "--all")
    assert code == 0, said


def shared_of(scene: Scene, step: int):
    tier = open_tier(scene.job.url, name="home", owner="test")
    try:
        entry = read_catalog(tier).get(CheckpointId(1, step))
        assert entry is not None
        assert entry.manifest is not None
        return next(r.id for r in entry.manifest.images if r.id.image)
    finally:
        tier.close()


def test_frozen_bytes_rot_in_memory_while_the_agent_is_dead(scene: Scene):
    """No step that relies on them counts as whole: they come from the file tier, and good ones go on."""
    scene.start(script=TRAIN, steps=3, end="linger")
    scene.wait_for("durable", step=2)
    scene.kill_trainers()
    scene.kill_agent()
    flip_shared(scene)
    scene.finish(script=TRAIN, steps=2)
    assert scene.loaded() == 2
    assert check(scene)[-2:] == [3, 4]


def test_frozen_bytes_rot_beside_a_trainer(scene: Scene):
    """What is staged next is compared with them, so they are staged anew: no later step relies on the bad ones."""
    go = scene.directory / "go"
    stop = Fault(AGENT, "holdfast.agent.executor:Executor._mark_committed", do="pause", arg=str(go), nth=3)
    scene.inject(stop)
    trainer = scene.start(script=TRAIN, steps=6)
    scene.until(lambda: scene.fired(stop), "the agent to stop")
    flip_shared(scene)
    go.touch()
    assert trainer.wait(60) == 0
    steps = check(scene)
    assert steps[-1] == 5
    assert shared_of(scene, 5).step > 0, "not the bad one"

"""What stands in shared memory while nobody looks after it: kept, checked, never believed."""

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.checks import check
from tests.fault.harness.scenarios import NEVER, flip_in_memory, rot_while_the_agent_is_dead
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, Fault

pytestmark = pytest.mark.torch

PLACES = ["tensor", "header", "checksums"]


@pytest.mark.parametrize("place", PLACES)
def test_a_bit_flips_while_the_agent_is_dead(scene: Scene, place: str):
    """The step is durable, too: that copy is loaded, and the bad one never gets a good checksum."""
    scene.start(steps=4, end="linger")
    scene.wait_for("durable", step=3)
    scene.kill_trainers()
    scene.kill_agent()
    flip_in_memory(scene, 3, place)
    scene.finish(steps=3, end="durable")
    assert scene.loaded() == 3
    check(scene)


@pytest.mark.parametrize("place", PLACES[1:])
def test_the_only_copy_rots(scene: Scene, place: str):
    """The newest step is nowhere else: the next older one is loaded, and the bad image reaches no tier.

    Of a bit in a tensor test_planted_defects.py tells the story.
    """
    rot_while_the_agent_is_dead(scene, place=place)


def test_a_with_left_by_an_exception_keeps_memory(scene: Scene):
    """The job fails; the newest step is in memory alone, and there it is found."""
    stop = Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", do="pause", arg=NEVER, nth=2)
    scene.inject(stop)
    assert scene.run(steps=5, end="raise", pace_s=0.1) == [3]
    assert oracle.Committed(1, 4) not in oracle.committed(scene.home)
    scene.inject()
    scene.start(steps=1)
    assert scene.loaded() == 4
    assert [1, 4, ["memory"], False] in scene.wait_for("steps")["steps"]
    scene.kill_trainers()
    scene.kill_agent()  # it holds up a flush for ever
    scene.finish(steps=1)
    check(scene)


def test_losses_are_those_without_holdfast(scene: Scene):
    """A fresh AdamW and `prepare`: the state learns its layout without a step, and a restart goes on exactly."""
    script = "tests.fault.harness.scripts:adamw"
    for args, end in (((), 0), (("with", "stop at 4"), 0), (("with",), 0)):
        assert scene.run(script=script, steps=10, args=args) == [end], scene.trainers[0].said()
    losses = {life: {e["step"]: e["loss"] for e in scene.events("loss", life=life)} for life in (1, 2, 3)}
    assert sorted(losses[2]) == [0, 1, 2, 3, 4]
    assert sorted(losses[3]) == [5, 6, 7, 8, 9]
    assert losses[2] | losses[3] == losses[1]

"""A file tier slower than training: training does not wait for it."""

import statistics

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.checks import check
from tests.fault.harness.scene import Scene
from tests.fault.harness.status import lagging
from tests.fault.inject.faults import AGENT, TRAINER, Fault

pytestmark = pytest.mark.torch

STEP_S = 0.2
STEPS = 50
FLUSH_S = 6 * STEP_S
SLOT_WAIT_S = 0.4
"""Less than a flush holds up the first save that waits for it; so long again a busy machine may take to mark it."""
SLOW = Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", do="sleep", arg=str(FLUSH_S))
WAITED = Fault(TRAINER, "holdfast.trainer.slots:Slots._wait_free", do="count")


def test_saves_do_not_wait_for_a_lagging_tier(scene: Scene):
    """Much slower than training with every step due: once it is marked, no save waits, and none is dropped."""
    scene.job = scene.job_with(keep_last=None, pace_s=STEP_S, environ={"HOLDFAST_SLOT_WAIT_S": str(SLOT_WAIT_S)})
    scene.inject(SLOW, WAITED)
    scene.start(steps=STEPS)
    scene.until(lambda: lagging(scene), "the tier to be marked lagging")
    marked = scene.until(lambda: scene.events("staged"), "a save")[-1]["step"]
    waited_before = scene.fired(WAITED)
    scene.wait_for("staged", step=STEPS - 1)
    after = [e for e in scene.events("staged") if e["step"] > marked + 1]
    assert len(after) > STEPS / 2, "it was marked too late to test anything"
    # Each of them would wait for the tier; the agent itself may be late once in a while.
    assert scene.fired(WAITED) <= waited_before + len(after) / 8
    assert statistics.median(e["stall_s"] for e in after) < STEP_S / 2
    assert max(e["stall_s"] for e in after) < FLUSH_S / 2
    assert scene.trainers[0].wait(60.0) == 0
    ended = scene.events("ended")
    assert {e["kind"] for e in ended} == {"skipped"}
    assert not [e for e in ended if e["what"] == "memory"]
    assert max(c.step for c in oracle.committed(scene.home)) == STEPS - 1
    check(scene)

"""The save of the agreed last step waits for a slot: nothing comes after it that could be slowed."""

import time

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, Fault

pytestmark = pytest.mark.torch

SEALED_STEPS = 1
SLOTS = 4
"""keep_last of memory, and two."""


def start(scene: Scene, **environ: str) -> str:
    """Checksums stop after the first step, so that every slot is taken when the signal comes. The file that ends it."""
    go = str(scene.directory / "go")
    scene.inject(Fault(AGENT, "holdfast.agent.executor:seal_image", nth=SEALED_STEPS + 1, do="pause", arg=go))
    scene.start(
        script="tests.fault.harness.scripts:until_told_to_stop",
        steps=SLOTS,
        pace_s=0.3,
        go=go,
        environ={"HOLDFAST_SLOT_WAIT_S": "0.1", **environ},
    )
    return go


def waits(scene: Scene) -> bool:
    """Whether a save that finds every slot taken has not returned for many times as long as others wait for one."""
    saving = scene.events("saving")
    return bool(saving) and saving[-1]["step"] >= SLOTS and time.monotonic() - saving[-1]["t"] > 3.0


def test_the_last_save_waits_for_a_slot(scene: Scene):
    go = start(scene)
    scene.until(lambda: waits(scene), "the last save to wait")
    assert not scene.events("stopped"), "it gave the step up after 2 x slot_wait_s"
    open(go, "w").close()
    stopped = scene.wait_for("stopped")
    assert stopped["kind"] == ""
    assert stopped["took_s"] > 0.5
    assert scene.trainers[0].wait(60.0) == 0, scene.trainers[0].said()
    assert max(oracle.committed(scene.home)).step == stopped["step"]


def test_training_stops_also_when_the_last_save_cannot_be_made(scene: Scene):
    go = start(scene, HOLDFAST_CLOSE_TIMEOUT_S="4")
    stopped = scene.wait_for("stopped")
    assert stopped["kind"] == "step-dropped"
    assert 1.5 < stopped["took_s"] < 12
    [warning] = [w for w in stopped["warnings"] if "last step before the stop" in w]
    assert "slot" in warning
    open(go, "w").close()
    assert scene.trainers[0].wait(60.0) == 0, scene.trainers[0].said()
    assert max(oracle.committed(scene.home)).step == SLOTS - 1, "what the slots held when checksums stopped"

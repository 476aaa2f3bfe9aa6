"""`Save` handles wait in another thread while the agent is killed again and again under the training loop."""

import pytest
from tests.fault.harness.checks import check
from tests.fault.harness.scene import Scene

pytestmark = pytest.mark.torch

KILLS = 4


def test_waiting_in_a_thread_while_agents_die(scene: Scene):
    scene.job = scene.job_with(keep_last=None)
    go = scene.directory / "go"
    scene.start(script="tests.fault.harness.scripts:wait_in_a_thread", pace_s=0.01, go=str(go))
    for _ in range(KILLS):
        wait_for_more(scene)
        scene.kill_agent()
    wait_for_more(scene)
    go.touch()
    assert scene.trainers[0].wait(80.0) == 0, scene.trainers[0].said()
    ended = scene.events("ended")
    assert {e["kind"] for e in ended} <= {"step-dropped", "step-lost"}, ended
    check(scene)


def wait_for_more(scene: Scene) -> None:
    already = len(scene.events("durable"))
    scene.until(lambda: len(scene.events("durable")) > already + 3, "saves to become durable")

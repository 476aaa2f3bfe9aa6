"""kill -9 at named points (points.py): every phase of a trainer's life and of an agent's. After each, the run goes on.

Each test proves that its fault happened.
"""

from typing import Any

import pytest
from tests.fault import points
from tests.fault.harness import oracle
from tests.fault.harness.checks import check, check_tidy
from tests.fault.harness.processes import ROOT
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import Fault

pytestmark = pytest.mark.torch


def test_the_page_has_the_table():
    page = (ROOT / "docs/testing.md").read_text()
    for table in points.ALL.values():
        for name, fault in table.items():
            call = f" (call {fault.nth})" if fault.nth > 1 else ""
            where = f"{fault.when} `{fault.at.removeprefix('holdfast.')}`{call}"
            assert f"| {name} | {fault.process} | {where} |\n" in page


@pytest.mark.parametrize("name", points.TRAINER_POINTS)
def test_trainer_killed(scene: Scene, name: str):
    """The trainer dies; the next one finds what was whole, goes on, and ends well."""
    scene.run(steps=3, end="exit")
    fault = inject(scene, points.TRAINER_POINTS[name])
    assert scene.run(steps=5) == [-9]
    go_on(scene, fault)


@pytest.mark.parametrize("name", points.RESTART_POINTS)
def test_killed_while_loading(scene: Scene, name: str):
    """Trainer or agent die while a run is taken up again by a new trainer and a new agent."""
    scene.finish(steps=4, end="whole")  # else the agent may die before it holds anything that could be verified
    scene.kill_agent()
    fault = inject(scene, points.RESTART_POINTS[name])
    scene.run(steps=3)
    go_on(scene, fault)


@pytest.mark.parametrize("name", points.COLD_POINTS)
def test_killed_while_loading_from_a_tier(scene: Scene, name: str):
    """As when another node takes the run up: its memory is gone."""
    scene.job = scene.job_with(world=2)
    scene.finish(steps=4)
    scene.lose_memory()
    fault = inject(scene, points.COLD_POINTS[name])
    scene.run(steps=3)
    go_on(scene, fault, memory_lost=[1])


@pytest.mark.parametrize("name", points.DIRECT_POINTS)
def test_killed_while_a_rank_reads_from_a_tier(scene: Scene, name: str):
    scene.finish(steps=4)
    scene.lose_memory()
    fault = inject(scene, points.DIRECT_POINTS[name])
    scene.run(steps=3)
    go_on(scene, fault, memory_lost=[1])


@pytest.mark.parametrize("name", points.AGENT_POINTS)
def test_agent_killed(scene: Scene, name: str):
    """The agent dies at the point; the trainer never notices but by starting another, and everything ends well."""
    fault = inject(scene, points.AGENT_POINTS[name])
    scene.finish(steps=6, end="durable", pace_s=0.05)
    go_on(scene, fault)


@pytest.mark.parametrize("name", points.RECYCLING_POINTS)
def test_agent_killed_while_files_are_recycled(scene: Scene, name: str):
    """Whatever an old file holds by then appears under no name that is listed."""
    scene.job = scene.job_with(scope="node", keep_last=1)
    fault = inject(scene, points.RECYCLING_POINTS[name])
    scene.finish(steps=10, end="durable", pace_s=0.08)
    go_on(scene, fault)


@pytest.mark.parametrize("name", points.PROMOTION_POINTS)
@pytest.mark.parametrize("end", ["close", "exit"])
def test_agent_killed_while_it_promotes(scene: Scene, name: str, end: str):
    """The last step was not due on the file tier; whoever comes next finds it in memory, or brings it there."""
    scene.job = scene.job_with(file_every_steps=100)
    fault = inject(scene, points.PROMOTION_POINTS[name])
    scene.finish(steps=6, end=end, pace_s=0.05)
    scene.until(lambda: scene.fired(fault), "the fault to happen")
    if end == "close":
        assert max(oracle.committed(scene.home)).step == 5, "close() has returned"
    scene.finish(steps=1)
    assert scene.loaded() == 5
    check(scene)


@pytest.mark.parametrize("name", points.RANK_POINTS)
def test_one_of_two_ranks_killed(scene: Scene, name: str):
    """One rank dies; the launcher ends the other, sooner or later, and starts both again."""
    scene.job = scene.job_with(world=2)
    scene.run(steps=3, end="exit")
    fault = inject(scene, points.RANK_POINTS[name])
    scene.start(steps=5, end="linger" if "closing" not in name else "close")
    assert scene.trainers[1].wait(60.0) == -9
    scene.kill_trainers()
    go_on(scene, fault, failed=[2])


def inject(scene: Scene, fault: Fault) -> Fault:
    scene.inject(fault)
    return fault


def go_on(scene: Scene, fault: Fault, **known: Any) -> None:
    """The fault happened, the run is taken up once more, saves, and ends."""
    scene.until(lambda: scene.fired(fault) == 1, f"{fault} to happen")
    scene.finish(steps=4, end="durable")
    history = check(scene, **known)
    check_tidy(scene)
    assert history.durable, "this tested nothing"

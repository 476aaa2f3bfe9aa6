"""The node stops at any instant: what was reported durable is on the disk, whatever else is lost, kept or torn."""

import random
import time

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.checks import check, check_disk, read
from tests.fault.harness.scene import Scene

pytestmark = pytest.mark.torch

CUTS = 5


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_durable_survives_a_power_cut(scene: Scene, seed: int | None):
    """Cut again and again, at random moments of saving, flushing and pruning."""
    chance = random.Random(seed)
    scene.inject(record=True)
    for life in range(1, CUTS + 1):
        scene.start(steps=100_000, pace_s=0.002)
        scene.wait_for("durable")
        time.sleep(chance.random() * 0.4)
        scene.lose_power(None if seed is None else seed * 1000 + life)
        history = read(scene.events(), memory_lost=range(1, life + 1))
        check_disk(scene.home, history, keep_last=scene.job.keep_last)
    scene.finish(steps=4, end="durable")
    history = check(scene, memory_lost=range(1, CUTS + 1))
    assert len(history.durable) > CUTS
    assert oracle.committed(scene.home)

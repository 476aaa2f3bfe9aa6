"""The node stops at any instant: what was reported durable is on the disk, whatever else is lost, kept or torn."""

import pytest
from tests.fault.harness.scenarios import power_cuts, power_cuts_amid_recycling
from tests.fault.harness.scene import Scene

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("seed", [1, 2])
def test_durable_survives_power_cuts(scene: Scene, seed: int):
    """Chance decides what of the unsynced is there; test_planted_defects.py tells the story with all of it lost."""
    power_cuts(scene, seed=seed)


def test_durable_survives_power_cuts_where_files_are_recycled(scene: Scene):
    """What is written over is nothing that a name on the disk may still lead to."""
    power_cuts_amid_recycling(scene, seed=3)

"""The node stops at any instant: what was reported durable is on the disk, whatever else is lost, kept or torn."""

import pytest
from tests.fault.harness.scenarios import power_cuts
from tests.fault.harness.scene import Scene

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("seed", [1, 2])
def test_durable_survives_power_cuts(scene: Scene, seed: int):
    """Chance decides what of the unsynced is there; test_planted_defects.py tells the story with all of it lost."""
    power_cuts(scene, seed=seed)

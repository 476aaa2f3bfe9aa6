"""First things first: the campaign finds defects. Each story fails with its defect planted, and ends well without."""

from collections.abc import Callable

import pytest
from tests.fault.harness import scenarios
from tests.fault.harness.oracle import Violation
from tests.fault.harness.scene import Scene
from tests.fault.inject.defects import DEFECTS

pytestmark = pytest.mark.torch

WRONG_BYTES = "these are wrong|is not what|is no image"
STORIES: dict[str, tuple[Callable[..., None], str]] = {
    "files are not synced": (scenarios.power_cuts, WRONG_BYTES),
    "directories are not synced": (scenarios.power_cuts, "was durable and is gone"),
    "adopted images are sealed anew": (scenarios.rot_while_the_agent_is_dead, WRONG_BYTES),
    "loads are not checked": (scenarios.rot_beside_a_living_agent, WRONG_BYTES),
    "fetches are not checked": (scenarios.rot_on_a_tier, WRONG_BYTES),
    "verify checks nothing": (scenarios.rot_before_the_commit, WRONG_BYTES),
    "commit before the last receipt": (scenarios.one_image_is_late, "committed with images of ranks"),
    "no tombstone": (scenarios.prune_dies_half_way, "of a pruned step are left|came back"),
    "freed while in flush": (scenarios.flushes_are_slow, f"{WRONG_BYTES}|is not there"),
    "attempt not claimed": (scenarios.steps_again_after_going_back, "is of life 1 and of 2"),
    "staged before it is copied": (scenarios.training_goes_on_at_once, WRONG_BYTES),
    "lineage not asked": (scenarios.gone_back_and_nothing_whole_yet, "step 5 was loaded"),
    "recycled before the removal is durable": (scenarios.power_cuts_while_overwriting, WRONG_BYTES),
}
"""Per defect the story that shows it, and what the oracle says then."""


def test_every_defect_has_its_story():
    assert STORIES.keys() == DEFECTS.keys()


@pytest.mark.parametrize("defect", STORIES)
def test_a_planted_defect_is_found(scene: Scene, defect: str):
    story, objection = STORIES[defect]
    with pytest.raises(Violation, match=objection):
        story(scene, (defect,))


TOLD = {story.__name__: story for story, _ in STORIES.values()}


@pytest.mark.parametrize("story", TOLD)
def test_without_it_the_story_ends_well(scene: Scene, story: str):
    TOLD[story](scene)

"""What counts as a failed save, for `on_save_error`."""

from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.agent.failing import Failing
from holdfast.errors import NotFoundError, SkippedError, TierError
from holdfast.lifecycle.progress import pruned_error
from holdfast.lifecycle.steps import StepStatus, TierStatus, outcomes_of
from holdfast.model.identity import CheckpointId

STEP = CheckpointId(1, 7)


@pytest.mark.parametrize(
    ("state", "error", "failed"),
    [
        ("failed", TierError("short write").to_dict(), True),
        ("failed", NotFoundError("Not a directory (ENOTDIR)", key="images/x").to_dict(), True),
        ("dropped", pruned_error(STEP, "near"), False),
        ("failed", SkippedError("a newer step went first").to_dict(), False),
    ],
)
def test_what_a_tier_lost_is_a_failure_and_what_was_pruned_is_none(state, error, failed):
    status = StepStatus(STEP, "whole", {"near": TierStatus(state, error)}, None, 10)
    found = outcomes_of(status)
    assert found == {"memory": None, **({"near": error} if failed else {})}


def test_old_steps_that_are_told_again_do_not_end_a_row_of_failures():
    """One tier fails while another prunes an old step with every commit: what is pruned is told of again."""
    proposed: list[int] = []
    proposals: Any = SimpleNamespace(fail=lambda: proposed.append(1))
    failing, error = Failing(proposals), TierError("short write").to_dict()

    def look(step, far):
        tiers = {"near": TierStatus("committed"), "far": far}
        failing.look(StepStatus(CheckpointId(1, step), "whole", tiers, None, 10), 3)

    for step in range(400):
        look(step, TierStatus("committed"))
    for step in range(3):
        assert failing.fatal is None
        look(400 + step, TierStatus("failed", error))
        look(step, TierStatus("committed"))
    assert failing.fatal == error
    assert proposed == [1]

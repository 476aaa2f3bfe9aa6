"""What counts as a failed save, for `on_save_error`."""

import pytest

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

"""When failed saves end training, and what counts as one."""

import pytest

from holdfast.errors import (
    NotFoundError,
    SkippedError,
    StepDroppedError,
    SupersededError,
    TierFullError,
)
from holdfast.lifecycle.steps import StepStatus, TierStatus, outcomes_of
from holdfast.model.identity import CheckpointId
from holdfast.policy.patience import Patience


def run(patience, *outcomes):
    for n, failed in enumerate(outcomes):
        patience.note(CheckpointId(1, n), "memory", failed=False)
        patience.note(CheckpointId(1, n), "disk", failed=failed)
    return patience


def test_failures_count_in_a_row():
    assert not run(Patience(), True, True, False, True).over("disk", 2)
    assert run(Patience(), True, True, False, True, True).over("disk", 2)
    assert run(Patience(), True).over("disk", 1)
    assert not run(Patience(), True).over("memory", 1), "each place counts for itself"
    assert not run(Patience(), *[True] * 99).over("disk", 0), "0 is never"


def test_where_a_step_is_not_due_it_says_nothing():
    patience = Patience()
    for n in range(20):
        patience.note(CheckpointId(1, n), "memory", failed=False)
        if n % 5 == 0:
            patience.note(CheckpointId(1, n), "archive", failed=True)
        assert patience.over("archive", 3) == (n >= 10)


def test_a_step_counts_once_per_place():
    patience = Patience()
    for _ in range(5):
        patience.note(CheckpointId(1, 7), "disk", failed=True)
    assert not patience.over("disk", 2)
    patience.note(CheckpointId(1, 7), "disk", failed=False)
    assert patience.over("disk", 1)


def test_it_remembers_no_more_than_it_needs():
    patience = run(Patience(), *[True] * 5000)
    assert len(patience._known) == 1024
    assert patience.over("disk", 5000)


def test_after_it_was_told_it_begins_anew():
    patience = run(Patience(), True, True)
    patience.begin_anew()
    assert not patience.over("disk", 1)
    patience.note(CheckpointId(2, 0), "disk", failed=True)
    assert patience.over("disk", 1)


def status(memory="whole", error=None, **tiers):
    errors = {n: TierStatus(state, e.to_dict() if e else None) for n, (state, e) in tiers.items()}
    return StepStatus(CheckpointId(1, 1), memory, errors, error.to_dict() if error else None, 1)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (status(disk=("committed", None)), {"memory": None, "disk": None}),
        (
            status(disk=("committed", None), other=("failed", TierFullError("full"))),
            {"memory": None, "disk": None, "other": "tier-full"},
        ),
        (status("dropped", StepDroppedError("no slot")), {"memory": "step-dropped"}),
        (status("staged", disk=("waiting", None)), {}),
        (status(slow=("flushing", None), other=("failed", TierFullError("f"))), {"memory": None, "other": "tier-full"}),
        (status("dropped", SkippedError("read too late"), disk=("skipped", SkippedError("read too late"))), {}),
        (status(disk=("skipped", SkippedError("lagging"))), {"memory": None}),
        (status("dropped", NotFoundError("pruned"), disk=("dropped", NotFoundError("pruned"))), {}),
        (status(disk=("failed", SupersededError("another"))), {"memory": None}),
        (status("gone", TierFullError("of before"), disk=("committed", None)), {"memory": None, "disk": None}),
    ],
)
def test_what_counts_as_a_failed_save(given, kinds):
    assert {place: e and e["kind"] for place, e in outcomes_of(given).items()} == kinds

"""Retention: what goes, what stays, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.identity import Attempt, CheckpointId, Lineage, lineage_of
from holdfast.policy.retention import Reason, judge, select_deletions

ONE = Lineage({1: None})


def ids(attempt, *steps):
    return [CheckpointId(attempt, step) for step in steps]


def reasons(verdicts):
    return {v.id.step: v.reason for v in verdicts}


def test_the_newest_stay():
    assert select_deletions(ids(1, 10, 20, 30, 40), ONE, 2) == ids(1, 10, 20)
    assert select_deletions(ids(1, 40, 10, 30, 20), ONE, 1) == ids(1, 10, 20, 30)
    assert select_deletions(ids(1, 10), ONE, 3) == []


def test_without_a_limit_everything_stays():
    assert select_deletions([*ids(1, 10, 20), *ids(2, 5)], Lineage({2: None}), None) == []


def test_every_nth_stays_for_good():
    verdicts = judge(ids(1, 0, 100, 150, 200, 250, 300), ONE, keep_last=1, keep_every_steps=100)
    assert reasons(verdicts) == {
        0: Reason.KEEP_EVERY,
        100: Reason.KEEP_EVERY,
        150: Reason.OLD,
        200: Reason.KEEP_EVERY,
        250: Reason.OLD,
        300: Reason.NEWEST,
    }


def test_protected_ones_stay():
    assert select_deletions(ids(1, 10, 20, 30), ONE, 1, protected=ids(1, 10)) == ids(1, 20)


def test_an_abandoned_branch_stays_until_its_successor_can_stand_alone():
    lineage = lineage_of([Attempt("r", 1, None), Attempt("r", 2, CheckpointId(1, 50))])
    old, new = ids(1, 40, 50, 60, 100), ids(2, 60, 70)
    assert reasons(judge(old, lineage, keep_last=2)) == {
        40: Reason.KEEP_LAST,
        50: Reason.NEWEST,
        60: Reason.BRANCH_YOUNG,
        100: Reason.BRANCH_YOUNG,
    }
    assert select_deletions([*old, new[0]], lineage, 2) == ids(1, 40)
    assert select_deletions([*old, *new], lineage, 2) == ids(1, 40, 50, 60, 100)


def test_abandoned_steps_do_not_count_towards_keep_last():
    lineage = lineage_of([Attempt("r", 1, None), Attempt("r", 2, CheckpointId(1, 50))])
    assert select_deletions([*ids(1, 30, 40, 50, 90, 100), *ids(2, 60)], lineage, 3) == ids(1, 30)


def test_an_attempt_wholly_abandoned():
    lineage = lineage_of([Attempt("r", n, CheckpointId(1, 50) if n > 1 else None) for n in (1, 2, 3)])
    committed = [*ids(1, 50), *ids(2, 60, 70), *ids(3, 60)]
    assert select_deletions(committed, lineage, 1) == [*ids(1, 50), *ids(2, 60, 70)]
    assert select_deletions(committed, lineage, 2) == []


def test_with_nothing_on_the_lineage_all_stays():
    assert select_deletions(ids(1, 10, 20), Lineage({2: None}), 1) == []


@given(
    st.lists(st.builds(CheckpointId, st.integers(1, 4), st.integers(0, 30)), unique=True),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 10),
    st.sets(st.builds(CheckpointId, st.integers(1, 4), st.integers(0, 30)), max_size=3),
)
def test_whatever_the_settings(committed, forks, keep_last, keep_every_steps, protected):
    attempts = [Attempt("r", n + 1, CheckpointId(n, forks[n - 1]) if n else None) for n in range(4)]
    lineage = lineage_of(attempts)
    gone = select_deletions(committed, lineage, keep_last, keep_every_steps, protected)
    kept = set(committed) - set(gone)
    assert gone == sorted(set(gone))
    assert set(gone) <= set(committed)
    assert not set(gone) & protected
    on = sorted(c for c in committed if c in lineage)
    assert set(on[-(keep_last or len(on)) :]) <= kept
    assert not committed or kept
    assert select_deletions(sorted(kept), lineage, keep_last, keep_every_steps, protected) == [] or keep_last is None


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_reads_as_words(reason):
    assert reason.value[0].islower()

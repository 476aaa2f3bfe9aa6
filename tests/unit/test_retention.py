"""Retention: what goes, what stays, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.identity import Attempt, CheckpointId, Lineage, lineage_of
from holdfast.model.notes import Notes
from holdfast.model.place import Keep
from holdfast.policy.retention import Reason, judge, select_deletions

ONE = Lineage({1: None})


def ids(attempt, *steps):
    return [CheckpointId(attempt, step) for step in steps]


def reasons(verdicts):
    return {v.id.step: v.reason for v in verdicts}


def test_the_newest_stay():
    assert select_deletions(ids(1, 10, 20, 30, 40), ONE, Keep(2)) == ids(1, 10, 20)
    assert select_deletions(ids(1, 40, 10, 30, 20), ONE, Keep(1)) == ids(1, 10, 20, 30)
    assert select_deletions(ids(1, 10), ONE, Keep(3)) == []


def test_without_a_limit_everything_stays():
    assert select_deletions([*ids(1, 10, 20), *ids(2, 5)], Lineage({2: None}), Keep()) == []


def test_every_nth_stays_for_good():
    verdicts = judge(ids(1, 0, 100, 150, 200, 250, 300), ONE, Keep(1, 100))
    assert reasons(verdicts) == {
        0: Reason.KEEP_EVERY,
        100: Reason.KEEP_EVERY,
        150: Reason.OLD,
        200: Reason.KEEP_EVERY,
        250: Reason.OLD,
        300: Reason.NEWEST,
    }


def test_protected_ones_stay():
    assert select_deletions(ids(1, 10, 20, 30), ONE, Keep(1), protected=ids(1, 10)) == ids(1, 20)


def test_an_abandoned_branch_stays_until_its_successor_can_stand_alone():
    lineage = lineage_of([Attempt("r", 1, None), Attempt("r", 2, CheckpointId(1, 50))])
    old, new = ids(1, 40, 50, 60, 100), ids(2, 60, 70)
    assert reasons(judge(old, lineage, Keep(2))) == {
        40: Reason.KEEP_LAST,
        50: Reason.NEWEST,
        60: Reason.BRANCH_YOUNG,
        100: Reason.BRANCH_YOUNG,
    }
    assert select_deletions([*old, new[0]], lineage, Keep(2)) == ids(1, 40)
    assert select_deletions([*old, *new], lineage, Keep(2)) == ids(1, 40, 50, 60, 100)


def test_abandoned_steps_do_not_count_towards_keep_last():
    lineage = lineage_of([Attempt("r", 1, None), Attempt("r", 2, CheckpointId(1, 50))])
    assert select_deletions([*ids(1, 30, 40, 50, 90, 100), *ids(2, 60)], lineage, Keep(3)) == ids(1, 30)


def test_an_attempt_wholly_abandoned():
    lineage = lineage_of([Attempt("r", n, CheckpointId(1, 50) if n > 1 else None) for n in (1, 2, 3)])
    committed = [*ids(1, 50), *ids(2, 60, 70), *ids(3, 60)]
    assert select_deletions(committed, lineage, Keep(1)) == [*ids(1, 50), *ids(2, 60, 70)]
    assert select_deletions(committed, lineage, Keep(2)) == []


def test_with_nothing_on_the_lineage_all_stays():
    assert select_deletions(ids(1, 10, 20), Lineage({2: None}), Keep(1)) == []


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
    gone = select_deletions(committed, lineage, Keep(keep_last, keep_every_steps), protected=protected)
    kept = set(committed) - set(gone)
    assert gone == sorted(set(gone))
    assert set(gone) <= set(committed)
    assert not set(gone) & protected
    on = sorted(c for c in committed if c in lineage)
    assert set(on[-(keep_last or len(on)) :]) <= kept
    assert not committed or kept
    assert (
        select_deletions(sorted(kept), lineage, Keep(keep_last, keep_every_steps), protected=protected) == []
        or keep_last is None
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_reads_as_words(reason):
    assert reason.value[0].islower()


# By age and by metric -------------------------------------------------------------------------------------------------
HOUR, YEAR = 3600, 365 * 86400


def noted(checkpoints, times_s=(), **metrics):
    """Notes of each, by position."""
    times_s = times_s or [1_700_000_000] * len(checkpoints)
    rows = [tuple((name, values[n]) for name, values in metrics.items()) for n in range(len(checkpoints))]
    pairs = zip(checkpoints, times_s, rows, strict=True)
    return {c: Notes(t, tuple(p for p in row if p[1] is not None)) for c, t, row in pairs}


def hourly(n, start_s=1_700_000_000):
    return [start_s + HOUR * i for i in range(n)]


def test_what_is_younger_stays():
    steps = ids(1, *range(48))
    gone = select_deletions(steps, ONE, Keep(for_s=6 * HOUR), notes=noted(steps, hourly(48)))
    assert gone == ids(1, *range(42)), "the newest is 47; 42 is 5 hours older, 41 is 6"


@pytest.mark.parametrize("jump_s", [YEAR, -YEAR, 10 * YEAR, -10 * YEAR, 5 * HOUR])
@pytest.mark.parametrize("at", [1, 20, 46, 47])
def test_a_clock_that_jumps_costs_at_most_half_of_the_time(jump_s, at):
    steps = ids(1, *range(48))
    times = [t + (jump_s if n >= at else 0) for n, t in enumerate(hourly(48))]
    gone = set(select_deletions(steps, ONE, Keep(for_s=12 * HOUR), notes=noted(steps, times)))
    kept = {c.step for c in steps} - {c.step for c in gone}
    assert kept >= set(range(42, 48)), "what was saved within the last 6 hours"
    assert len(kept) <= 13


def test_a_clock_that_jumps_there_and_back_deletes_no_more():
    steps = ids(1, *range(48))
    times = [t + (YEAR if n % 10 == 0 else 0) for n, t in enumerate(hourly(48))]
    kept = set(steps) - set(select_deletions(steps, ONE, Keep(for_s=12 * HOUR), notes=noted(steps, times)))
    assert {c.step for c in kept} >= {44, 45, 46, 47}


def test_after_a_pause_of_a_year_the_newest_two_stay():
    steps = ids(1, 1, 2, 3, 4)
    times = [0, HOUR, 2 * HOUR, YEAR]
    assert select_deletions(steps, ONE, Keep(for_s=HOUR), notes=noted(steps, times)) == ids(1, 1, 2)


def test_what_says_no_time_is_as_old_as_the_next():
    steps = ids(1, 1, 2, 3)
    assert select_deletions(steps, ONE, Keep(for_s=HOUR)) == []
    assert select_deletions(steps, ONE, Keep(for_s=HOUR), notes=noted(steps[2:], [9 * HOUR])) == []


def test_the_best_stay_and_the_newest():
    steps = ids(1, 1, 2, 3, 4, 5, 6)
    notes = noted(steps, loss=[0.5, 0.1, 0.4, 0.2, 0.9, 0.8])
    keep = Keep(best=2, metric="loss")
    assert reasons(judge(steps, ONE, keep, notes=notes)) == {
        1: Reason.OLD, 2: Reason.KEEP_BEST, 3: Reason.OLD, 4: Reason.KEEP_BEST, 5: Reason.OLD, 6: Reason.NEWEST,
    }  # fmt: skip
    most = Keep(best=2, metric="loss", mode="max")
    assert select_deletions(steps, ONE, most, notes=notes) == ids(1, 1, 2, 3, 4)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_no_number_is_never_best(mode):
    steps = ids(1, 1, 2, 3, 4, 5)
    notes = noted(steps, loss=[float("nan"), float("inf"), 0.5, None, float("-inf")])
    gone = select_deletions([*steps, CheckpointId(1, 6)], ONE, Keep(best=3, metric="loss", mode=mode), notes=notes)
    assert gone == ids(1, 1, 2, 4, 5)


def test_of_equals_the_newer_is_better():
    steps = ids(1, 1, 2, 3, 4)
    notes = noted(steps, acc=[0.5, 0.5, 0.5, 0.1])
    assert select_deletions(steps, ONE, Keep(best=1, metric="acc", mode="max"), notes=notes) == ids(1, 1, 2)


def test_rules_add_up():
    steps = ids(1, *range(10))
    notes = noted(steps, hourly(10), loss=[9, 0.1, 9, 9, 9, 9, 9, 9, 9, 9])
    keep = Keep(last=2, every_steps=5, for_s=3 * HOUR, best=1, metric="loss")
    assert {c.step for c in set(steps) - set(select_deletions(steps, ONE, keep, notes=notes))} == {0, 1, 5, 7, 8, 9}


def test_multiples_alone_are_no_limit():
    assert select_deletions(ids(1, 1, 2, 3), ONE, Keep(every_steps=2)) == []


def test_abandoned_ones_are_never_best_and_stay_until_the_new_branch_has_lasted():
    lineage = lineage_of([Attempt("r", 1, None), Attempt("r", 2, CheckpointId(1, 10))])
    old, new = ids(1, 10, 20), ids(2, 20, 30, 40)
    notes = noted([*old, *new], [0, HOUR, 2 * HOUR, 3 * HOUR, 4 * HOUR], loss=[9, 0.1, 5, 6, 7])
    best_one = Keep(best=1, metric="loss")
    assert select_deletions([*old, *new], lineage, best_one, notes=notes) == [*ids(1, 10, 20), *ids(2, 30)]
    for for_s, stays in ((3 * HOUR, True), (2 * HOUR, False)):
        gone = select_deletions([*old, *new], lineage, Keep(for_s=for_s), notes=notes)
        assert (CheckpointId(1, 20) not in gone) == stays


times = st.one_of(st.none(), st.integers(0, 2**34))


@given(
    saves=st.lists(st.tuples(times, st.floats()), min_size=1, max_size=30),
    keep=st.builds(
        Keep,
        last=st.none() | st.integers(1, 3),
        for_s=st.none() | st.floats(1, 1e9),
        best=st.none() | st.integers(1, 3),
        metric=st.just("m"),
        mode=st.sampled_from(["min", "max"]),
    ),
)
def test_whatever_the_clock_says_the_newest_stays_and_no_rule_takes_from_another(saves, keep):
    steps = ids(1, *range(len(saves)))
    notes = {c: Notes(t, (("m", m),)) for c, (t, m) in zip(steps, saves, strict=True) if t is not None}
    gone = set(select_deletions(steps, ONE, keep, notes=notes))
    assert steps[-1] not in gone
    if keep.last or keep.for_s:
        assert not gone & set(steps[-(keep.last or 1) :])
    if keep.for_s:
        assert not gone & set(steps[-2:])
    kept = [c for c in steps if c not in gone]
    for rule in (Keep(last=keep.last), Keep(for_s=keep.for_s), Keep(best=keep.best, metric="m", mode=keep.mode)):
        alone = set(select_deletions(steps, ONE, rule, notes=notes)) if rule.limits else set(steps)
        assert gone <= alone, "each rule keeps what it keeps alone"
    assert set(select_deletions(kept, ONE, keep, notes=notes)) <= set(kept[:-1])

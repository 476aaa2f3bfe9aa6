"""Calls that cannot mean anything are refused, and cost nothing."""

import pytest

from holdfast.errors import (
    ClosedError,
    NotDueError,
    StepExistsError,
    UsageError,
)

torch = pytest.importorskip("torch")

from tests.integration.place import due  # noqa: E402
from tests.integration.refusals import filled, load, refused  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_step_saved_twice_or_backwards(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0))
        ckpt.save(5, filled(5))
        with refused(StepExistsError, "step 5", within_s=20):
            ckpt.save(5, filled(6))
        with refused(StepExistsError, "step 4", within_s=20):
            ckpt.save(4, filled(4))
    assert load(place.url) == 5


@pytest.mark.parametrize("step", [-1, 1.0, True, "7", None])
def test_a_step_that_is_no_step(place, step):
    with holdfast.Checkpointer(place.url) as ckpt, refused(UsageError, repr(step), within_s=20):
        ckpt.save(step, filled(1))


def test_calls_after_close(place):
    ckpt = holdfast.Checkpointer(place.url)
    ckpt.load(filled(0))
    saved = due(ckpt.save(1, filled(1)))
    ckpt.close()
    ckpt.close()
    for call in (lambda: ckpt.save(2, filled(2)), lambda: ckpt.load(filled(0)), ckpt.steps, ckpt.should_stop):
        with refused(ClosedError, within_s=20):
            call()
    assert saved.step == 1
    assert load(place.url) == 1


def test_a_save_without_a_load_where_a_run_is(place):
    """It is not refused, for somebody may want it; what it abandons is said once."""
    with holdfast.Checkpointer(place.url) as ckpt:
        due(ckpt.save(1, filled(1))).wait("durable", timeout_s=20)
    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.warns(RuntimeWarning, match=r"starts from nothing .* up to step 1 \(attempt 1\)\n.*load\(state\)"):
            ckpt.save(1, filled(11))
        ckpt.save(2, filled(12))
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(filled(0)) == 2
        ckpt.save(3, filled(13))


def test_waiting_for_what_is_not_due(place):
    config = holdfast.Config(
        tiers=(holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(place.url, every_steps=10))
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        saved = due(ckpt.save(1, filled(1)))
        for what in ("durable", "posix", "no-such-tier"):
            with refused(NotDueError, what, within_s=20):
                saved.wait(what)
        with pytest.raises(NotDueError, match="no tier is called 'durble'") as caught:
            saved.wait("durble")
        assert "durable, posix" in str(caught.value.hint)
        saved.wait("memory", timeout_s=20)

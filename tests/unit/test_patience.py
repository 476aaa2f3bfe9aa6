"""Looks at a tier that hangs end in time, and do not pile up."""

import threading
import time

import pytest

from holdfast.agent.patience import Patience, PatientTier
from holdfast.errors import NotFoundError, TierUnavailableError
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers import Fault, Faults, Hang


@pytest.fixture
def patience():
    made = Patience("near")
    yield made
    made.close()


def test_what_hangs_is_left_and_not_asked_again_until_it_answers(patience):
    answers, asked = threading.Event(), []

    def hang():
        asked.append(1)
        answers.wait(30)
        return "at last"

    began = time.monotonic()
    with pytest.raises(TierUnavailableError, match=r"did not answer within 0\.05 s") as caught:
        patience.look(hang, 0.05)
    assert (caught.value.tier, caught.value.retryable) == ("near", True)
    for _ in range(10):
        with pytest.raises(TierUnavailableError, match="still does not answer"):
            patience.look(hang, 30.0)
    assert time.monotonic() - began < 10
    assert len(asked) == 1
    answers.set()
    while patience._hangs and not patience._hangs.done():
        time.sleep(0.001)
    assert patience.look(hang, 30.0) == "at last"


def test_errors_and_answers_are_those_of_the_tier(patience):
    inner = Faults(MemoryTier(HeapSlots(), name="near"))
    tier = PatientTier(inner, patience, 1.0)
    tier.put("a/b", memoryview(b"x"))
    assert [i.key for i in tier.list("a/")] == ["a/b"]
    assert read_all(tier, "a/b") == b"x"
    with pytest.raises(NotFoundError):
        tier.size("a/c")
    answers = threading.Event()
    inner.add(Fault("list", Hang(30.0, answers.wait)))
    with pytest.raises(TierUnavailableError):
        tier.list("a/")
    with pytest.raises(TierUnavailableError):
        tier.size("a/b")
    answers.set()


@pytest.mark.parametrize("answer", ["at last", NotFoundError("gone")])
def test_what_comes_too_late_is_passed_on_and_an_error_is_not(patience, answer):
    answers = threading.Event()
    late: list[str] = []

    def hang():
        answers.wait(30)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patience.look(lambda: "in time", 30.0, late=late.append) == "in time"
    with pytest.raises(TierUnavailableError):
        patience.look(hang, 0.05, late=late.append)
    assert not late
    answers.set()
    patience.close()
    assert late == ([] if isinstance(answer, Exception) else ["at last"])

"""The two machines against everything that can happen, in any order; and defects planted into them, each one found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.property.lifecycle_defects import DEFECTS
from tests.property.lifecycle_machine import Lifecycle

LENGTH = 50
ENOUGH = 2000
"""Examples within which every planted defect is found; the first that fails ends it. How many the rarest take depends
on the examples drawn, and these on what other tests have loaded."""


def run_it(**more: Any) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    more |= {"stateful_step_count": LENGTH, "deadline": None, "report_multiple_bugs": False}
    run_state_machine_as_test(Lifecycle, settings=settings(suppress_health_check=checks, **more))


@pytest.mark.timeout(7200)  # HYPOTHESIS_PROFILE=explore runs twenty times as many
def test_nothing_goes_wrong():
    # `ci` draws the same examples each time, as long as the same modules of ours are loaded: Hypothesis takes constants
    # from them. It draws others when other tests ran before.
    run_it(max_examples=2 * settings().max_examples)


@pytest.mark.timeout(600)  # the rarest takes most of the examples
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch):
    plant, objection = DEFECTS[defect]
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=objection):
        # Always the same examples, and the first that fails as it is: it is to be found, not understood.
        run_it(max_examples=ENOUGH, derandomize=True, database=None, phases=[Phase.generate])

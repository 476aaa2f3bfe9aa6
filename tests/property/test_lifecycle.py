"""The two machines against everything that can happen, in any order; and defects planted into them, each found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.property.lifecycle_machine import Lifecycle

LENGTH = 50


def run_it(**more: Any) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Lifecycle, settings=settings(stateful_step_count=LENGTH, deadline=None, suppress_health_check=checks, **more)
    )


@pytest.mark.timeout(3600)
def test_nothing_goes_wrong():
    run_it(max_examples=3 * settings().max_examples)

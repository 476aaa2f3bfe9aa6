"""The step a caller names."""

from __future__ import annotations

import operator
from typing import Any

from holdfast.errors import UsageError


def whole_step(step: Any, *, hint: str) -> int:
    """The step as an int: numpy's whole numbers count, True and False do not.

    Raises: UsageError for what is no whole number from 0 up.
    """
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise UsageError(f"step {step!r} is not a whole number from 0 up", hint=hint)
    return number

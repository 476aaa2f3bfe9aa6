"""What counts as a step."""

import re
from typing import Any

import numpy
import pytest

pytest.importorskip("torch")

from holdfast.errors import UsageError
from holdfast.trainer.steps import whole_step

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("step", [20, numpy.int64(20), numpy.uint8(20)])
def test_whole_numbers_of_any_kind_are_steps(step):
    found = whole_step(step, hint="")
    assert (found, type(found)) == (20, int)


@pytest.mark.parametrize("step", [True, numpy.True_, -1, numpy.int64(-1), 2.0, numpy.float32(2), "2", None])
def test_anything_else_is_none(step: Any):
    with pytest.raises(UsageError, match=re.escape(repr(step))) as caught:
        whole_step(step, hint="pass the training step")
    assert caught.value.hint == "pass the training step"

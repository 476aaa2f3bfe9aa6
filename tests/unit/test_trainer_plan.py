"""What a plan of stages keeps, and what it lets go of."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from holdfast.trainer.plan import StagePlan  # noqa: E402
from holdfast.trainer.ranks import Ranks, Talk  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_plan_that_forgets_lets_go_of_the_state():
    model, loose = torch.nn.Linear(3, 3), torch.zeros(3)
    seen = [weakref.ref(x) for x in (model, model.weight, loose)]
    plan = StagePlan("run7", Ranks(None, 1.0))
    plan.learn({"model": model, "x": loose}, Talk(None, 0, 1))
    del model, loose
    gc.collect()
    assert None not in [ref() for ref in seen]
    plan.forget()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3

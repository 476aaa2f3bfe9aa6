"""What a plan of stages keeps, and what it lets go of."""

import gc
import mmap
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from holdfast.errors import CapacityError  # noqa: E402
from holdfast.format.layout import lay_out  # noqa: E402
from holdfast.trainer import plan as module  # noqa: E402
from holdfast.trainer.plan import StagePlan  # noqa: E402
from holdfast.trainer.ranks import Ranks, Talk  # noqa: E402
from holdfast.wire.pages import PAGE_BYTES, SlotPage  # noqa: E402

pytestmark = pytest.mark.torch


class Room:
    """A slot in memory that cannot be unmapped while anybody looks into it."""

    def __init__(self, size_bytes):
        self.memory = mmap.mmap(-1, size_bytes)
        self.page = SlotPage(memoryview(bytearray(PAGE_BYTES)))

    def room(self, size_bytes):
        return memoryview(self.memory)[:size_bytes]


@pytest.fixture
def session():
    """Of an agent that deals whatever is asked for."""
    slots = SimpleNamespace(unmapped=0, has=lambda slot: True)
    made: Any = SimpleNamespace(slots=slots, prepare=lambda *sizes: None)
    return made


@pytest.fixture
def plan():
    return StagePlan("run7", Ranks(None, 1.0))


def save(plan, session, state, *, step=1):
    """The slots filled, by number of the image."""
    plan.follow(state)
    plan.look_for_changes(session, 1)
    slots = [Room(size_bytes) for _, size_bytes in sorted(plan.to_stage)]
    plan.stage(slots, attempt=1, step=step, due_mask=1)
    return slots


def test_a_plan_that_forgets_lets_go_of_the_state(plan, session):
    model, loose = torch.nn.Linear(600, 600), torch.zeros(3)
    seen = [weakref.ref(x) for x in (model, model.weight, loose)]
    state = {"model": model, "x": loose}
    plan.learn(state, Talk(None, 0, 1))
    save(plan, session, state)
    del model, loose, state
    gc.collect()
    assert None not in [ref() for ref in seen]
    plan.forget()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def with_frozen():
    """A state of two images: what steps share is 1.4 MB."""
    base, adapter = torch.nn.Linear(600, 600), torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"base": base, "norm": torch.nn.BatchNorm1d(600), "adapter": adapter})
    return {"model": model, "optim": torch.optim.SGD(adapter.parameters(), lr=0.1)}


def test_the_memory_of_slots_that_are_gone_is_free_with_the_next_save(plan, session):
    state = with_frozen()
    plan.learn(state, Talk(None, 0, 1))
    slots = save(plan, session, state)
    assert len(slots) == 2
    for slot in slots:
        with pytest.raises(BufferError):
            slot.memory.close()
    session.slots.unmapped, session.slots.has = 1, lambda slot: False
    again = save(plan, session, state, step=2)
    assert len(again) == 2, "what steps share is gone, too"
    for slot in slots:
        slot.memory.close()


@pytest.fixture
def full(monkeypatch):
    """Images of every step have no room for what they are to hold."""

    def refuse(*args, image=0, **options):
        if not image:
            raise CapacityError("the header would pass its limit")
        return lay_out(*args, image=image, **options)

    with monkeypatch.context() as patch:
        yield lambda: patch.setattr(module, "lay_out", refuse)


def test_a_layout_that_cannot_be_made_leaves_both_images_as_they_were(plan, full):
    state = with_frozen()
    plan.learn(state, Talk(None, 0, 1))
    before = plan.sizes
    state["model"]["base"] = torch.nn.Linear(700, 700)
    full()
    with pytest.raises(CapacityError):
        plan.follow(state)
    assert plan.sizes == before


def test_what_changes_stays_where_it_is_if_no_layout_has_room_for_it(plan, session, full):
    state = with_frozen()
    plan.learn(state, Talk(None, 0, 1))
    save(plan, session, state)
    before = plan.sizes
    state["model"]["norm"].running_mean += 1
    full()
    assert len(save(plan, session, state, step=2)) == 2, "it is staged anew with the rest"
    assert plan.sizes == before

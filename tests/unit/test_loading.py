"""The agent's part of a load: pins are given back, whatever fails meanwhile."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.agent.fetching import Fetching
from holdfast.agent.loading import Loading
from holdfast.agent.shelf import View
from holdfast.errors import LoadError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageRecord
from holdfast.wire import messages

OLD, NEW = CheckpointId(1, 10), CheckpointId(1, 20)


def record(rank, checkpoint=NEW):
    return ImageRecord(ImageId(checkpoint.attempt, checkpoint.step, rank, 0), 4096, rank)


class Executor:
    """Notes pins and loads instead of telling the machines; `in_slots` is what memory holds."""

    def __init__(self):
        self.node = SimpleNamespace(slots=list)
        self.run = SimpleNamespace(steps=list)
        self.in_slots: dict[int, ImageRecord] = {}
        self.pins: Counter[int] = Counter()
        self.loads: Counter[CheckpointId] = Counter()

    def held(self):
        return dict(self.in_slots)

    def whole(self):
        return set()

    def tell_node(self, event):
        change = {events.Pinned: 1, events.Unpinned: -1}[type(event)]
        self.pins[event.slot] += change
        assert self.pins[event.slot] >= 0

    def tell_run(self, event):
        self.loads[event.checkpoint] += {events.LoadBegun: 1, events.LoadEnded: -1}[type(event)]


async def fetch(fetching, rank, checkpoint, record, tiers):
    """Rank 1's image takes a moment; rank 0's cannot be had."""
    if record.id.rank == 0:
        raise LoadError("no copy is left")
    await asyncio.sleep(0.05)
    fetching._executor.in_slots[record.id.rank] = record
    return "posix"


@pytest.fixture
def executor():
    return Executor()


@pytest.fixture
def loads(executor, monkeypatch):
    """The part under test, on tiers that have two steps of two images each."""

    async def in_thread(work, *args):
        return work(*args)

    manifests = {c: SimpleNamespace(images=(record(0, c), record(1, c))) for c in (OLD, NEW)}
    host: Any = SimpleNamespace(in_thread=in_thread)
    shelf: Any = SimpleNamespace(
        view=lambda: View(Lineage({1: None}), 1, committed={c: ["posix"] for c in manifests}),
        manifest=lambda tier, checkpoint: manifests[checkpoint],
    )
    arena: Any = SimpleNamespace(slots={n: SimpleNamespace(page=SimpleNamespace(generation=1)) for n in range(2)})
    monkeypatch.setattr(Fetching, "_fetch", fetch)
    repairing: Any = SimpleNamespace(soon=lambda checkpoint, wounds: None, forget=lambda: None)
    return Loading(host, executor, arena, shelf, repairing)


def test_pins_are_given_back_when_one_of_several_fetches_fails(loads, executor):
    async def load():
        with pytest.raises(LoadError):
            await loads.fetch(messages.Fetch(NEW, 0))
        assert +executor.pins == Counter(), "the rank will not read it: the others' room must not be held up"
        await loads.unpinned(messages.Unpin(0))
        await asyncio.sleep(0.1)

    asyncio.run(load())
    assert +executor.pins == Counter()
    assert +executor.loads == Counter()


def test_nothing_is_pinned_for_a_rank_that_gave_up_meanwhile(loads, executor):
    executor.in_slots[0] = record(0)

    async def load():
        asking = asyncio.create_task(loads.fetch(messages.Fetch(NEW, 0)))
        await asyncio.sleep(0.02)
        await loads.unpinned(messages.Unpin(0))
        with pytest.raises(LoadError):
            await asking

    asyncio.run(load())
    assert +executor.pins == Counter()


def test_a_rank_that_takes_an_older_step_lets_go_of_the_newer_and_holds_off_its_deletion(loads, executor):
    executor.in_slots = {0: record(0), 1: record(1)}

    async def load():
        await loads.fetch(messages.Fetch(NEW, 0))
        await loads.fetch(messages.Fetch(NEW, 0))
        assert +executor.pins == Counter({0: 2, 1: 2})
        executor.in_slots = {0: record(0, OLD), 1: record(1, OLD)}
        await loads.fetch(messages.Fetch(OLD, 0))

    asyncio.run(load())
    assert +executor.pins == Counter({0: 1, 1: 1})
    assert +executor.loads == Counter({OLD: 1})
    loads.forget()
    assert +executor.pins == Counter()
    assert +executor.loads == Counter()

"""The agent's part of a load: pins are given back, whatever fails meanwhile."""

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.agent.claims import Standing
from holdfast.agent.contents import View
from holdfast.agent.fetching import Fetching
from holdfast.agent.loading import Loading
from holdfast.agent.readers import Readers
from holdfast.config import Config
from holdfast.errors import CapacityError, LoadError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageRecord
from holdfast.wire import messages
from holdfast.wire.pages import SlotState

OLD, NEW = CheckpointId(1, 10), CheckpointId(1, 20)


def record(rank, checkpoint=NEW):
    return ImageRecord(ImageId(checkpoint.attempt, checkpoint.step, rank, 0), 4096, rank)


class Executor:
    """Notes pins and loads instead of telling the machines; `in_slots` is what memory holds."""

    def __init__(self):
        self.node = SimpleNamespace(slots=list, checking=False)
        self.durable: set[CheckpointId] = set()
        self.run = SimpleNamespace(steps=list, committed=lambda tier: self.durable)
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
def manifests():
    """Two steps of two images each."""
    return {c: SimpleNamespace(images=(record(0, c), record(1, c))) for c in (OLD, NEW)}


@pytest.fixture
def loads(executor, manifests, monkeypatch):
    """The part under test, on a tier that has these steps."""

    async def in_thread(work, *args):
        return work(*args)

    settings = Config.from_url("/data/run7").resolve({})
    host: Any = SimpleNamespace(in_thread=in_thread, settings=settings)
    contents = SimpleNamespace(
        view=lambda: View(Standing(Lineage({1: None}), 1), committed={c: ["posix"] for c in manifests}),
        manifest=lambda tier, checkpoint: manifests[checkpoint],
    )
    claims: Any = SimpleNamespace(go_by=lambda standing: None)
    shelf: Any = SimpleNamespace(contents=contents, claiming=SimpleNamespace(claims=claims))
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


def test_older_memory_yields_to_a_fetch_that_finds_no_room(executor):
    told: list[Any] = []

    def take_loose(size_bytes):
        if not told:
            raise CapacityError("every slot is in use")
        return slot

    slot: Any = SimpleNamespace(ready=True, page=SimpleNamespace(generation=1, state=SlotState.FREE))
    arena: Any = SimpleNamespace(take_loose=take_loose, find=lambda *states: iter(()))
    executor.tell_node = told.append
    nobody: Any = None
    room = Fetching(nobody, executor, arena, nobody, Readers(executor), nobody)._room(4096)
    assert asyncio.run(room) is slot
    assert told == [events.RoomWanted()]
    assert slot.page.state == SlotState.FILLING


class Sources:
    """Tiers that answer when they are told to, room for what is read from them, and the fetching under test."""

    def __init__(self, executor):
        self.executor = executor
        self.asked: list[str] = []
        self.errors: dict[str, LoadError] = {}
        self.answers = {tier: threading.Event() for tier in ("near", "far", "third")}
        self.rooms: list[Any] = []
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.slots: dict[int, Any] = {}
        readers = Readers(executor)
        readers.begin(0, NEW)
        host: Any = SimpleNamespace(reported=lambda error: None)
        arena: Any = SimpleNamespace(slots=self.slots)
        tiers = SimpleNamespace(fetches=lambda tier: None)  # the pool of the event loop
        shelf: Any = SimpleNamespace(tiers=tiers, contents=SimpleNamespace(fetch=self.fetch))
        repairing: Any = SimpleNamespace(soon=lambda checkpoint, wounds: None)
        self.fetching = Fetching(host, executor, arena, shelf, readers, repairing)

    def fetch(self, tier, record, room):
        self.asked.append(tier)
        assert self.answers[tier].wait(60)
        if tier in self.errors:
            raise self.errors[tier]

    async def room(self, size_bytes):
        slot = SimpleNamespace(number=len(self.rooms), room=lambda n: None)
        slot.page = SimpleNamespace(state=SlotState.FILLING, generation=1)
        self.rooms.append(slot)
        self.slots[slot.number] = slot
        await self.has_room.wait()
        return slot

    def hold(self, rank, slot, record, *more):
        slot.page.state = SlotState.HELD
        self.executor.in_slots[slot.number] = record

    def bring(self, *tiers):
        return asyncio.create_task(self.fetching.bring(0, NEW, record(0), list(tiers)))

    async def until(self, found):
        deadline = asyncio.get_running_loop().time() + 30
        while not found():
            assert asyncio.get_running_loop().time() < deadline, (self.asked, self.rooms)
            await asyncio.sleep(0.005)

    def states(self):
        return [slot.page.state for slot in self.rooms]


@pytest.fixture
def sources(executor, monkeypatch):
    made = Sources(executor)
    monkeypatch.setattr(Fetching, "_room", lambda fetching, size_bytes: made.room(size_bytes))
    monkeypatch.setattr(Fetching, "_hold", lambda fetching, *args: made.hold(*args))
    return made


def test_a_fetch_that_hangs_is_not_waited_for_where_another_tier_has_a_copy(sources):
    async def load():
        first = sources.bring("near", "far")
        await sources.until(lambda: sources.asked == ["near"])
        sources.answers["far"].set()
        others = [sources.bring("far") for _ in range(2)]
        second, third = await asyncio.wait_for(asyncio.gather(*others), 30)
        sources.answers["near"].set()
        return second, third, await asyncio.wait_for(first, 30)

    second, third, first = asyncio.run(load())
    assert (sources.asked, second.source, third.source) == (["near", "far"], "far", "far")
    assert (first.slot, second.slot) == (1, 1), "what came late is not held besides"
    assert sources.states() == [SlotState.FREE, SlotState.HELD]


def test_a_fetch_that_hung_and_fails_reads_nothing_beside_the_one_begun_meanwhile(sources):
    sources.errors["near"] = LoadError("sick")

    async def load():
        first = sources.bring("near", "far")
        await sources.until(lambda: sources.asked == ["near"])
        second = sources.bring("far")
        await sources.until(lambda: sources.asked == ["near", "far"])
        sources.answers["near"].set()
        await sources.until(lambda: SlotState.FREE in sources.states())
        third = sources.bring("far")
        await asyncio.sleep(0)
        sources.answers["far"].set()
        return await asyncio.wait_for(asyncio.gather(first, second, third), 30)

    assert [image.slot for image in asyncio.run(load())] == [1, 1, 1]
    assert sources.asked == ["near", "far"]
    assert sources.states() == [SlotState.FREE, SlotState.HELD, SlotState.FREE]


def test_a_fetch_that_waits_for_room_yields_to_one_begun_meanwhile(sources):
    sources.errors["near"] = LoadError("sick")

    async def load():
        first = sources.bring("near", "third")
        await sources.until(lambda: sources.asked == ["near"])
        sources.has_room.clear()
        sources.answers["near"].set()
        await sources.until(lambda: len(sources.rooms) == 2)
        second = sources.bring("far")
        await sources.until(lambda: len(sources.rooms) == 3)
        for tier in ("far", "third"):
            sources.answers[tier].set()
        sources.has_room.set()
        return await asyncio.wait_for(asyncio.gather(first, second), 30)

    assert [image.slot for image in asyncio.run(load())] == [2, 2]
    assert sources.asked == ["near", "far"]


def test_where_both_fail_what_is_left_is_read_by_a_third(sources):
    sources.errors.update(near=LoadError("sick"), far=LoadError("sick, too"))

    async def load():
        first = sources.bring("near", "third")
        await sources.until(lambda: sources.asked == ["near"])
        second = sources.bring("far")
        await sources.until(lambda: sources.asked == ["near", "far"])
        sources.answers["near"].set()
        await sources.until(lambda: SlotState.FREE in sources.states())
        for tier in ("far", "third"):
            sources.answers[tier].set()
        with pytest.raises(LoadError, match="sick, too"):
            await asyncio.wait_for(second, 30)
        return await asyncio.wait_for(first, 30)

    assert asyncio.run(load()).source == "third"
    assert sources.asked == ["near", "far", "third"]


# What a launch stands on ----------------------------------------------------------------------------------------------
@pytest.fixture
def in_memory(executor):
    executor.in_slots = {0: record(0), 1: record(1)}
    return executor.in_slots


async def load(loads, checkpoint=NEW, *, loaded=True):
    await loads.fetch(messages.Fetch(checkpoint, 0))
    await loads.unpinned(messages.Unpin(0, loaded=loaded))


def test_what_is_in_memory_alone_stays_until_the_attempt_is_claimed(loads, executor, in_memory):
    asyncio.run(load(loads))
    assert +executor.pins == Counter({0: 1, 1: 1})
    assert +executor.loads == Counter(), "it may be deleted meanwhile: nobody reads it"
    loads.claimed()
    assert +executor.pins == Counter()
    loads.claimed()
    loads.unpin(0)


def test_what_stands_on_a_tier_need_not_stay(loads, executor, in_memory):
    executor.durable = {NEW}
    asyncio.run(load(loads))
    assert +executor.pins == Counter()


def test_a_load_that_failed_stands_on_nothing(loads, executor, in_memory):
    asyncio.run(load(loads, loaded=False))
    assert +executor.pins == Counter()
    assert +executor.loads == Counter()


def test_the_same_step_again_is_never_let_go_and_another_takes_its_place(loads, executor, in_memory):
    async def again():
        await load(loads)
        await loads.fetch(messages.Fetch(NEW, 0))
        assert all(executor.pins[slot] >= 1 for slot in (0, 1))
        await loads.unpinned(messages.Unpin(0, loaded=True))
        assert all(executor.pins[slot] >= 1 for slot in (0, 1))
        in_memory.update({2: record(0, OLD), 3: record(1, OLD)})
        await load(loads, OLD)

    loads._arena.slots.update({n: SimpleNamespace(page=SimpleNamespace(generation=1)) for n in (2, 3)})
    asyncio.run(again())
    assert +executor.pins == Counter({2: 1, 3: 1})
    loads.claimed()
    assert +executor.pins == Counter()
    assert +executor.loads == Counter()


def test_a_new_launch_stands_on_nothing_yet(loads, executor, in_memory):
    asyncio.run(load(loads))
    loads.forget()
    assert +executor.pins == Counter()


def test_a_rank_that_loads_again_keeps_its_pins_when_another_has_claimed(loads, executor, in_memory):
    async def both():
        await load(loads)
        await loads.fetch(messages.Fetch(NEW, 0))
        loads.claimed()
        assert all(executor.pins[slot] >= 1 for slot in (0, 1))
        await loads.unpinned(messages.Unpin(0))

    asyncio.run(both())
    assert +executor.pins == Counter()


def test_a_load_says_why_it_cannot_be_told_what_is_newest(loads):
    view = View(Standing(Lineage({}), 0), unknown=LoadError("the claims cannot be read"), empty=False)
    loads._shelf.contents.view = lambda: view
    with pytest.raises(LoadError, match="the claims cannot be read"):
        asyncio.run(loads.loadable(step=None, below=None))


# Where a rank may read by itself -------------------------------------------------------------------------------------
def place(loads, rank=0):
    return asyncio.run(loads.place(messages.Fetch(NEW, rank))).tier


def test_a_rank_may_read_by_itself_what_is_on_a_tier_alone_and_holds_off_its_deletion(loads, executor):
    assert place(loads) == "posix"
    assert +executor.loads == Counter({NEW: 1})
    loads.unpin(0)
    assert +executor.loads == Counter()


def test_what_stands_in_memory_in_part_is_brought_there(loads, executor):
    executor.in_slots[0] = record(0)
    assert place(loads) is None


def test_what_steps_share_is_brought_into_memory(loads, manifests):
    shared = ImageRecord(ImageId(1, 10, 0, 1), 4096, 7)
    manifests[NEW].images = (*manifests[NEW].images, shared)
    assert place(loads) is None


def test_a_tier_with_a_copy_that_was_found_bad_is_none_to_read_from(loads):
    loads._fetching._bad.add(("posix", record(1).id))
    assert place(loads) is None
    loads._fetching.forget()
    assert place(loads) == "posix"


def test_a_rank_that_is_told_of_no_copy_reads_nothing(loads, executor):
    loads._shelf.contents.view = lambda: View(Standing(Lineage({1: None}), 1))
    with pytest.raises(LoadError):
        place(loads)
    assert +executor.loads == Counter()

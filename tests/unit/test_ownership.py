"""Catching up after a claim, with real tiers of which one hangs: the others, and what the run machine has to know, go
on without it."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit import store_fixtures as store

from holdfast.agent import claiming, open_tiers
from holdfast.agent.ownership import Ownership
from holdfast.agent.repairing import Repairing
from holdfast.agent.shelf import Shelf
from holdfast.config import Config, TierConfig
from holdfast.errors import HoldfastError, TierError
from holdfast.lifecycle import events
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.catalog import Wound, read_catalog
from holdfast.tiers.wrappers import Fault, Faults, Hang, Raise
from holdfast.wire import messages

LOOK_S = 1.0
"""What answers has to be looked at within this, however busy the machine is; what hangs costs a test as much."""
LONG_S = 30.0
STEP = CheckpointId(1, 10)


class Executor:
    """The run machine without those who perform its actions."""

    def __init__(self, settings):
        self.run = RunMachine(settings.tiers, idle_s=900.0)
        self.told = []

    def tell_run(self, event):
        self.told.append(event)
        self.run.handle(event)

    def tell_node(self, event):
        raise AssertionError(event)

    def held(self):
        return {}


class Agent:
    """As much of an agent as claims attempts, catches up and repairs."""

    def __init__(self, root, tiers):
        (root / "arena").mkdir()
        config = Config(tiers=(TierConfig("memory:"), *tiers))
        self.settings = config.resolve({})
        self.shelf = Shelf(self.settings, root / "arena")
        self.executor = Executor(self.settings)
        self.errors, self.tasks = [], set()
        self.page = SimpleNamespace(attempt=0, superseded_by=0)
        host: Any = self
        executor: Any = self.executor
        arena: Any = SimpleNamespace(root=root / "arena", slots={})
        page: Any = self.page
        self.ownership = Ownership(host, executor, arena, self.shelf, page)
        self.repairing = Repairing(host, executor, arena, self.shelf, self.ownership.read_catalogs)
        self.hangs = threading.Event()

    def fault(self, tier, *faults):
        """From now on something happens on a tier."""
        faulty = Faults(self.shelf.tiers[tier], *faults)
        self.shelf.tiers._tiers[tier] = faulty
        return faulty

    def hang(self, tier, call, **more):
        return self.fault(tier, Fault(call, Hang(LONG_S, self.hangs.wait), **more))

    def later(self, work):
        task = asyncio.get_running_loop().create_task(self._told(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _told(self, work):
        try:
            await work
        except HoldfastError as e:
            self.reported(e.to_dict())

    async def in_thread(self, work, *args):
        return await asyncio.get_running_loop().run_in_executor(self.shelf.pool, work, *args)

    def reported(self, error):
        self.errors.append((error.get("tier"), error["message"]))

    def attempt_claimed(self):
        pass

    async def claim(self):
        return (await self.ownership.claim(messages.ClaimAttempt(None))).attempt

    async def until(self, found, what):
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LONG_S
        while not found():
            assert loop.time() < end_s, what
            await asyncio.sleep(0.01)

    async def idle(self):
        await self.until(lambda: not self.tasks, "all is done")

    def committed(self, tier):
        return [e.id.step for e in read_catalog(self.shelf.tiers[tier]) if e.loadable]

    def close(self):
        self.hangs.set()
        self.shelf.close()


@pytest.fixture
def agent(tmp_path, monkeypatch):
    paths = {name: tmp_path / name for name in ("home", "cold", "far")}
    made = Agent(tmp_path, [TierConfig(str(path), name=name) for name, path in paths.items()])
    monkeypatch.setattr(open_tiers, "_LEAST_LOOK_S", LOOK_S)
    monkeypatch.setattr(open_tiers, "_LOOKS_PER_START", 1000)
    monkeypatch.setattr(open_tiers, "_LOOKS_PER_LOAD", 10_000)
    monkeypatch.setattr(claiming, "_LOOKS_PER_CALL", 1000)
    yield made
    made.close()


def upload(agent, *tiers, step=10, attempt=1):
    """Images of a step that its owner did not live to commit."""
    for tier in tiers:
        store.upload(agent.shelf.tiers[tier], store.make(attempt, step))


def test_a_tier_that_hangs_holds_up_no_other_and_catches_up_when_it_answers(agent):
    upload(agent, "home", "cold", "far")

    async def story():
        store.begin(agent.shelf.tiers["home"])
        fault = agent.hang("cold", "list", times=None)
        agent.shelf.claiming.owner = 1
        agent.page.attempt = 1
        await agent.ownership.find_again()
        await agent.until(lambda: agent.executor.run.told, "the run machine knows all it can know")
        assert agent.committed("home") == agent.committed("far") == [10]
        assert agent.executor.run.committed("home") == agent.executor.run.committed("far") == {STEP}
        assert fault.calls["list"]
        failed = [e.tier for e in agent.executor.told if isinstance(e, events.CatalogFailed)]
        assert failed == ["cold"], "and says so"
        agent.hangs.set()
        await agent.idle()
        assert agent.committed("cold") == [10]
        assert agent.executor.run.committed("cold") == {STEP}

    asyncio.run(story())


def test_claims_lose_no_threads_to_a_tier_that_hangs(agent):
    async def story():
        agent.hang("cold", "list", times=None)
        for attempt in range(1, 7):
            assert await asyncio.wait_for(agent.claim(), LONG_S) == attempt
            await agent.until(lambda: agent.executor.run.told, "the run machine knows all it can know")
        assert await asyncio.wait_for(agent.in_thread(lambda: "free"), LONG_S) == "free"
        agent.hangs.set()
        await agent.idle()
        assert agent.executor.run.told

    asyncio.run(story())


def test_a_claim_has_no_more_patience_with_a_tier_that_hangs_than_its_trainer(agent, monkeypatch):
    monkeypatch.setattr(open_tiers, "_LOOKS_PER_LOAD", 1)

    async def story():
        agent.hang("cold", "list", times=None)
        assert await asyncio.wait_for(agent.claim(), LONG_S / 2) == 1
        agent.hangs.set()
        await agent.idle()

    asyncio.run(story())


def test_a_tier_that_fails_keeps_no_other_from_being_rolled_forward(agent):
    upload(agent, "home", "cold", "far")
    store.begin(agent.shelf.tiers["home"])

    async def story():
        error = TierError("sick", tier="cold")
        agent.fault("cold", Fault("read_into", Raise(error), times=None))
        agent.page.attempt = 1
        await agent.ownership.find_again()
        await agent.idle()
        assert agent.committed("home") == agent.committed("far") == [10]
        assert agent.errors == [("cold", "sick")]

    asyncio.run(story())


def test_what_is_in_flight_is_asked_after_the_listing(agent):
    """A step whose flush begins while a slow tier is listed is none of what nobody needs."""
    home = agent.shelf.tiers["home"]
    store.begin(home)
    upload(agent, "home", step=5)
    upload(agent, "home", step=7)
    store.save(home, 1, 10)

    async def story():
        listed = threading.Event()
        slow_the_second_listing(agent, listed)
        agent.page.attempt = 1
        await agent.ownership.find_again()
        await agent.until(listed.is_set, "it was listed")
        image = ImageId(1, 7, 0)
        agent.executor.tell_run(events.ImageStaged("n0", image, 1, 2, frozenset({"home"})))
        agent.hangs.set()
        await agent.idle()
        assert [e.id.step for e in read_catalog(home)] == [7, 10]

    asyncio.run(story())


def slow_the_second_listing(agent, listed):
    """The first one is for rolling forward, the second one for what nobody needs."""
    real, chores = agent.shelf.tiers.catalog, []

    def catalog(tier):
        found = real(tier)
        if tier == "home" and threading.current_thread().name.startswith("holdfast-chore"):
            chores.append(tier)
            if len(chores) == 2:
                listed.set()
                agent.hangs.wait(LONG_S)
        return found

    agent.shelf.tiers.catalog = catalog


# Repairs --------------------------------------------------------------------------------------------------------------
def test_a_repair_on_a_tier_that_hangs_holds_up_none_elsewhere(agent):
    for name in ("home", "cold", "far"):
        store.begin(agent.shelf.tiers[name])
        store.save(agent.shelf.tiers[name], 1, 10)
    key = store.make(1, 10).images[0].key
    for name in ("cold", "far"):
        agent.shelf.tiers[name].delete(key)
    image = ImageId(1, 10, 0)

    async def story():
        agent.hang("cold", "put", times=None)
        agent.repairing.soon(STEP, [Wound(name, image, "it is not there") for name in ("cold", "far")])
        await agent.until(lambda: agent.shelf.remaking.repaired["far"], "the other tier's copy is re-made")
        asked = messages.Repair(url_of(agent, "far"), STEP, image, "again")
        assert (await asyncio.wait_for(agent.repairing.repair(asked), LONG_S)).source == "home"
        assert not agent.shelf.remaking.repaired["cold"]
        agent.hangs.set()
        await agent.idle()
        assert agent.shelf.remaking.repaired["cold"] == 1
        assert agent.committed("cold") == agent.committed("far") == [10]

    asyncio.run(story())


def test_a_source_that_hangs_is_left_for_the_next_one(agent):
    """What an image has to be, and its bytes, come from a tier that answers."""
    for name in ("home", "cold", "far"):
        store.begin(agent.shelf.tiers[name])
        store.save(agent.shelf.tiers[name], 1, 10)
    image = store.make(1, 10).images[0]
    agent.shelf.tiers["far"].delete(image.key)

    async def story():
        agent.hang("home", "size", times=None, key="^(manifests|images)/")
        asked = messages.Repair(url_of(agent, "far"), STEP, image.record.id, "it is not there")
        assert (await asyncio.wait_for(agent.repairing.repair(asked), LONG_S)).source == "cold"
        agent.hangs.set()

    asyncio.run(story())


def url_of(agent, tier):
    return next(r.url for r in agent.settings.tiers if r.name == tier)

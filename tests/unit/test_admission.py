"""What a new launch changes in an agent that is already there."""

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from holdfast.agent.admission import Admission
from holdfast.agent.arena import Arena
from holdfast.agent.dealing import Dealing
from holdfast.agent.launches import Launches
from holdfast.config import Config, Settings, TierConfig
from holdfast.errors import CapacityError, ConfigError
from holdfast.lifecycle import events
from holdfast.wire import messages
from holdfast.wire.processes import process_start


def settings(*urls: str, **more: Any) -> Settings:
    tiers = tuple(TierConfig(url) for url in urls or ("memory:", "/data/run7"))
    return Config(tiers=tiers, **more).resolve({})


def tiers_that(open_for, reconfigure) -> Any:
    """Tiers that do this when settings are told; the pool is the event loop's."""
    return SimpleNamespace(opening=None, open_for=open_for, reconfigure=lambda new, opened: reconfigure(new))


class Told:
    """An agent of these settings that notes what its machines and its shelf are told."""

    def __init__(self, root, of):
        self.run: list[events.RunEvent] = []
        self.node: list[events.NodeEvent] = []
        self.tiers: list[Settings] = []
        self.agent: Any = SimpleNamespace(
            choose_cores=lambda: None,
            settings=of,
            arena=SimpleNamespace(budget_bytes=0, root=root),
            tiers=tiers_that(lambda new: {}, self.tiers.append),
            ending=False,
            launches=None,
            dealing=None,
            faulting=None,  # the pool of the event loop
            executor=SimpleNamespace(tell_run=self.run.append, tell_node=self.node.append),
        )

    def bring(self, new):
        a = self.agent
        asyncio.run(Admission(a, a.executor, a.arena, a.tiers, a.launches, a.dealing)._reconfigure(new))


def test_both_machines_hear_of_new_waits(tmp_path):
    told = Told(tmp_path, settings())
    new = settings(slot_wait_s=0.5, idle_s=5)
    told.bring(new)
    assert told.run == told.node == [events.Reconfigured(new.tiers, 0.5, 5.0)]
    assert told.tiers == [new], "a tier of the same URL may have another directory now"
    assert told.agent.settings is new


def test_both_machines_and_the_shelf_hear_of_new_tiers(tmp_path):
    told = Told(tmp_path, settings())
    new = settings("memory:", "/data/run7", "/mnt/slow")
    told.bring(new)
    assert told.run == told.node == [events.Reconfigured(new.tiers, 2.0, 900.0)]
    assert told.tiers == [new]


def test_the_same_settings_are_no_news(tmp_path):
    told = Told(tmp_path, settings())
    told.bring(settings())
    assert told.run == told.node == []


def test_another_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="another run"):
        Told(tmp_path, settings()).bring(settings("memory:", "/data/run8"))


def test_a_launch_whose_settings_cannot_be_used_is_in_nobodys_way(tmp_path):
    used = settings(busy_wait_s=0.1)
    told, launches, broken = Told(tmp_path, used), Launches(tmp_path), [True, True, False]
    begun: list[int] = []

    def open_for(new):
        if broken.pop(0):
            raise ConfigError("no such directory")
        return {}

    told.agent.launch_begins = lambda: begun.append(1)
    dealing: Any = SimpleNamespace(undeal=lambda world_size: None)
    tiers = tiers_that(open_for, lambda new: None)
    admission = Admission(told.agent, told.agent.executor, told.agent.arena, tiers, launches, dealing)

    def launch(name, rank):
        me = os.getpid()
        body = messages.Launch(name, rank, 2, me, process_start(me), messages.PROTOCOL, msgspec.to_builtins(used))
        return asyncio.run(admission.launch(body))

    for rank in range(2):
        with pytest.raises(ConfigError, match="no such directory"):
            launch("a" * 32, rank)
    assert (launches.trainers, begun, told.run) == ({}, [], []), "nothing has begun, and no rank waits for the others"
    assert launch("b" * 32, 0).trainer_page == "trainer-00000.page", "this process may try again with other settings"
    assert (begun, told.run[-1]) == ([1], events.TrainersBack())
    launches.close()


def dealt(told, root, rank, image_bytes, budget_bytes):
    """What a rank of images of this size is dealt, made ready at once."""
    arena = told.agent.arena
    if not isinstance(arena, Arena):
        arena = told.agent.arena = Arena(root / "arena", budget_bytes)

    async def ask():
        dealing = Dealing(told.agent, told.agent.executor, arena, told.agent.faulting)
        answer = await dealing.prepare(messages.Prepare(rank, image_bytes))
        await dealing.finish()
        return answer.slots

    return asyncio.run(ask())


def test_what_a_rank_outgrew_makes_room_for_what_it_needs(tmp_path):
    told = Told(tmp_path, settings())
    mib = 1 << 20
    small = dealt(told, tmp_path, 0, mib, budget_bytes=3 * mib)
    arena = told.agent.arena
    large = dealt(told, tmp_path, 0, mib + 4096, budget_bytes=3 * mib)
    assert not set(small) & set(large)
    assert sorted(arena.slots) == sorted(large), "all four would not fit"
    assert {s.page.dealt_rank for s in arena.slots.values()} == {0}
    with pytest.raises(CapacityError):
        dealt(told, tmp_path, 0, 2 * mib, budget_bytes=3 * mib)
    assert {s.page.dealt_rank for s in arena.slots.values()} == {0}, "what the rank had it has"
    arena.close()


def test_what_is_faulted_for_a_rank_that_the_next_launch_does_not_have_is_free_for_its_ranks(tmp_path):
    told, mib = Told(tmp_path, settings()), 1 << 20
    arena = told.agent.arena = Arena(tmp_path / "arena", 4 * mib + (1 << 16))

    async def story():
        dealing = Dealing(told.agent, told.agent.executor, arena, told.agent.faulting)
        first, second = [(await dealing.prepare(messages.Prepare(rank, mib - 4096))).slots for rank in (0, 1)]
        dealing.undeal(1)
        await dealing.finish()
        return first, second

    first, second = asyncio.run(story())
    assert {n: s.page.dealt_rank for n, s in arena.slots.items()} == dict.fromkeys(first, 0) | dict.fromkeys(second, -1)
    assert dealt(told, tmp_path, 0, 2 * mib - 4096, budget_bytes=0), "all four would not fit"
    arena.close()

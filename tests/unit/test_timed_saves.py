"""Both sides of "save at S" (tiers due by time) and "raise at S", on pages, with a clock of the test's own."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.agent.stopping import Proposals
from holdfast.agent.timed import TimedSaves as OfAgent
from holdfast.model.place import Scope, TierRule
from holdfast.policy.schedule import due_tiers, overdue_tiers
from holdfast.wire.pages import PAGE_BYTES, ProposalKind, ProposalState, RunPage, TrainerPage

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from holdfast.trainer.timed import TimedSaves as OfRank  # noqa: E402

RULES = (
    TierRule(0, "memory", "memory:", Scope.NODE),
    TierRule(1, "disk", "file:///a", Scope.SHARED, every_steps=None, every_s=10.0),
    TierRule(2, "both", "file:///b", Scope.SHARED, every_steps=1000, every_s=20.0),
)
DISK, BOTH = 2, 4


class World:
    """An agent and its ranks; nothing happens but what the test does."""

    def __init__(self, ranks=2, rules=RULES):
        self.now_s = 100.0
        self.rules = rules
        self.run = made(RunPage)
        self.run.save_step = self.run.proposal_step = -1
        self.pages = [made(TrainerPage) for _ in range(ranks)]
        for page in self.pages:
            page.attempt, page.current_step = 1, -1
        self.agent = OfAgent(self.run, lambda: self.now_s)
        sessions = [SimpleNamespace(run_page=self.run, page=page) for page in self.pages]
        self.ranks = [OfRank(cast(Any, s)) for s in sessions]
        self.saved: list[dict[int, int]] = [{} for _ in range(ranks)]

    def step(self, rank, step):
        """One `save(step)` of a rank."""
        self.pages[rank].current_step = step
        mask = self.ranks[rank].due(step)
        if mask:
            self.saved[rank][step] = mask

    def steps(self, step):
        for rank in range(len(self.ranks)):
            self.step(rank, step)

    def poll(self, complete=True):
        self.agent.poll(self.pages, self.rules, complete=complete)


def made(kind):
    page = kind(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    return page


def test_which_tiers_are_due_by_number_and_by_time():
    assert due_tiers(7, RULES) == {"memory"}
    assert due_tiers(2000, RULES) == {"memory", "both"}
    assert due_tiers(7, RULES, first=True) == {"memory", "disk", "both"}, "the first save begins all clocks"
    assert overdue_tiers(RULES, {"disk": 0.0, "both": 0.0}, 10.0) == {"disk"}
    assert overdue_tiers(RULES, {"both": 0.0}, 10.0) == set()


def test_all_ranks_save_the_same_step_a_few_steps_ahead():
    world = World()
    world.steps(1)
    world.poll()
    assert world.run.save_nonce == 0, "the clocks have begun just now"
    world.now_s += 10
    world.poll()
    ahead = world.run.save_step
    assert 2 <= ahead <= 5
    for step in range(2, 10):
        world.steps(step)
        world.poll()
    assert world.saved == [{ahead: DISK}, {ahead: DISK}]
    assert world.run.save_state == ProposalState.SETTLED
    world.now_s += 9
    world.poll()
    assert world.run.save_nonce == 1, "its time counts from the save"
    world.now_s += 1
    world.poll()
    assert (world.run.save_nonce, world.run.save_mask) == (2, DISK | BOTH)


def test_a_save_by_number_begins_the_time_anew():
    world = World()
    world.steps(999)
    world.poll()
    world.now_s += 9
    world.agent.saved({"disk"})
    world.now_s += 9
    world.poll()
    assert world.run.save_nonce == 0


def test_whoever_reads_too_late_does_not_save_and_the_lead_grows():
    world = World()
    world.steps(1)
    world.poll()
    world.now_s += 10
    world.poll()
    first = world.run.save_step
    # Rank 1 was quicker than the agent thought: it passes S before it can read the page.
    nonce, world.run.save_nonce = world.run.save_nonce, 0
    for step in range(2, first + 1):
        world.step(1, step)
    world.run.save_nonce = nonce
    for step in range(2, first + 1):
        world.step(0, step)
    world.step(1, first + 1)
    assert world.saved == [{first: DISK}, {}], "rank 0 saved in vain; rank 1 goes on"
    world.poll()
    assert world.run.save_state == ProposalState.WITHDRAWN
    world.poll()
    assert world.run.save_nonce == nonce + 1, "at once, for the time is over still"
    assert world.run.save_step - (first + 1) >= 4
    for step in range(first + 2, world.run.save_step + 1):
        world.steps(step)
    assert world.saved[0].keys() - {first} == world.saved[1].keys() == {world.run.save_step}


def test_what_was_withdrawn_in_time_is_not_saved_in_vain():
    world = World()
    world.steps(1)
    world.poll()
    world.now_s += 10
    world.poll()
    world.step(0, 2)
    assert world.pages[0].save_ack == 1
    world.pages[1].save_nack = 1
    world.poll()
    for step in range(3, 9):
        world.step(0, step)
    assert world.saved[0] == {}


def test_steps_that_are_not_all_offered_are_saved_at_the_first_that_is():
    world = World()
    world.steps(100)
    world.poll()
    world.now_s += 10
    world.poll()
    for step in range(200, 2000, 100):
        world.steps(step)
        world.poll()
    [step] = world.saved[0]
    assert world.saved[0] == world.saved[1]
    assert step >= world.run.save_step > step - 100


def test_nothing_is_proposed_before_every_rank_has_an_attempt_and_trains():
    world = World()
    world.now_s += 1000
    world.poll()
    world.steps(1)
    world.pages[1].attempt = 0
    world.poll()
    world.now_s += 1000
    world.poll()
    world.pages[1].attempt = 1
    world.poll(complete=False)
    assert world.run.save_nonce == 0
    world.poll()
    world.now_s += 10
    world.poll()
    assert world.run.save_nonce == 1


def test_after_going_back_what_was_proposed_counts_no_more():
    world = World()
    world.steps(500)
    world.poll()
    world.now_s += 10
    world.poll()
    world.steps(501)
    assert [p.save_ack for p in world.pages] == [1, 1]
    world.steps(3)  # loaded step 2
    world.poll()
    assert world.run.save_state == ProposalState.WITHDRAWN
    world.poll()
    ahead = world.run.save_step
    assert ahead < 20
    for step in range(4, 600):
        world.steps(step)
        world.poll()
    assert world.saved[0] == world.saved[1] == {ahead: DISK}


def test_an_agent_that_comes_after_another_takes_the_word_back():
    world = World()
    world.steps(1)
    world.poll()
    world.now_s += 10
    world.poll()
    world.agent = OfAgent(world.run, lambda: world.now_s)
    assert world.run.save_state == ProposalState.WITHDRAWN
    world.poll()
    world.now_s += 10
    world.poll()
    for step in range(2, 12):
        world.steps(step)
        world.poll()
    assert world.saved[0] == world.saved[1]
    assert len(world.saved[0]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_ranks_at_any_pace_agree_or_nobody_counts(seed):
    chance = random.Random(seed)
    world = World(ranks=3)
    for rank in range(3):
        world.step(rank, 0)
    at = [0, 0, 0]
    refused = 0
    for _ in range(4000):
        what = chance.randrange(5)
        if what < 3:
            # No rank is more than a few steps ahead of the slowest: they reduce gradients together.
            for _ in range(chance.choice([1, 1, 1, 7])):
                if at[what] - min(at) < 3:
                    at[what] += 1
                    world.step(what, at[what])
        elif what == 3:
            before = world.run.save_state
            world.poll()
            refused += before != world.run.save_state == ProposalState.WITHDRAWN
        else:
            world.now_s += 0.3
    for rank in range(3):
        for step in range(at[rank] + 1, max(at) + 9000):
            world.step(rank, step)
    whole = set.intersection(*(set(s.items()) for s in world.saved))
    some = set.union(*(set(s.items()) for s in world.saved))
    assert len(whole) >= 20, "saves go on"
    assert len(some - whole) <= refused


# Raise at S -----------------------------------------------------------------------------------------------------------
def test_a_failure_is_proposed_like_a_stop_and_may_come_again():
    run, pages = made(RunPage), [made(TrainerPage) for _ in range(2)]
    proposals = Proposals(run)
    proposals.reset()
    for page in pages:
        page.current_step = 5
    proposals.fail()
    proposals.poll(pages, complete=False)
    assert run.proposal_nonce == 0, "a rank that is not there yet cannot raise"
    for nonce in (1, 2):
        proposals.poll(pages, complete=True)
        assert (run.proposal_nonce, run.proposal_kind, run.proposal_step) == (nonce, ProposalKind.RAISE, 6)
        for page in pages:
            page.proposal_ack = nonce
        proposals.poll(pages, complete=True)
        assert run.proposal_state == ProposalState.SETTLED
        pages[0].proposal_done = nonce
        proposals.poll(pages, complete=True)
        assert run.proposal_state == ProposalState.SETTLED, "one rank has yet to raise"
        pages[1].proposal_done = nonce
        proposals.poll(pages, complete=True)
        assert run.proposal_state == ProposalState.NONE
        proposals.poll(pages, complete=True)
        assert run.proposal_nonce == nonce, "once is enough"
        proposals.fail()


def test_a_stop_goes_before_a_failure():
    run, page = made(RunPage), made(TrainerPage)
    proposals = Proposals(run)
    page.stop_signal = 15
    proposals.fail()
    proposals.poll([page], complete=True)
    assert run.proposal_kind == ProposalKind.STOP
    page.proposal_ack = 1
    for _ in range(3):
        proposals.poll([page], complete=True)
    assert (run.proposal_state, run.proposal_kind) == (ProposalState.SETTLED, ProposalKind.STOP)

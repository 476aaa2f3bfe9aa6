"""Ranks stop after the same step, whatever happens to the agent meanwhile: both sides, on pages."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.agent.stopping import Proposals
from holdfast.errors import TierError
from holdfast.wire.messages import ErrorList
from holdfast.wire.pages import PAGE_BYTES, ProposalState, RunPage, TrainerPage

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from holdfast.trainer.stopping import Stopping  # noqa: E402


def made(kind):
    page = kind(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    return page


class World:
    """A run page, two ranks, and agents that poll until they die."""

    def __init__(self, stop_wait_s):
        self.run = made(RunPage)
        self.pages = [made(TrainerPage) for _ in range(2)]
        self.settings = SimpleNamespace(stop_wait_s=stop_wait_s)
        self.sessions = [self.session(page) for page in self.pages]
        self.ranks = [Stopping(cast(Any, s)) for s in self.sessions]
        for rank, page in zip(self.ranks, self.pages, strict=True):
            page.current_step = rank._last = 9
        self.alive = False

    def session(self, page):
        attachment = SimpleNamespace(alive=True)
        return SimpleNamespace(
            run_page=self.run, page=page, world_size=2, attachment=attachment, settings=self.settings, ensure=self.begin
        )

    def begin(self):
        """Another agent comes."""
        if not self.alive:
            self.alive = True
            for session in self.sessions:
                session.attachment.alive = True
            self.thread = threading.Thread(target=self.serve)
            self.thread.start()

    def serve(self):
        proposals = Proposals(self.run)
        while self.alive:
            proposals.poll(self.pages, complete=True)
            time.sleep(0.001)

    def die(self):
        self.alive = False
        for session in self.sessions:
            session.attachment.alive = False

    def observe(self, rank, step):
        self.pages[rank].current_step = step
        return self.ranks[rank].observe(step)


@pytest.fixture
def proposed():
    world = World(stop_wait_s=20)
    world.pages[0].stop_signal = 1
    Proposals(world.run).poll(world.pages, complete=True)
    world.pages[0].stop_signal = 0  # no agent proposes it anew
    yield world
    world.alive = False
    world.thread.join()


def test_an_agent_that_dies_amid_the_agreement_leaves_it_to_the_next(proposed):
    step = proposed.run.proposal_step
    proposed.die()
    answers = {}
    first = threading.Thread(target=lambda: answers.update({0: proposed.observe(0, step)}))
    first.start()
    time.sleep(0.05)
    answers[1] = proposed.observe(1, step)
    first.join(20)
    assert answers == {0: True, 1: True}
    assert proposed.run.proposal_state == ProposalState.SETTLED


def test_what_all_do_is_what_the_agent_says_that_settles_it(proposed):
    """The memory is gone with the agent: the next one proposes anew under the same number, to raise."""
    step = proposed.run.proposal_step
    proposed.settings.on_save_error = "raise"
    proposed.die()
    proposed.run = made(RunPage)
    proposals = Proposals(proposed.run)
    proposals.fail()
    proposals.poll(proposed.pages, complete=True)
    assert proposed.run.proposal_step == step

    def begin():
        for session in proposed.sessions:
            session.run_page = proposed.run
        proposed.begin()

    for session in proposed.sessions:
        session.ensure = begin
        session.ask = lambda *args, **options: ErrorList(1, [], {"kind": "tier", "message": "the disk is full"})
    raised = []

    def observe(rank):
        with pytest.raises(TierError, match="the disk is full"):
            proposed.observe(rank, step)
        raised.append(rank)

    first = threading.Thread(target=observe, args=(0,))
    first.start()
    time.sleep(0.05)
    observe(1)
    first.join(20)
    assert sorted(raised) == [0, 1]


def test_no_rank_stops_where_the_agreement_does_not_come(proposed):
    """The other rank never comes to the step: the one that waits objects, and nobody stops there."""
    proposed.settings.stop_wait_s = 0.2
    step = proposed.run.proposal_step
    proposed.die()
    assert not proposed.observe(0, step)
    assert proposed.run.proposal_state == ProposalState.WITHDRAWN
    assert not proposed.observe(1, step)

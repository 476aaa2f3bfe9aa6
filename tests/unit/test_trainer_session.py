"""Attaching anew from several threads: training waits its bound, and nothing is pulled away under anybody."""

import threading
import time
from typing import Any

import pytest

from holdfast.config import Config
from holdfast.errors import AgentError
from holdfast.trainer import session as module
from holdfast.trainer import tie as ties
from holdfast.trainer.session import Session
from holdfast.wire import messages
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import PAGE_BYTES, RunPage, TrainerPage

BOUND_S = 0.2


class Attachment:
    def __init__(self, *args: Any) -> None:
        self.alive = True

    def close(self) -> None:
        self.alive = False


class Agent:
    """Agents in a row, in this process: each gives new pages, but for a `run_page` it is told to find; `open` holds up
    their answers."""

    def __init__(self, settings):
        self.settings = settings
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.launches = 0
        self.run_page = ""

    def post(self, path, body, answer, *, timeout_s):
        self.asked.set()
        assert self.open.wait(timeout_s)
        self.launches += 1
        names = f"trainer-{self.launches}.page", self.run_page or f"run-{self.launches}.page"
        self.settings.arena.mkdir(parents=True, exist_ok=True)
        for name, page in zip(names, (TrainerPage, RunPage), strict=True):
            file = MappedFile(self.settings.arena / name, PAGE_BYTES)
            made = page(file.buffer)
            if not made.valid:
                made.initialise()
            made.release()
            file.close()
        return messages.LaunchAnswer(*names)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    environ = {"HOLDFAST_ARENA_DIR": str(tmp_path), "HOLDFAST_SLOT_WAIT_S": str(BOUND_S)}
    settings = Config.from_url(str(tmp_path / "home")).resolve(environ)
    made = Agent(settings)
    for name in ("ensure_agent", "AgentClient"):
        monkeypatch.setattr(module, name, lambda _: made)
    monkeypatch.setattr(module, "spawn_agent", lambda _: None)
    monkeypatch.setattr(ties, "Attachment", Attachment)
    yield made
    made.open.set()


@pytest.fixture
def session(agent):
    made = Session(agent.settings, launch="one", rank=0, world_size=1)
    yield made
    made.detach()


def in_thread(call):
    thread = threading.Thread(target=call, name="waiter")
    thread.start()
    return thread


def test_training_waits_its_bound_for_a_thread_that_attaches(agent, session):
    agent.open.clear()
    agent.asked.clear()
    session.attachment.close()
    waiter = in_thread(session.revive)
    assert agent.asked.wait(30)
    began = time.monotonic()
    for _ in range(20):
        assert not session.ensure()
    took_s = time.monotonic() - began
    assert BOUND_S * 0.9 < took_s < 15 * BOUND_S, "once, not each time; then the agent is left alone for a while"
    agent.open.set()
    waiter.join(30)
    assert session.ensure(), "what the other thread attached to"
    assert agent.launches == 2


def test_a_page_in_use_outlives_its_agent_until_the_end(agent, session):
    page, run_page = session.page, session.run_page
    page.current_step, page.saves = 7, 3
    page.waiting_image, page.waiting_step = 1, 7
    session.attachment.close()
    in_thread(session.revive).join(30)
    assert session.page is not page
    assert (session.page.current_step, session.page.saves) == (7, 3)
    assert (session.page.waiting_image, session.page.waiting_step) == (1, 7)
    page.saves += 1
    assert run_page.errors == 0
    session.detach()
    with pytest.raises(ValueError, match="released"):
        _ = page.saves


def test_a_run_page_is_another_one_only_if_the_memory_is_gone(agent, session):
    run_page = session.run_page
    for found in ("run-1.page", "run-1.page", ""):
        agent.run_page = found
        assert session.run_page is run_page
        session.attachment.close()
        assert session.ensure()
    assert session.run_page is not run_page


def test_a_call_that_failed_long_ago_does_not_let_go_of_the_next_agent(agent, session):
    """Its thread hears of the death when training has attached to the next agent already."""
    answers = iter([AgentError("gone"), messages.Ok()])

    def get(*args, **kwargs):
        answer = next(answers)
        if isinstance(answer, Exception):
            session.attachment.close()
            assert session.ensure()
            raise answer
        return answer

    agent.get = get
    session.ask("/steps", messages.Ok, query={})
    assert agent.launches == 2
    assert session.attachment.alive


def test_letting_go_while_another_thread_attaches(agent, session):
    agent.open.clear()
    agent.asked.clear()
    session.attachment.close()
    before = session.page
    waiter = in_thread(lambda: session._join(session._revive))
    assert agent.asked.wait(30)
    session.detach()
    agent.open.set()
    waiter.join(30)
    assert not session.attachment.alive, "nobody would let go of it"
    for page in (before, session.page):
        with pytest.raises(ValueError, match="released"):
            _ = page.saves

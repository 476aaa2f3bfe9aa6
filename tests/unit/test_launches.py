"""Who is attached: ranks that closed, ranks that left, and what a new agent makes of their pages."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from holdfast.agent.launches import Launches
from holdfast.wire import messages
from holdfast.wire.pages import LetGo
from holdfast.wire.processes import process_start

LAUNCH = "0123456789abcdef" * 2


def admit(launches, rank, pid, launch=LAUNCH):
    launches.begin(
        messages.Launch(
            launch=launch,
            rank=rank,
            world_size=2,
            pid=pid,
            start=process_start(pid),
            protocol=messages.PROTOCOL,
            settings={},
        )
    )
    return launches.trainers[rank]


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    """The process of rank 1; rank 0 is this one."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def launches(tmp_path, other):
    made = Launches(tmp_path)
    admit(made, 0, os.getpid())
    admit(made, 1, other.pid)
    yield made
    made.close()


def adopted(tmp_path):
    """What a new agent takes up; it lets go of its mappings."""
    new = Launches(tmp_path)
    new.adopt()
    found = sorted(new.trainers), new.left, new.open, new.all_closed
    new.close()
    return found


def test_ranks_are_open_until_they_close_or_leave(launches, other):
    assert (launches.left, launches.open) == ([], [0, 1])
    launches.trainers[0].closed = True
    assert (launches.left, launches.open, launches.all_closed) == ([], [1], False)
    other.kill()
    other.wait()
    assert (launches.left, launches.open, launches.all_closed) == ([1], [], False)


def test_a_rank_that_closed_and_let_go_did_not_leave(launches):
    for trainer in launches.trainers.values():
        trainer.closed = True
        trainer.page.let_go = LetGo.CLOSED
    assert (launches.left, launches.open, launches.all_closed) == ([], [], True)


def test_an_attachment_of_the_launch_before_that_ends_late_says_nothing_of_this_one(launches):
    before, after = contextlib.ExitStack(), contextlib.ExitStack()
    before.enter_context(launches.attachment(0))
    assert launches.trainers[0].attached
    for trainer in launches.trainers.values():
        trainer.page.let_go = LetGo.LEFT
    again = admit(launches, 0, os.getpid(), launch="f" * 32)
    after.enter_context(launches.attachment(0))
    before.close()
    assert again.attached
    after.close()
    assert not again.attached


def test_a_new_agent_knows_how_the_ranks_before_it_went(launches, other, tmp_path):
    assert adopted(tmp_path) == ([0, 1], [], [0, 1], False)
    other.kill()
    other.wait()
    assert adopted(tmp_path) == ([0, 1], [1], [0], False), "it died without closing"
    launches.trainers[1].page.let_go = LetGo.CLOSED
    assert adopted(tmp_path) == ([0, 1], [], [0], False), "it had closed before"


def test_pages_of_a_launch_nobody_lives_of_are_removed(launches, other, tmp_path):
    launches.trainers[0].page.start += 1  # no such process
    other.kill()
    other.wait()
    assert adopted(tmp_path) == ([], [], [], False)
    assert not list(tmp_path.iterdir())

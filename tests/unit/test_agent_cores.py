"""Where the agent runs, seen from its trainers."""

import os
import threading

import pytest

from holdfast.agent.cores import choose, cores_of, cores_of_node, move_to

NODE = frozenset(range(8))


@pytest.mark.parametrize(
    ("setting", "trainers", "chosen"),
    [
        ("outside", [{0, 1}, {1, 2, 3}], {4, 5, 6, 7}),
        ("outside", [set(range(8))], set(range(8))),
        ("outside", [{0, 1, 2, 3}, {4, 5, 6, 7}], set(range(8))),
        ("outside", [], set(range(8))),
        ("all", [{0, 1}], set(range(8))),
        ("0-1,6", [{0, 1}], {0, 1, 6}),
        ("6-20", [], {6, 7}),
        ("64-127", [], set(range(8))),
    ],
)
def test_the_agent_stays_where_no_trainer_may_run_if_there_is_such_a_place(setting, trainers, chosen):
    assert choose(setting, node=NODE, trainers=map(frozenset, trainers)) == chosen


def test_every_thread_moves():
    before = os.sched_getaffinity(0)
    ready, done, seen = threading.Event(), threading.Event(), []

    def look():
        ready.set()
        done.wait(30)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=look)
    thread.start()
    ready.wait(30)
    try:
        one = {min(before)}
        move_to(one)
        assert os.sched_getaffinity(0) == one
        done.set()
        thread.join(30)
        assert seen == [one]
        assert cores_of_node() >= before, "a mask that was handed down is shaken off"
    finally:
        done.set()
        thread.join(30)
        move_to(before)


def test_trainers_that_are_gone_are_passed_over():
    assert cores_of([os.getpid(), 2**22 + 1]) == [os.sched_getaffinity(0)]

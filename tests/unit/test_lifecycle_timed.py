"""Steps that are due by time: what becomes of one that a rank read too late."""

import pytest
from tests.property.lifecycle_things import rules_of
from tests.property.lifecycle_world import World

from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId

NOTHING: frozenset[str] = frozenset()
S3, MEMORY = frozenset({"s3"}), frozenset({"memory"})


def started(nodes=2):
    world = World(rules_of(s3=1000), nodes=nodes)
    world.claim()
    return world


def passes(world, rank, step):
    world.tell_node(world.node_of[rank], events.RankAt(rank, CheckpointId(world.attempt, step)))


def test_a_step_that_all_read_in_time_is_saved_like_any():
    world = started()
    world.save(7, due=NOTHING, timed=S3)
    world.work()
    assert world.status(7).tiers["s3"].state == "committed"
    assert CheckpointId(1, 7) in world.stores["s3"].manifests


def test_one_that_a_rank_read_too_late_is_given_up_for_all_and_quietly():
    world = started()
    world.save(7, ranks=[0], due=NOTHING, timed=S3)
    world.seal()
    passes(world, 1, 8)
    world.work()
    status = world.status(7)
    assert (status.memory, status.tiers["s3"].state) == ("dropped", "skipped")
    assert status.error["kind"] == "skipped"
    assert "rank 1 read too late" in status.error["message"]
    assert not world.reports, "nobody is warned of it: a later step takes its place"
    assert not world.stores["s3"].images, "nothing of it is left"
    assert len(world.free_slots(0)) == 4
    world.save(9, due=NOTHING, timed=S3)
    world.work()
    assert world.status(9).tiers["s3"].state == "committed"


def test_a_rank_without_a_slot_is_told_of_as_ever():
    world = started()
    world.save(7, ranks=[0], due=NOTHING, timed=S3)
    passes(world, 1, 7)
    world.tell_node(world.node_of[1], events.RankGaveUp(1, CheckpointId(1, 7)))
    assert world.status(7).error["kind"] == "step-dropped"
    assert world.reports


@pytest.mark.parametrize("late_first", [True, False])
def test_where_the_step_is_due_anyway_only_the_tier_is_given_up(late_first):
    world = started()
    for rank in (1, 0) if late_first else (0, 1):
        world.save(7, ranks=[rank], due=MEMORY, timed=S3 if rank == 0 else NOTHING)
    world.work()
    status = world.status(7)
    assert (status.memory, status.tiers["s3"].state) == ("whole", "skipped")
    assert status.settled
    assert not world.stores["s3"].images
    assert not world.reports


@pytest.mark.parametrize("flushed", [True, False])
def test_a_new_agent_keeps_to_it(flushed):
    world = started()
    world.save(7, ranks=[0], due=MEMORY, timed=S3)
    world.save(7, ranks=[1], due=MEMORY)
    world.seal()
    if flushed:
        world.work()
    world.restart_agents()
    world.work()
    status = world.status(7)
    assert status.memory == "whole"
    assert status.settled, "it does not wait for a flush that nobody begins"
    assert CheckpointId(1, 7) not in world.stores["s3"].manifests


def test_a_person_or_the_end_may_still_have_it_flushed():
    world = started()
    world.save(7, ranks=[0], due=MEMORY, timed=S3)
    world.save(7, ranks=[1], due=MEMORY)
    world.work()
    world.tell_run(events.CloseAsked(False))
    world.work()
    assert CheckpointId(1, 7) in world.stores["s3"].manifests, "promoted, as it is the newest"

"""Images that steps share: who keeps them, and when they go."""

import pytest
from tests.property.lifecycle_things import rules_of
from tests.property.lifecycle_world import World

from holdfast.lifecycle import actions, events
from holdfast.model.identity import CheckpointId, ImageId


def started(ranks=1, **every):
    world = World(rules_of(**(every or {"posix": 10})), ranks_per_node=ranks, image_count=2, sharing=True)
    world.claim()
    return world


def shared(world, rank=0):
    """The images in the rank's slots for what its steps share."""
    pages = [p for p in world.pages.values() if (p.rank, p.number) == (rank, 1)]
    return sorted(p.image.step for p in pages if p.image is not None)


def drop(world, step, rank):
    """A rank finds no slot in time."""
    world.tell_node("n0", events.RankAt(rank, CheckpointId(1, step)))
    world.tell_node("n0", events.RankGaveUp(rank, CheckpointId(1, step)))
    world.work()


def test_a_deletion_waits_for_a_rank_that_may_still_stage_what_later_steps_share():
    """It would take what comes to the tier while it runs, and with it steps that rely on that."""
    world = started(ranks=2, a=1)
    world.tell_node("n0", events.RankAt(1, CheckpointId(1, 1)))
    world.stage(world.fill(1, 1, 1))
    drop(world, 1, rank=1)
    assert world.stores["a"].images == {ImageId(1, 1, 1, 1)}
    assert world.save(2, ranks=[1], changed=True)
    assert shared(world, 1) == [2], "nothing relies on the one that stands there"
    assert not any(world.find(actions.Sweep)), "rank 0 is not that far"
    assert world.save(1, ranks=[0])
    assert world.save(2, ranks=[0])
    assert [t.action.checkpoints for t in world.find(actions.Sweep)] == [{CheckpointId(1, 1)}]
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.work(actions.Sweep)
    world.work()
    assert ImageId(1, 1, 0, 1) in world.images_of(CheckpointId(1, 2))
    assert world.status(2).tiers["a"].state == "committed"
    assert world.images_of(CheckpointId(1, 2)) == world.stores["a"].images


@pytest.mark.parametrize("end", ["passes", "gives up", "is gone", "closes"])
def test_a_deletion_goes_on_when_the_rank_it_waits_for_is_past_the_step(end):
    world = started(ranks=2, a=1)
    world.tell_node("n0", events.RankAt(1, CheckpointId(1, 1)))
    world.stage(world.fill(1, 1, 1))
    drop(world, 1, rank=1)
    assert world.save(2, ranks=[1], changed=True)
    assert ImageId(1, 1, 1, 1) in world.stores["a"].images
    if end == "closes":
        world.tell_run(events.CloseAsked())
    else:
        events_of = {
            "passes": events.RankAt(0, CheckpointId(1, 2)),
            "gives up": events.RankGaveUp(0, CheckpointId(1, 1)),
            "is gone": events.RankGone(0),
        }
        world.tell_node("n0", events_of[end])
    world.work()
    assert ImageId(1, 1, 1, 1) not in world.stores["a"].images


def test_no_shared_image_is_forgotten_before_every_node_has_told_what_it_holds():
    """The tier has one that no node has named yet: the step it was staged with is still on its way there."""
    world = World(rules_of(a=1), nodes=2, image_count=2, sharing=True)
    world.claim()
    assert world.save(1)
    last = ImageId(1, 1, 1, 0)
    world.work(actions.Seal)
    while uploads := [t for t in world.find(actions.Upload) if t.action.image != last]:
        world.done(uploads[0])
    world.pump_at_once = False  # the tiers are listed before the nodes are heard
    world.restart_agents()
    world.pump_at_once = True
    assert not any(world.find(actions.Sweep))
    world.work()
    assert world.status(1).tiers["a"].state == "committed"
    assert world.images_of(CheckpointId(1, 1)) <= world.stores["a"].images

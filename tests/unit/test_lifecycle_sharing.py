"""Images that steps share: who keeps them, who yields to a save that waits for a slot, and when they go."""

import pytest
from tests.property.lifecycle_things import rules_of
from tests.property.lifecycle_world import World

from holdfast.lifecycle import actions, events
from holdfast.model.identity import CheckpointId, ImageId


def started(ranks=1, **every):
    world = World(rules_of(**(every or {"posix": 10})), ranks_per_node=ranks, image_count=2, sharing=True)
    world.claim()
    return world


def with_a_whole_step(ranks=1):
    """Step 10 is whole."""
    world = started(ranks)
    assert world.save(10)
    world.work()
    return world


def with_half_a_step():
    """Step 10 is whole; of step 20 rank 0 staged both images, what its steps share anew, rank 1 none."""
    world = with_a_whole_step(ranks=2)
    world.save(20, ranks=[0], changed=True)
    return world


def shared(world, rank=0):
    """The images in the rank's slots for what its steps share."""
    pages = [p for p in world.pages.values() if (p.rank, p.number) == (rank, 1)]
    return sorted(p.image.step for p in pages if p.image is not None)


def stage_what_is_shared(world, step, rank):
    """A rank stages the image that its steps share, which goes first, and no more of the step."""
    world.tell_node("n0", events.RankAt(rank, CheckpointId(1, step)))
    world.stage(world.fill(rank, step, 1))


def drop(world, step, rank):
    """A rank finds no slot in time."""
    world.tell_node("n0", events.RankAt(rank, CheckpointId(1, step)))
    world.tell_node("n0", events.RankGaveUp(rank, CheckpointId(1, step)))
    world.work()


def wait_for_a_slot(world, step, rank=0, image=1):
    world.tell_node("n0", events.RankAt(rank, CheckpointId(1, step)))
    world.tell_node("n0", events.SlotWanted(rank, step, image))
    world.work()


def dropped_with_a_new_shared_image():
    world = with_half_a_step()
    world.work()
    drop(world, 20, rank=1)
    assert (world.status(10).memory, world.status(20).memory) == ("whole", "dropped")
    return world


def test_the_image_of_a_dropped_step_stays_while_the_next_step_may_rely_on_it():
    world = dropped_with_a_new_shared_image()
    assert shared(world) == [10, 20]
    assert world.save(30)
    world.work()
    assert world.status(30).memory == "whole"
    assert {i.step for i in world.images_of(CheckpointId(1, 30)) if i.rank == 0} == {20, 30}


def test_the_image_of_a_dropped_step_yields_when_the_bytes_change_again():
    world = dropped_with_a_new_shared_image()
    wait_for_a_slot(world, 30)
    assert shared(world) == [10], "step 10 is the newest whole one"
    world.tell_node("n0", events.SlotWantOver(0))
    for step in (30, 40, 50):
        assert world.save(step, ranks=[0], changed=True)
        assert world.save(step, ranks=[1])
        world.work()
        assert world.status(step).memory == "whole"
        if step < 50:
            wait_for_a_slot(world, step + 10)
            world.tell_node("n0", events.SlotWantOver(0))


def test_one_dropped_step_after_the_other_holds_up_none():
    world = dropped_with_a_new_shared_image()
    for step in range(30, 80, 10):
        wait_for_a_slot(world, step)
        assert world.free_slots(0, 1)
        world.tell_node("n0", events.SlotWantOver(0))
        world.save(step, ranks=[0], changed=True)
        world.work()
        drop(world, step, rank=1)
    assert shared(world) == [10, 70]


def test_a_shared_image_staged_before_an_interrupt_yields_too():
    """Its step is given up before the image that would have named it."""
    world = with_a_whole_step()
    stage_what_is_shared(world, 20, rank=0)
    drop(world, 20, rank=0)
    assert shared(world) == [10, 20]
    wait_for_a_slot(world, 30)
    assert shared(world) == [10]


@pytest.mark.parametrize("image", [0, 1])
def test_a_wait_takes_nothing_from_a_step_that_forms(image):
    """Step 20 may become whole; a rank that waits for its first image relies on what it staged last."""
    world = with_half_a_step()
    world.work()
    wait_for_a_slot(world, 30, image=image)
    assert shared(world) == [10, 20]
    world.save(20, ranks=[1])
    world.work()
    assert world.status(20).memory == "whole"
    assert shared(world) == ([10, 20] if image == 0 else [20]), "the older step yields"


def test_what_the_waiting_rank_has_just_staged_is_not_let_go():
    """The agent may hear of the image before it hears that the wait is over."""
    world = dropped_with_a_new_shared_image()
    wait_for_a_slot(world, 30)
    world.stage(world.fill(0, 30, 1))
    world.work()
    assert shared(world) == [10, 30]
    world.tell_node("n0", events.SlotWantOver(0))
    world.stage(world.fill(0, 30, 0))
    world.save(30, ranks=[1])
    world.work()
    assert world.status(30).memory == "whole"


def test_a_flush_that_runs_keeps_the_image_until_it_ends():
    world = with_half_a_step()
    world.seal()
    world.tell_node("n0", events.RankGaveUp(1, CheckpointId(1, 20)))
    assert any(world.find(actions.Upload, image=ImageId(1, 20, 0, 1)))
    world.tell_node("n0", events.SlotWanted(0, 30, 1))
    assert shared(world) == [10, 20]
    world.work()
    assert shared(world) == [10]


def test_a_new_wait_of_the_same_rank_is_not_overdue():
    world = started(posix=1)
    for step in (1, 2, 3, 4):
        world.save(step, changed=step < 3)
        world.seal()
    world.tell_node("n0", events.SlotWanted(0, 5, 1))
    world.fire("n0", "slot-wait-0")
    world.tell_node("n0", events.SlotWanted(0, 5, 0))
    assert ("n0", "slot-wait-0") in world.timers
    assert world.nodes["n0"]._overdue == set()


def test_an_image_lost_with_every_step_that_names_it_is_spared_no_longer():
    world = started(posix=10)
    for step in (10, 20):
        assert world.save(step)
        world.work()
    for key in [k for k, p in world.pages.items() if p.image is not None]:
        world.lose_slot(key)
    world.restart_node("n0")
    world.work()
    assert not world.run._ledger.sharing.images
    for step in range(30, 80, 10):
        assert world.save(step)
        world.work()
    store = world.stores["posix"]
    assert sorted(c.step for c in store.manifests) == [50, 60, 70]
    assert min(i.step for i in store.images) == 30, "nobody names what was lost"


# deletions -----------------------------------------------------------------------------------------------------------
def dropped_and_saved_past():
    """Rank 1 dropped step 1 after it had staged what its steps share, and saved step 2; rank 0 is not that far."""
    world = started(ranks=2, a=1)
    stage_what_is_shared(world, 1, rank=1)
    drop(world, 1, rank=1)
    assert world.stores["a"].images == {ImageId(1, 1, 1, 1)}
    assert world.save(2, ranks=[1], changed=True)
    return world


def test_a_deletion_waits_for_a_rank_that_may_still_stage_what_later_steps_share():
    """It would take what comes to the tier while it runs, and with it steps that rely on that."""
    world = dropped_and_saved_past()
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
    world = dropped_and_saved_past()
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

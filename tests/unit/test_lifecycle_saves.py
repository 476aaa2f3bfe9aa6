"""A save from staged to committed, and what slow tiers, drops and failures make of it."""

from tests.property.lifecycle_things import ERROR, record_of, rules_of
from tests.property.lifecycle_world import World

from holdfast.lifecycle import actions, events
from holdfast.model.identity import CheckpointId


def started(world):
    world.claim()
    return world


def tier_states(world, step):
    return {t: s.state for t, s in world.status(step).tiers.items()}


def uploads(world, tier):
    return [t.action.image.step for t in world.find(actions.Upload, tier=tier)]


def test_a_save_becomes_whole_then_committed():
    world = started(World(rules_of(posix=1), nodes=2))
    assert world.save(1)
    assert world.status(1).memory == "staged"
    assert tier_states(world, 1) == {"posix": "flushing"}, "while it is sealed"
    world.seal()
    assert world.status(1).memory == "whole"
    assert tier_states(world, 1) == {"posix": "flushing"}
    world.work()
    assert tier_states(world, 1) == {"posix": "committed"}
    assert world.status(1).settled
    assert CheckpointId(1, 1) in world.stores["posix"].manifests


def test_flushes_begin_with_the_image_and_do_not_wait_for_the_whole_step():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1, ranks=[0])
    world.seal()
    assert uploads(world, "posix") == [1]
    world.work()
    assert tier_states(world, 1) == {"posix": "flushing"}, "nothing is committed before the last image"


def test_a_step_is_not_whole_before_its_coverage_is_checked():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.work(actions.Seal)
    assert world.status(1).memory == "staged"
    world.fail(next(world.find(actions.CheckWhole)))
    status = world.status(1)
    assert (status.memory, status.tiers["posix"].state, status.error) == ("failed", "failed", ERROR)
    assert len(world.free_slots(0)) == 3, "one is still in flush"
    world.work()
    assert len(world.free_slots(0)) == 4
    assert not world.stores["posix"].images, "what no manifest will name is removed"


def test_memory_keeps_the_newest_and_always_has_a_free_slot():
    world = started(World(rules_of(keep_memory=2, posix=1), ranks_per_node=2))
    for step in range(1, 20):
        assert world.save(step)
        world.work()
        assert all(len(world.free_slots(rank)) >= 1 for rank in range(2))
    kept = sorted({p.image.step for p in world.pages.values() if p.image})
    assert kept == [18, 19]
    assert world.status(17).memory == "gone"


def test_each_tier_at_its_own_cadence():
    world = started(World(rules_of(nvme=2, s3=6)))
    for step in range(1, 13):
        world.save(step)
        world.work()
    assert sorted(c.step for c in world.stores["s3"].manifests) == [6, 12]
    assert sorted(c.step for c in world.stores["nvme"].manifests) == [8, 10, 12], "keep_last=3"
    assert world.status(3).tiers == {}


def test_several_images_per_rank():
    world = started(World(rules_of(posix=1), ranks_per_node=2, image_count=2))
    for step in range(1, 8):
        assert world.save(step)
        world.work()
        assert world.status(step).memory == "whole"
    assert len(world.stores["posix"].manifests[CheckpointId(1, 7)]) == 4


def stuck(world, last):
    """A tier that flushes nothing while saves go on; the step whose save found no slot."""
    for step in range(1, last):
        if not world.save(step):
            return step
        world.seal()
    raise AssertionError("a save should have waited")


def test_a_slow_tier_makes_one_save_wait_and_then_none():
    world = started(World(rules_of(posix=1)))
    wanted = stuck(world, 10)
    assert wanted == 5, "the first flush runs, the others wait: four slots are taken"
    world.tell_node("n0", events.SlotWanted(0, wanted))
    assert not world.free_slots(0)
    world.fire("n0", "slot-wait-0")
    assert [t.lagging for t in world.nodes["n0"].tiers()] == [True]
    assert world.free_slots(0), "a flush not yet begun gives way"
    assert world.status(2).tiers["posix"].state == "skipped"
    assert world.status(2).tiers["posix"].error["kind"] == "skipped"
    for step in range(wanted, 40):
        assert world.save(step), f"step {step} waited although the tier is marked lagging"
        world.seal()
    assert uploads(world, "posix") == [1]
    world.done(next(world.find(actions.Upload)))
    assert uploads(world, "posix") == [39], "the newest goes first"


def test_a_tier_gives_way_also_when_the_wait_ran_out_before_anything_was_whole():
    world = started(World(rules_of(posix=1)))
    for step in range(1, 5):
        assert world.save(step)
    world.tell_node("n0", events.SlotWanted(0, 5))
    world.fire("n0", "slot-wait-0")
    assert not world.nodes["n0"].tiers()[0].lagging, "nothing is whole yet: no tier is to blame"
    world.seal()
    assert world.nodes["n0"].tiers()[0].lagging
    assert world.free_slots(0)
    assert tier_states(world, 2) == {"posix": "skipped"}


def test_a_tier_that_lags_for_one_rank_gives_way_for_all():
    world = started(World(rules_of(posix=1), ranks_per_node=2))
    stuck(world, 10)
    world.pin(next(k for k, p in world.pages.items() if p.image and (p.image.step, p.image.rank) == (2, 0)))
    world.tell_node("n0", events.SlotWanted(1, 5))
    world.pump_at_once = False
    world.fire("n0", "slot-wait-1")
    assert world.free_slots(1)
    assert world.free_slots(0), "whose save comes next"


def test_a_tier_that_has_caught_up_lags_no_more():
    world = started(World(rules_of(posix=1)))
    world.tell_node("n0", events.SlotWanted(0, stuck(world, 10)))
    world.fire("n0", "slot-wait-0")
    world.save(5)
    world.seal()
    world.done(next(world.find(actions.Upload)))
    assert world.nodes["n0"].tiers()[0].lagging, "steps had to give way while it flushed"
    world.work()
    assert not world.nodes["n0"].tiers()[0].lagging


def test_a_tier_that_only_just_keeps_pace_goes_on_lagging():
    """Ten steps apart and a flush as long as 45: without memory of what gave way it would look caught up."""
    world = started(World(rules_of(posix=10)))
    waits = 0
    for step in range(1, 300):
        if not world.save(step):
            waits += 1
            world.tell_node("n0", events.SlotWanted(0, step))
            world.fire("n0", "slot-wait-0")
            world.tell_node("n0", events.SlotWantOver(0))
            assert world.save(step)
        world.seal()
        if step % 45 == 0:
            world.done(next(world.find(actions.Upload)))
    assert waits == 1
    assert len(world.stores["posix"].images) == 6


def test_two_lagging_tiers_leave_room_for_saves():
    world = started(World(rules_of(keep_memory=1, a=1, b=1)))
    for step in range(1, 60):
        if not world.save(step):
            world.tell_node("n0", events.SlotWanted(0, step))
            world.fire("n0", "slot-wait-0")
            world.tell_node("n0", events.SlotWantOver(0))
            assert step < 10
            world.save(step)
        world.seal()
        if step > 10 and step % 3 == 0:
            slow = "a" if step % 2 else "b"
            for task in list(world.find(actions.Upload, tier=slow)):
                world.done(task)
    for name in ("a", "b"):
        world.work(actions.Commit)
        assert world.stores[name].manifests, "both get their share"


def test_a_fast_tier_is_not_held_back_by_a_lagging_one():
    world = started(World(rules_of(nvme=1, s3=1)))
    for step in range(1, 30):
        if not world.save(step):
            world.tell_node("n0", events.SlotWanted(0, step))
            world.fire("n0", "slot-wait-0")
            world.tell_node("n0", events.SlotWantOver(0))
            world.save(step)
        world.work(actions.Seal, actions.CheckWhole)
        world.work(tier="nvme")
    assert {t.name: t.lagging for t in world.nodes["n0"].tiers()} == {"nvme": False, "s3": True}
    assert tier_states(world, 29)["nvme"] == "committed"


def test_a_step_one_rank_gave_up_is_dropped_for_all():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1, ranks=[0])
    world.seal()
    world.tell_node("n1", events.RankGaveUp(1, CheckpointId(1, 1)))
    status = world.status(1)
    assert status.memory == "dropped"
    assert status.error["kind"] == "step-dropped"
    assert status.tiers["posix"].state == "dropped"
    world.work()
    assert len(world.free_slots(0)) == 4
    assert not world.stores["posix"].images


def test_a_step_one_rank_passed_without_an_image_is_dropped():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1, ranks=[0])
    world.tell_node("n1", events.RankAt(1, CheckpointId(1, 1)))
    assert world.status(1).memory == "staged"
    world.tell_node("n1", events.RankAt(1, CheckpointId(1, 2)))
    assert world.status(1).memory == "dropped"
    world.save(2)
    world.work()
    assert world.status(2).memory == "whole"


def test_a_slot_whose_owner_died_is_freed_and_the_step_dropped():
    world = started(World(rules_of(posix=1), ranks_per_node=2))
    world.save(1, ranks=[0])
    world.fill(1, 1)
    world.kill_trainers()
    assert world.status(1).memory == "dropped"
    world.work()
    assert all(p.state == "free" for p in world.pages.values())


def test_an_image_that_is_none_fails_its_step():
    world = started(World(rules_of(posix=1), ranks_per_node=2))
    world.save(1)
    world.fail(next(world.find(actions.Seal, slot=0)))
    assert world.status(1).memory == "failed"
    world.work()
    assert all(p.state == "free" for p in world.pages.values())
    assert ERROR in world.reports
    assert not world.stores["posix"].manifests
    assert world.nodes["n0"].tiers()[0].degraded is None, "no fault of the tier"


def test_an_image_is_flushed_while_it_is_sealed_and_stands_only_afterwards():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    (flush,) = world.find(actions.Upload)
    assert flush.action.record is None, "its checksum is not known yet"
    world.done(flush)
    assert not list(world.find(actions.Seal)), "the flush waited for it"
    world.work()
    assert tier_states(world, 1) == {"posix": "committed"}


def test_a_header_of_another_attempt_fails_the_image():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    task = next(world.find(actions.Seal))
    world.tasks.remove(task)
    other = world.header(next(iter(world.images_of(CheckpointId(7, 1)))))
    world.tell_node("n0", events.Sealed(task.action.slot, record(world), other))
    assert world.status(1).memory == "failed"
    assert world.status(1).error["kind"] == "corrupt"


def record(world):
    return record_of(next(iter(world.images_of(CheckpointId(1, 1)))))


def test_a_failing_tier_ends_for_the_step_and_others_go_on():
    world = started(World(rules_of(nvme=1, s3=1)))
    world.save(1)
    world.seal()
    world.fail(next(world.find(actions.Upload, tier="nvme")))
    world.work()
    status = world.status(1)
    assert {t: s.state for t, s in status.tiers.items()} == {"nvme": "failed", "s3": "committed"}
    assert status.tiers["nvme"].error == ERROR
    views = {t.name: t.degraded for t in world.nodes["n0"].tiers()}
    assert views == {"nvme": ERROR, "s3": None}
    world.save(2)
    world.work()
    assert tier_states(world, 2) == {"nvme": "committed", "s3": "committed"}
    assert world.nodes["n0"].tiers()[0].degraded is None


def test_a_commit_that_failed_leaves_its_images_alone():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.fail(next(world.find(actions.Commit)))
    world.work()
    assert tier_states(world, 1) == {"posix": "failed"}
    assert world.stores["posix"].images, "the manifest may stand all the same"


def test_a_pinned_slot_stays_until_its_reader_is_done():
    world = started(World(rules_of(keep_memory=1, posix=1)))
    world.save(1)
    world.work()
    key = next(k for k, p in world.pages.items() if p.image)
    world.pin(key)
    for step in (2, 3, 4):
        assert world.save(step)
        world.work()
    assert world.pages[key].image.step == 1
    world.unpin(key)
    assert world.pages[key].state == "free"


def test_an_image_found_bad_is_no_copy_and_goes_when_its_readers_do():
    world = started(World(rules_of(posix=1)))
    for step in (1, 2):
        world.save(step)
        world.work()
    key = next(k for k, p in world.pages.items() if p.image and p.image.step == 2)
    world.pin(key)
    world.pages[key].bad = True
    world.excused.add(CheckpointId(1, 2))
    world.tell_node("n0", events.FoundBad(key[1], ERROR))
    assert world.status(2).memory == "gone"
    assert tier_states(world, 2) == {"posix": "committed"}
    assert world.run.newest_whole() == CheckpointId(1, 1)
    world.unpin(key)
    assert world.pages[key].state == "free"


def test_room_for_a_load():
    world = started(World(rules_of(keep_memory=3, posix=1)))
    for step in (1, 2, 3):
        world.save(step)
        world.work()
    world.tell_node("n0", events.RoomWanted())
    assert sorted(p.image.step for p in world.pages.values() if p.image) == [2, 3]
    for _ in range(3):
        world.tell_node("n0", events.RoomWanted())
    assert sorted(p.image.step for p in world.pages.values() if p.image) == [3]


def test_nothing_grows_with_the_number_of_saves():
    world = started(World(rules_of(posix=1)))
    for step in range(1, 1000):
        assert world.save(step)
        world.work()
        world.log.clear()
    assert len(world.run.steps()) < 600
    assert world.status(1) is None
    ledger = world.run._ledger
    sizes = [len(ledger.records), len(ledger.unsettled), len(ledger.books["posix"].committed), len(ledger.at)]
    assert max(sizes) < 600
    assert sum(len(r.known) for r in ledger.records.values()) <= 4
    assert len(world.nodes["n0"]._state.steps) <= 4

"""Attempts, restarts, retention and the end of a run."""

import dataclasses

import pytest
from tests.property.lifecycle_things import ERROR, record_of, rules_of, tier
from tests.property.lifecycle_world import World

from holdfast.lifecycle import actions, events
from holdfast.model.identity import CheckpointId
from holdfast.model.place import Scope


def started(world, *steps):
    """An attempt with these steps saved, flushed and committed."""
    world.claim()
    for step in steps:
        world.save(step)
        world.work()
    return world


def restarted(world, parent):
    """All trainers die; a new launch stands on this step of the newest attempt."""
    parent = CheckpointId(world.attempt, parent)
    world.kill_trainers()
    world.tell_run(events.TrainersBack())
    world.claim(parent)


def tier_states(world, step, attempt=None):
    return {t: s.state for t, s in world.status(step, attempt).tiers.items()}


def held(world):
    return sorted((p.image.attempt, p.image.step) for p in world.pages.values() if p.image)


def committed(world, tier="posix"):
    return sorted((c.attempt, c.step) for c in world.stores[tier].manifests)


# attempts ------------------------------------------------------------------------------------------------------------
def test_going_back_abandons_what_came_after_and_ancestors_go_on_flushing():
    world = started(World(rules_of(keep_memory=3, posix=1)), 1)
    for step in (2, 3, 4):
        world.save(step)
        world.seal()
    restarted(world, 3)
    assert tier_states(world, 4, 1) == {"posix": "skipped"}
    assert "abandoned" in world.status(4, 1).tiers["posix"].error["message"]
    assert (1, 4) not in held(world), "its memory yields at once"
    world.work()
    assert committed(world) == [(1, 1), (1, 2), (1, 3)]
    world.save(4)
    world.work()
    assert (2, 4) in committed(world)


def test_retention_counts_the_lineage_only():
    world = started(World(rules_of(posix=1)), 1, 2, 3, 4, 5)
    assert committed(world) == [(1, 3), (1, 4), (1, 5)]
    restarted(world, 3)
    for step in (4, 5):
        world.save(step)
        world.work()
    assert committed(world) == [(1, 3), (1, 4), (1, 5), (2, 4), (2, 5)], "abandoned ones stay for a while"
    world.save(6)
    world.work()
    assert committed(world) == [(2, 4), (2, 5), (2, 6)]


def test_images_of_two_attempts_never_form_a_step():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(5, ranks=[0])
    world.claim(None)
    world.save(5, ranks=[1])
    world.work()
    assert committed(world) == []
    world.save(5, ranks=[0])
    world.work()
    assert committed(world) == [(2, 5)]


def test_a_straggler_of_an_abandoned_attempt_is_let_go():
    world = started(World(rules_of(posix=1)))
    key = world.fill(0, 7)
    world.claim(None)
    world.stage(key)
    world.work()
    assert world.pages[key].state == "free"
    assert world.status(7, 1).memory == "dropped"


def test_a_later_attempt_of_somebody_else_settles_everything():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.superseded = True
    world.tell_run(events.SupersededBy(2))
    assert world.status(1).tiers["posix"].error["kind"] == "superseded"
    world.work()
    assert committed(world) == []
    world.tell_run(events.PruneAsked(frozenset({CheckpointId(1, 1)})))
    assert not world.tasks


# restarts ------------------------------------------------------------------------------------------------------------
def test_a_new_agent_verifies_what_it_finds_and_goes_on():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1)
    world.seal()
    world.restart_agents()
    assert len(list(world.find(actions.Verify))) == 2
    assert world.status(1).memory == "staged"
    world.work()
    assert world.status(1).memory == "whole"
    assert committed(world) == [(1, 1)]


def test_a_new_agent_seals_what_was_only_staged():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.restart_agents()
    assert [type(t.action) for t in world.tasks] == [actions.Seal, actions.Upload]
    world.work()
    assert committed(world) == [(1, 1)]


def test_an_adopted_slot_that_rotted_is_freed():
    world = started(World(rules_of(posix=1), ranks_per_node=2))
    world.save(1)
    world.seal()
    world.restart_agents()
    world.fail(next(world.find(actions.Verify)))
    world.work()
    assert world.status(1).memory == "failed"
    assert held(world) == []


def test_images_flushed_before_a_restart_are_found_and_committed():
    """The slot of one image was freed already; only the tier still has it."""
    world = started(World(rules_of(keep_memory=1, posix=1), nodes=2))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.restart_agents()
    page = world.pages["n0", 0]
    page.state, page.image = "free", None
    world.restart_agents()
    world.work()
    assert committed(world) == [(1, 1)]
    assert world.status(1).memory == "gone"


def test_a_committed_step_of_which_memory_has_a_part_is_settled_on_the_other_tiers():
    """One node's slot was freed, and nobody will hear why: its agent died with the news."""
    world = started(World(rules_of(nvme=1, s3=1), nodes=2))
    world.save(1)
    world.seal()
    world.work(tier="nvme")
    page = world.pages["n1", 0]
    page.state, page.image, page.committed = "free", None, set()
    world.restart_agents()
    world.tell_node("n1", events.RankAt(1, CheckpointId(1, 2)))
    world.work()
    assert tier_states(world, 1) == {"nvme": "committed", "s3": "failed"}
    assert world.status(1).memory == "gone"
    assert world.status(1).settled
    assert (1, 1) not in held(world)
    assert not world.stores["s3"].images, "what no manifest will name is removed"


def test_a_step_found_complete_where_it_cannot_be_committed_is_settled():
    """Nothing of it is in memory and no tier goes on with it: an end must not wait for it to become whole."""
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.pages["n0", 0].state, world.pages["n0", 0].image = "free", None
    world.superseded = True
    world.restart_agents()
    world.work()
    assert world.status(1).settled
    assert committed(world) == []


def test_no_step_is_dropped_before_the_tiers_are_listed():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.pages["n0", 0].state, world.pages["n0", 0].image = "free", None
    listed, world.list_tiers = world.list_tiers, lambda: None
    world.restart_agents()
    world.tell_node("n0", events.RankAt(0, CheckpointId(1, 2)))
    assert world.status(1).memory == "staged"
    listed()
    world.work()
    assert committed(world) == [(1, 1)]


def test_an_unreadable_tier_does_not_hold_up_drops():
    world = World(rules_of(posix=1), nodes=2)
    world.list_tiers = lambda: None  # type: ignore[method-assign]  # the tier does not answer
    world.claim()
    world.save(1, ranks=[0])
    world.tell_node("n1", events.RankAt(1, CheckpointId(1, 2)))
    assert world.status(1).memory == "staged"
    world.tell_run(events.CatalogFailed("posix", ERROR))
    assert world.status(1).memory == "dropped"


def test_a_new_coordinator_hears_everything_again():
    world = started(World(rules_of(posix=2), nodes=2), 1)
    world.save(2)
    world.work(actions.Seal)
    world.run = type(world.run)(world.rules, idle_s=900)
    world.tasks = [t for t in world.tasks if t.owner is not None]
    world.tell_run(events.AttemptOwned(world.attempt, world.lineage, frozenset(world.names)))
    world.list_tiers()
    for node in world.names:
        world.tell_node(node, events.Resend())
    world.work()
    assert world.status(1).memory == "whole"
    assert committed(world) == [(1, 2)]


def test_a_fetched_step_is_the_newest_whole_one_until_the_next():
    world = started(World(rules_of(posix=1)), 1)
    world.kill_trainers()
    for page in world.pages.values():
        page.state, page.image = "free", None
    world.restart_agents()
    keys = world.fetch(CheckpointId(1, 1))
    world.seal()
    assert world.run.newest_whole() == CheckpointId(1, 1)
    world.unpin(keys[0])
    world.tell_run(events.TrainersBack())
    world.claim(CheckpointId(1, 1))
    assert held(world) == [(1, 1)]
    for step in (2, 3):
        world.save(step)
        world.work()
    assert held(world) == [(2, 2), (2, 3)]


def test_a_step_fetched_again_is_not_let_go_for_what_was_said_of_it_before():
    world = started(World(rules_of(keep_memory=1, posix=1), nodes=2), 1)
    world.lose_slot(("n1", 0))
    world.restart_agents()
    world.kill_trainers()
    assert world.status(1).memory == "gone"
    world.launch()
    world.pump_at_once = False
    keys = world.fetch(CheckpointId(1, 1))
    assert ("n0", 0) not in keys, "of no use to anybody, it was freed as soon as it was verified"
    world.pump()
    for key in keys:
        world.unpin(key)
    assert [world.pages[key].state for key in keys] == ["held", "held"]


def test_a_lost_node_takes_its_memory_along():
    world = started(World(rules_of(posix=1), nodes=2))
    world.save(1)
    world.seal()
    for task in list(world.find(actions.Upload)):
        if task.owner == "n0":
            world.done(task)
    world.lose_node("n1")
    assert world.status(1).memory == "gone"
    assert tier_states(world, 1) == {"posix": "failed"}
    world.work()
    assert held(world) == []


# deleting ------------------------------------------------------------------------------------------------------------
def test_one_prune_at_a_time_and_the_rest_follows():
    world = started(World(rules_of(posix=1)), 1, 2, 3)
    for step in (4, 5):
        world.save(step)
        world.work(actions.Seal, actions.CheckWhole, actions.Upload, actions.Commit)
    prunes = list(world.find(actions.Prune))
    assert [sorted(c.step for c in t.action.checkpoints) for t in prunes] == [[1]]
    world.work()
    assert [c[1] for c in committed(world)] == [3, 4, 5]


def test_a_prune_that_failed_is_tried_again_with_the_next_commit():
    world = started(World(rules_of(posix=1)), 1, 2, 3)
    world.save(4)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload, actions.Commit)
    world.fail(next(world.find(actions.Prune)))
    assert not list(world.find(actions.Prune)), "not at once"
    assert CheckpointId(1, 1) not in world.run.committed("posix")
    world.save(5)
    world.work()
    assert [c[1] for c in committed(world)] == [3, 4, 5]


def refuse(world, *steps):
    """The prune under way is done, but for these."""
    task = next(iter(world.find(actions.Prune)))
    stay = {CheckpointId(1, step): ERROR for step in steps}
    world.tasks.remove(task)
    world.tell_run(events.PruneDone("posix", task.action.checkpoints - stay.keys(), stay))


def test_what_a_prune_refused_is_told_once_stays_and_is_tried_again_with_the_next_commit():
    world = started(World(rules_of(posix=1)), 1, 2, 3)
    world.tell_run(events.PruneAsked(frozenset({CheckpointId(1, 2)})))
    before = len(world.reports)
    refuse(world, 2)
    assert world.reports[before:] == [ERROR]
    assert not list(world.find(actions.Prune)), "not at once"
    assert world.status(2).tiers["posix"].state == "committed", "it is not told as pruned"
    for step, goes in ((4, [2]), (5, [1, 2])):
        world.save(step)
        world.work(actions.Seal, actions.CheckWhole, actions.Upload, actions.Commit)
        assert [sorted(c.step for c in t.action.checkpoints) for t in world.find(actions.Prune)] == [goes]
        refuse(world, 2)
    assert world.reports[before:] == [ERROR], "told once"
    world.save(6)
    world.work()
    assert (1, 2) not in committed(world)
    assert world.status(2).tiers["posix"].state == "dropped"


def test_a_load_holds_off_deletion():
    world = started(World(rules_of(posix=1)), 1, 2, 3)
    world.loading.append(CheckpointId(1, 1))
    world.tell_run(events.LoadBegun(CheckpointId(1, 1)))
    world.save(4)
    world.work()
    assert (1, 1) in committed(world)
    world.loading.clear()
    world.tell_run(events.LoadEnded(CheckpointId(1, 1)))
    world.save(5)
    world.work()
    assert (1, 1) not in committed(world)


def test_a_run_that_goes_back_to_a_step_of_two_ranks_on_a_tier_ends():
    """Its images come in one by one, and the other rank is long past the step: it is no step for want of an image."""
    world = started(World(rules_of(posix=1), ranks_per_node=2), *range(1, 7))
    step = CheckpointId(1, 4)
    assert step in world.stores["posix"].manifests
    assert (1, 4) not in held(world)
    world.restart_agents()
    world.work()
    for rank in range(2):
        world.tell_node("n0", events.RankAt(rank, CheckpointId(1, 6)))
    world.loading.append(step)
    world.tell_run(events.LoadBegun(step))
    slots = world.fetch(step)
    world.work()
    assert world.status(4).memory == "whole"
    for slot in slots:
        world.unpin(slot)
    world.loading.clear()
    world.tell_run(events.LoadEnded(step))
    world.claim(step)
    world.tell_run(events.CloseAsked())
    world.work()
    assert world.ended, f"waits for {world.run.waiting_for()}"


@pytest.mark.parametrize("restart", [False, True])
def test_a_step_in_memory_that_was_pruned_is_not_taken_for_durable(restart):
    """Retention took it, a reader kept it in memory, and the run went back to it: memory has the only copy."""
    world = started(World((tier(1, "posix", 1, 2),), slots=4), 1)
    world.save(2)
    world.seal()
    key = next(k for k, p in world.pages.items() if p.image and p.image.step == 2)
    world.pin(key)
    world.work()
    for step in (3, 4):
        world.save(step)
        world.work()
    assert committed(world) == [(1, 3), (1, 4)]
    restarted(world, 2)
    if restart:
        world.restart_agents()
        world.work()
    else:
        world.unpin(key)
    assert (1, 2) in held(world)


def test_a_person_prunes_a_step_while_it_is_being_committed():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.asked.add(CheckpointId(1, 1))
    world.excused.add(CheckpointId(1, 1))
    world.tell_run(events.PruneAsked(frozenset({CheckpointId(1, 1)})))
    assert held(world) == []
    assert not list(world.find(actions.Prune)), "not under the commit"
    world.work()
    assert committed(world) == []
    assert not world.stores["posix"].images


@pytest.mark.parametrize("answer", ["fails", "is skipped"])
def test_a_flush_that_comes_to_nothing_during_a_commit_changes_nothing(answer):
    """A new agent flushes anew what stands on the tier already; the commit found there is under way."""
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload)
    world.restart_agents()
    world.work(actions.Verify, actions.CheckWhole)
    assert any(world.find(actions.Commit))
    if answer == "fails":
        world.fail(next(world.find(actions.Upload)))
    else:
        world.tell_run(events.FlushSkipped("n0", "posix", CheckpointId(1, 1)))
    assert tier_states(world, 1) == {"posix": "flushing"}
    world.asked.add(CheckpointId(1, 1))
    world.excused.add(CheckpointId(1, 1))
    world.tell_run(events.PruneAsked(frozenset({CheckpointId(1, 1)})))
    assert not any(world.find(actions.Prune)), "not under the commit"
    world.work()
    assert committed(world) == []


def test_a_deletion_begun_before_a_restart_is_finished():
    world = started(World(rules_of(posix=1)), 1, 2)
    world.stores["posix"].tombstones.add(CheckpointId(1, 1))
    world.restart_agents()
    world.work()
    assert committed(world) == [(1, 2)]


def test_a_tombstoned_step_is_not_flushed():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.stores["posix"].tombstones.add(CheckpointId(1, 1))
    world.restart_agents()
    world.work()
    assert committed(world) == []
    assert tier_states(world, 1) == {"posix": "dropped"}


# the end -------------------------------------------------------------------------------------------------------------
def test_close_flushes_promotes_and_frees():
    world = started(World(rules_of(nvme=1, s3=2)), 2)
    world.save(3)
    world.tell_run(events.CloseAsked())
    assert not world.ended
    assert "step 3" in world.run.waiting_for()
    world.work()
    assert world.ended == [actions.Ended("closed", None, free=True)]
    assert held(world) == []
    assert (1, 3) in committed(world, "nvme")
    assert (1, 3) not in committed(world, "s3"), "one shared tier is enough"


def test_close_promotes_a_step_that_was_due_nowhere_durable():
    world = started(World(rules_of(s3=10)), 10, 11)
    world.tell_run(events.CloseAsked())
    assert world.status(11).tiers["s3"].state == "flushing"
    world.work()
    assert committed(world, "s3") == [(1, 10), (1, 11)]
    assert world.ended[-1].free


def test_close_passes_over_node_scoped_tiers():
    rules = (tier(0, "memory", 1, 2), tier(1, "nvme", 1, None, Scope.NODE), tier(2, "s3", 10))
    world = started(World(rules), 1)
    world.tell_run(events.CloseAsked())
    world.work()
    assert committed(world, "s3") == [(1, 1)]


def test_close_with_discard_waits_for_nothing():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.tell_run(events.CloseAsked(discard=True))
    assert world.ended == [actions.Ended("closed", None, free=True)]
    assert world.status(1).settled
    world.work()
    assert held(world) == []


def test_close_takes_the_next_tier_when_the_fastest_fails():
    world = started(World(rules_of(nvme=10, s3=10)))
    world.save(1)
    world.seal()
    world.tell_run(events.CloseAsked())
    world.fail(next(world.find(actions.Upload, tier="nvme")))
    world.work()
    assert committed(world, "s3") == [(1, 1)]
    assert world.ended == [actions.Ended("closed", None, free=True)]


def test_close_says_when_nothing_can_take_the_step_and_can_be_asked_again():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.tell_run(events.CloseAsked())
    world.fail(next(world.find(actions.Upload)))
    assert world.ended == [actions.Ended("closed", ERROR, free=False)]
    assert held(world) == [(1, 1)]
    world.tell_run(events.CloseAsked())
    world.work()
    assert world.ended[-1] == actions.Ended("closed", None, free=True)
    assert committed(world) == [(1, 1)]


def test_a_close_that_failed_is_tried_again_when_nobody_is_left_to_ask():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.tell_run(events.CloseAsked())
    world.fail(next(world.find(actions.Upload)))
    assert world.run.insecure() == ERROR
    world.kill_trainers()
    world.fail(next(world.find(actions.Upload)))
    world.fire(None, "idle")
    assert len(world.ended) == 1, "what it alone holds is not given up"
    world.work()
    assert committed(world) == [(1, 1)]
    assert world.run.insecure() is None
    world.fire(None, "idle")
    assert world.ended[-1] == actions.Ended("idle", None, free=True)
    assert held(world) == []


def test_close_does_not_wait_for_a_step_some_rank_never_saved():
    world = started(World(rules_of(posix=1), nodes=2), 1)
    world.save(2, ranks=[0])
    world.tell_run(events.CloseAsked())
    world.work()
    assert world.status(2).memory == "dropped"
    assert world.ended[-1].free


def test_a_skipped_step_is_promoted_though_its_remains_are_being_swept():
    """Node n0 had flushed its part when n1 skipped: what n0 flushed must not be swept after the promotion began."""
    world = started(World(rules_of(keep_memory=1, posix=1), nodes=2))
    world.save(1)
    world.seal()
    world.done(next(t for t in world.tasks if t.owner == "n0"))
    world._post("n1", None, events.FlushSkipped("n1", "posix", CheckpointId(1, 1)))
    world.pump()
    assert list(world.find(actions.Sweep))
    world.tell_run(events.CloseAsked())
    world.done(next(world.find(actions.Upload)))
    assert not world.ended
    world.work()
    assert committed(world) == [(1, 1)]
    world.check_always()


def test_without_trainers_the_newest_is_promoted_and_the_memory_stays_until_idle():
    world = started(World(rules_of(posix=10)), 1)
    world.kill_trainers()
    world.work()
    assert committed(world) == [(1, 1)]
    assert not world.ended
    assert held(world) == [(1, 1)]
    world.fire(None, "idle")
    assert world.ended == [actions.Ended("idle", None, free=True)]


def test_idle_ends_nothing_while_the_newest_is_durable_nowhere():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.kill_trainers()
    world.fail(next(world.find(actions.Upload)))
    world.fire(None, "idle")
    assert not world.ended
    world.work()
    assert committed(world) == [(1, 1)], "tried again"
    world.fire(None, "idle")
    assert world.ended[-1].free


def test_a_flush_that_fails_after_the_idle_time_is_tried_again():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.seal()
    world.kill_trainers()
    world.fire(None, "idle")
    world.fail(next(world.find(actions.Upload)))
    assert not world.ended
    world.fire(None, "idle")
    world.work()
    assert committed(world) == [(1, 1)]
    assert world.ended == [actions.Ended("idle", None, free=True)]


def test_trainers_that_come_back_stop_the_end():
    world = started(World(rules_of(posix=1)), 1)
    world.kill_trainers()
    world.tell_run(events.TrainersBack())
    assert (None, "idle") not in world.timers
    world.save(2)
    world.work()
    assert not world.ended


def test_sigterm_promotes_the_newest_ahead_of_all_else():
    world = started(World(rules_of(posix=5)))
    for step in (5, 10, 11):
        world.save(step)
        world.seal()
    world.tell_run(events.TermSignal(25.0))
    assert world.timers[None, "grace"] == 25.0
    world.done(next(world.find(actions.Upload)))
    assert [t.action.image.step for t in world.find(actions.Upload)] == [11], "before step 10"
    world.done(next(world.find(actions.Upload)))
    world.work(actions.Commit)
    assert world.ended == [actions.Ended("terminated", None, free=False)]
    assert (1, 11) in held(world), "the next agent may want it"


def test_out_of_grace():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    world.tell_run(events.TermSignal(25.0))
    world.fire(None, "grace")
    assert world.ended[-1].error["kind"] == "deadline"
    assert "to become whole" in world.ended[-1].error["message"]
    world.work()
    assert len(world.ended) == 1


# other settings ------------------------------------------------------------------------------------------------------
def reconfigured(world, rules, slot_wait_s=2.0, idle_s=900.0):
    """A new launch brings other settings."""
    world.rules = rules
    for tell in (world.tell_run, lambda e: world.tell_node("n0", e)):
        tell(events.Reconfigured(world.rules, slot_wait_s, idle_s))


def test_a_tier_that_is_no_longer_configured_is_settled():
    world = started(World(rules_of(nvme=1, s3=1)))
    world.save(1)
    world.seal()
    reconfigured(world, world.rules[:2])
    world.work()
    assert tier_states(world, 1) == {"nvme": "committed", "s3": "dropped"}
    assert world.status(1).settled


@pytest.mark.parametrize("state", ["flushing", "committing"])
def test_what_went_to_the_old_place_of_a_tier_does_not_count_at_the_new_one(state):
    world = started(World(rules_of(nvme=1, s3=1)))
    world.save(1)
    world.seal()
    if state == "committing":
        world.work(actions.Upload, tier="s3")
    moved = dataclasses.replace(world.rules[2], url="file:///elsewhere")
    reconfigured(world, (*world.rules[:2], moved))
    world.work()
    assert tier_states(world, 1) == {"nvme": "committed", "s3": "dropped"}
    assert CheckpointId(1, 1) not in world.run.committed("s3")
    world.save(2)
    world.work()
    assert tier_states(world, 2) == {"nvme": "committed", "s3": "committed"}


def test_a_tier_that_comes_back_waits_for_the_deletion_under_way():
    world = started(World(rules_of(nvme=1, s3=1)), 1, 2, 3)
    world.save(4)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload, actions.Commit)
    [under_way] = world.find(actions.Prune, tier="s3")
    rules = world.rules
    reconfigured(world, rules[:2])
    reconfigured(world, rules)
    world.claim(CheckpointId(1, 4))
    world.save(5)
    world.work(actions.Seal, actions.CheckWhole, actions.Upload, actions.Commit)
    assert list(world.find(actions.Prune, tier="s3")) == [under_way]
    assert CheckpointId(1, 1) not in world.run.committed("s3"), "it is as good as gone"
    world.work()
    assert committed(world, "s3") == [(1, 3), (1, 4), (2, 5)]


def test_a_new_slot_wait_counts_from_the_next_save_that_waits():
    world = started(World(rules_of(posix=1)))
    reconfigured(world, world.rules, slot_wait_s=0.5)
    world.tell_node("n0", events.SlotWanted(0, 1))
    assert world.timers["n0", "slot-wait-0"] == 0.5


def test_a_new_idle_time_counts_when_trainers_go():
    world = started(World(rules_of(posix=1)))
    reconfigured(world, world.rules, idle_s=5.0)
    world.kill_trainers()
    assert world.timers[None, "idle"] == 5.0


# defects -------------------------------------------------------------------------------------------------------------
def test_filling_a_slot_that_is_not_free_is_a_defect():
    world = started(World(rules_of(posix=1)))
    world.save(1)
    image = record_of(next(iter(world.images_of(CheckpointId(1, 2))))).id
    world.tell_node("n0", events.Staged(0, 1, image, 1, 1, frozenset(), 8192))
    with pytest.raises(ValueError, match="slot 0"):
        world.tell_node("n0", events.Staged(0, 2, image, 1, 1, frozenset(), 8192))

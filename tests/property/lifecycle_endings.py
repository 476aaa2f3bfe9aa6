"""How a run of the two machines ends, and what must be true then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId

if TYPE_CHECKING:
    from tests.property.lifecycle_machine import Lifecycle
    from tests.property.lifecycle_world import World

LATE_S = 25.0


def closes(machine: Lifecycle) -> None:
    """Trainers finish their step and close: every handle settles, the newest whole step is durable, memory is free."""
    world = machine.world
    _finish_the_step(machine)
    _let_readers_go(machine)
    newest = _quiet(world)
    for _ in range(3):
        world.tell_run(events.CloseAsked())
        world.work()
    if _is_over(world, "closed", newest):
        _is_empty(world)


def is_left_alone(machine: Lifecycle) -> None:
    """Trainers die and none come back: after a while the agent goes, and nothing is lost."""
    world = machine.world
    _let_readers_go(machine)
    machine.kill_trainers()
    newest = _quiet(world)
    for _ in range(3):
        if (None, "idle") in world.timers:
            world.fire(None, "idle")
        world.work()
    if _is_over(world, "idle", newest):
        _is_empty(world)


def is_terminated(machine: Lifecycle) -> None:
    """The agent is told to end, in the middle of training; memory is left to the next one."""
    world = machine.world
    _let_readers_go(machine)
    newest = _quiet(world)
    machine.kill_trainers()
    world.tell_run(events.TermSignal(LATE_S))
    world.work()
    _is_over(world, "terminated", newest)


ENDINGS: dict[str, Callable[[Lifecycle], None]] = {f.__name__: f for f in (closes, is_left_alone, is_terminated)}


def _finish_the_step(machine: Lifecycle) -> None:
    world = machine.world
    for _ in range(8 * world.world_size):
        world.pump()
        world.work()
        behind = [r for r, s in machine.at.items() if r in machine.filling or s < max(machine.at.values())]
        for rank in behind:
            machine.go_on(rank)
            if rank in machine.wanting:
                machine.go_on_without(rank)


def _let_readers_go(machine: Lifecycle) -> None:
    machine.let_readers_go()
    while machine.world.loading:
        machine.world.tell_run(events.LoadEnded(machine.world.loading.pop()))


def _quiet(world: World) -> CheckpointId | None:
    """Everybody has heard everything, all work is done; the step that must not be lost now."""
    world.pump_at_once = True
    world.pump()
    world.work()
    return world.newest_whole()


def _is_over(world: World, reason: str, newest: CheckpointId | None) -> bool:
    """It ended as it should; whether nothing is left that somebody has to be told of."""
    if newest in world.asked and (not world.ended or world.ended[-1].error is not None):
        # A person pruned it, and every agent died before memory let go of it: no tier takes it again.
        assert (world.run.insecure() or {}).get("kind") == "not-found"
        assert not world.ended or world.ended[-1].reason == reason
        world.check_always()
        return False
    assert world.ended, f"waits for {world.run.waiting_for()}"
    assert (world.ended[-1].reason, world.ended[-1].error) == (reason, None)
    unsettled = [s for s in world.run.steps() if not s.settled]
    assert not unsettled, unsettled
    durable = {c for s in world.configured.values() for c in s.manifests if c in world.lineage}
    if newest is not None and newest not in world.asked and not world.superseded:
        assert max(durable, default=CheckpointId(0, 0)) >= newest, f"{newest} is durable nowhere"
    world.check_always()
    return True


def _is_empty(world: World) -> None:
    assert world.ended[-1].free
    left = {k: p for k, p in world.pages.items() if p.state not in ("free", "filling")}
    assert not left, f"slots are not freed: {left}"

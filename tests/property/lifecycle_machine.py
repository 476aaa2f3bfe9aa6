"""Trainers, agents and tiers in any order, with any failures, against the two machines.

What must never happen is asserted in lifecycle_checks.py, with every action; what must happen in the end, in
lifecycle_endings.py. test_lifecycle.py runs it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.property.lifecycle_endings import ENDINGS
from tests.property.lifecycle_things import rules_of, tier
from tests.property.lifecycle_world import QUICK, World

from holdfast.lifecycle import actions, events
from holdfast.model.identity import CheckpointId

DRIFT_STEPS = 2
CALM = 2
"""So many rounds of training lie between two disasters, or nothing would ever be saved."""
SHAPES = [
    dict(rules=rules_of(keep_memory=2, posix=1)),
    dict(rules=rules_of(keep_memory=1, nvme=1, s3=3), nodes=2),
    dict(rules=rules_of(keep_memory=2, a=1, b=2), ranks_per_node=2, image_count=2, sharing=True),
    dict(rules=rules_of(keep_memory=1, a=1, b=3), image_count=2, sharing=True),
    dict(rules=rules_of(keep_memory=2, a=2), nodes=2, image_count=2, sharing=True),
    dict(rules=(tier(1, "posix", 1, 2),), nodes=2),
]


class Lifecycle(RuleBasedStateMachine):
    """Ranks train, at most `DRIFT_STEPS` apart; messages, work, timers and deaths come in any order."""

    @initialize(shape=st.sampled_from(SHAPES), ending=st.sampled_from(sorted(ENDINGS)))
    def begin(self, shape: dict[str, Any], ending: str) -> None:
        self.world = World(**shape)
        self.ending = ending
        self.world.pump_at_once = False
        self.at = dict.fromkeys(range(self.world.world_size), 0)
        self.filling: dict[int, list[tuple[str, int]]] = {}
        self.wanting: dict[int, int] = {}
        """Per rank that waits for a slot the image it is for."""
        self.changed: set[int] = set()
        """Ranks whose shared bytes changed since they staged them."""
        self.timed: dict[int, dict[int, frozenset[str]]] = {}
        """Per step the tiers it is due on by time, for each rank that reads so before it has passed the step."""
        self.pinned: list[tuple[str, int]] = []
        self.calm = 2
        self.all_rules = self.world.rules
        self.world.claim()

    # -- trainers -----------------------------------------------------------------------------------------------------
    @rule(data=st.data(), moves=st.integers(1, 10))
    def train(self, data: st.DataObject, moves: int) -> None:
        """Ranks go on: each finishes filling, gets its slot at last, or begins its next step."""
        for _ in range(moves):
            slowest = min(self.at.values())
            able = [r for r, s in self.at.items() if s < slowest + DRIFT_STEPS or r in self.filling]
            self.go_on(data.draw(st.sampled_from(able)))
        self.calm -= 1

    @rule(saves=st.integers(1, 5), slow=st.sampled_from(["nothing", "every flush", "one tier"]))
    def train_in_step(self, saves: int, slow: str) -> None:
        """Ranks save together, and everything quick is done in between."""
        for _ in range(saves):
            last = max(self.at.values()) + 1
            for rank in self.at:
                for _ in range(2 * last):
                    if self.at[rank] < last or rank in self.filling:
                        self.go_on(rank)
            self.world.all_that_is_quick()
            for name in {"nothing": list(self.world.stores), "one tier": list(self.world.stores)[:1]}.get(slow, []):
                self.world.work(tier=name)
        self.calm -= 1

    def go_on(self, rank: int) -> None:
        """One move of a rank: finish filling, or begin the next step, or wait for a slot."""
        world, node = self.world, self.world.node_of[rank]
        if rank in self.filling:
            for key in self.filling.pop(rank):
                world.stage(key)
            return
        if rank not in self.wanting:
            self.at[rank] += 1
            world.tell_node(node, events.RankAt(rank, CheckpointId(world.attempt, self.at[rank])))
        images = world.to_stage(rank, rank in self.changed)
        lacking = next((i for i in images if not world.free_slots(rank, i)), None)
        if lacking is not None:
            if self.wanting.get(rank) != lacking:
                self.wanting[rank] = lacking
                world.tell_node(node, events.SlotWanted(rank, self.at[rank], lacking))
            return
        self._want_no_more(rank)
        self.changed.discard(rank)
        timed = self.timed.get(self.at[rank], {}).get(rank, frozenset()) & world.configured.keys()
        keys = [world.fill(rank, self.at[rank], image, None, frozenset(timed)) for image in images]
        self.filling[rank] = [k for k in keys if k is not None]

    def _want_no_more(self, rank: int) -> None:
        if rank in self.wanting:
            del self.wanting[rank]
            self.world.tell_node(self.world.node_of[rank], events.SlotWantOver(rank))

    @rule(data=st.data(), ahead=st.integers(1, 3))
    def be_due_by_time(self, data: st.DataObject, ahead: int) -> None:
        """Some tiers get a step that they would not get by its number; not every rank need hear of it in time."""
        tiers = frozenset(data.draw(st.sets(st.sampled_from(sorted(self.world.configured)), min_size=1)))
        in_time = data.draw(st.sets(st.sampled_from(sorted(self.at))))
        self.timed[max(self.at.values()) + ahead] = dict.fromkeys(in_time, tiers)

    @rule(data=st.data())
    def shared_bytes_change(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.at)))
        if rank not in self.wanting:  # who waits has compared them already
            self.changed.add(rank)

    @precondition(lambda self: self.world.sharing)
    @rule(data=st.data(), interrupted=st.booleans(), quiet=st.booleans())
    def shared_bytes_change_again(self, data: st.DataObject, interrupted: bool, quiet: bool) -> None:
        """One rank's, before two saves in a row; the first may be interrupted, or only begin what others go on with."""
        slowest = min(self.at.values())
        able = [r for r, s in self.at.items() if s < slowest + DRIFT_STEPS and r not in {*self.filling, *self.wanting}]
        if not able:
            return
        rank = data.draw(st.sampled_from(able))
        self.changed.add(rank)
        self.go_on(rank)
        if interrupted and rank in self.filling:
            self.interrupt(rank)
        elif rank in self.filling:
            self.go_on(rank)
        if quiet:
            self.world.all_that_is_quick()
            self.world.work(actions.Upload, actions.Commit, actions.Prune, actions.Sweep)
            self.world.all_that_is_quick()
        if rank not in self.wanting and self.at[rank] < slowest + DRIFT_STEPS:
            self.changed.add(rank)
            self.go_on(rank)

    def interrupt(self, rank: int) -> None:
        """An exception comes before the last image: what was staged stays, the rest is given back."""
        *done, last = self.filling.pop(rank)
        for key in done:
            self.world.stage(key)
        self.world.give_back(last)
        step = CheckpointId(self.world.attempt, self.at[rank])
        self.world.tell_node(self.world.node_of[rank], events.RankGaveUp(rank, step))

    @precondition(lambda self: self.wanting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.go_on_without(data.draw(st.sampled_from(sorted(self.wanting))))

    def go_on_without(self, rank: int) -> None:
        """A rank has waited for a slot for long enough."""
        step = CheckpointId(self.world.attempt, self.at[rank])
        self._want_no_more(rank)
        self.world.tell_node(self.world.node_of[rank], events.RankGaveUp(rank, step))

    # -- work, messages, time -----------------------------------------------------------------------------------------
    @precondition(lambda self: self.world.tasks)
    @rule(data=st.data(), pieces=st.integers(1, 8))
    def work(self, data: st.DataObject, pieces: int) -> None:
        for _ in range(pieces):
            if self.world.tasks:
                self.world.done(data.draw(st.sampled_from(self.world.tasks)))

    @precondition(lambda self: self.world.tasks and self.calm <= 0)
    @rule(data=st.data())
    def something_fails(self, data: st.DataObject) -> None:
        self.calm = CALM
        self.world.fail(data.draw(st.sampled_from(self.world.tasks)))

    @precondition(lambda self: any(isinstance(t.action, QUICK) for t in self.world.tasks))
    @rule()
    def become_whole(self) -> None:
        """Checksums are quick: mostly they are done before the next save."""
        self.world.all_that_is_quick()

    @precondition(lambda self: self.world.channels())
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.world.deliver(data.draw(st.sampled_from(self.world.channels())))

    @rule()
    def deliver_all(self) -> None:
        self.world.pump()

    @precondition(lambda self: self.world.timers)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        self.world.fire(*data.draw(st.sampled_from(sorted(self.world.timers, key=str))))

    # -- readers and people -------------------------------------------------------------------------------------------
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        held = [(n, v.slot) for n in self.world.names for v in self.world.nodes[n].slots() if v.state == "held"]
        if held and len(self.pinned) < 2:
            key = data.draw(st.sampled_from(held))
            self.world.pin(key)
            self.pinned.append(key)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        # A load takes longer than a message.
        self.world.pump()
        self.world.unpin(self.pinned.pop())

    def let_readers_go(self) -> None:
        """All readers are done."""
        while self.pinned:
            self.unpin()

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        steps = sorted({c for s in self.world.configured.values() for c in s.manifests})
        if self.world.loading:
            self.world.tell_run(events.LoadEnded(self.world.loading.pop()))
        elif steps:
            self.world.loading.append(data.draw(st.sampled_from(steps)))
            self.world.tell_run(events.LoadBegun(self.world.loading[-1]))

    @precondition(lambda self: self.calm <= 0)
    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        self.calm = CALM
        known = [s.checkpoint for s in self.world.run.steps()]
        if known:
            step = data.draw(st.sampled_from(known))
            # As with rot: a node that has freed an older step for the sake of this one did so in good faith.
            self.world.pump()
            self.world.asked.add(step)
            self.world.excused.add(step)
            self.world.tell_run(events.PruneAsked(frozenset({step})))
            self.world.pump()

    @precondition(lambda self: self.calm <= 0)
    @rule(data=st.data())
    def rot(self, data: st.DataObject) -> None:
        """A reader finds a bad image."""
        self.calm = CALM
        held = [(n, v.slot) for n in self.world.names for v in self.world.nodes[n].slots() if v.state == "held"]
        if held:
            node, slot = data.draw(st.sampled_from(held))
            self.world.pump()
            page = self.world.pages[node, slot]
            if page.state != "held":
                return
            page.bad = True
            assert page.image is not None
            self.world.excused |= self.world.steps_of(page.image)
            self.world.tell_node(node, events.FoundBad(slot, {"kind": "corrupt", "message": "rot"}))
            # Until other nodes hear of it they may free older steps for its sake: no protocol can help that.
            self.world.pump()

    @rule()
    def room_for_a_load(self) -> None:
        self.world.tell_node(self.world.names[0], events.RoomWanted())

    # -- deaths -------------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.calm <= 0)
    @rule(data=st.data())
    def agents_die(self, data: st.DataObject) -> None:
        self.calm = CALM
        self.pinned.clear()
        self._lose_a_slot(data, self.world.names)
        self.world.restart_agents(lambda t: data.draw(st.booleans(), label="had its effect"))
        self._trainers_say_again()

    @precondition(lambda self: self.calm <= 0 and len(self.world.names) > 1)
    @rule(data=st.data())
    def an_agent_dies(self, data: st.DataObject) -> None:
        self.calm = CALM
        self.world.pump()
        node = self.world.names[-1]
        self.pinned = [k for k in self.pinned if k[0] != node]
        self._lose_a_slot(data, [node])
        self.world.restart_node(node, lambda t: data.draw(st.booleans(), label="had its effect"))
        # As with rot: what others free before they hear of it, they free in good faith.
        self.world.pump()
        self._trainers_say_again()

    def _lose_a_slot(self, data: st.DataObject, nodes: list[str]) -> None:
        held = [k for k, p in sorted(self.world.pages.items()) if p.state == "held" and k[0] in nodes]
        lost = data.draw(st.booleans(), label="an image is lost")
        if held and lost:
            self.world.lose_slot(data.draw(st.sampled_from(held)))

    def _trainers_say_again(self) -> None:
        """A new agent reads every page anew."""
        for rank, step in self.at.items():
            node = self.world.node_of[rank]
            if step:
                self.world.tell_node(node, events.RankAt(rank, CheckpointId(self.world.attempt, step)))
            if rank in self.wanting:
                self.world.tell_node(node, events.SlotWanted(rank, step, self.wanting[rank]))

    @precondition(lambda self: self.calm <= 0)
    @rule(data=st.data(), back=st.booleans())
    def trainers_die(self, data: st.DataObject, back: bool) -> None:
        """All die, and a new launch loads: the newest step there is, or an earlier one."""
        self.calm = CALM
        self.kill_trainers()
        rules = None
        if len(self.all_rules) > 2 and data.draw(st.booleans(), label="other tiers"):
            rules = self.all_rules if self.world.rules != self.all_rules else self.all_rules[:-1]
        self._launch(data, back, rules)

    @precondition(lambda self: self.calm <= 0 and len(self.world.names) > 1)
    @rule(data=st.data())
    def a_machine_is_lost(self, data: st.DataObject) -> None:
        """With all that is on it; the job is started anew, with another machine in its place."""
        self.calm = CALM
        node = self.world.names[-1]
        self.pinned = [k for k in self.pinned if k[0] != node]
        self.world.lose_node(node)
        self.kill_trainers()
        self.world.replace_node(node)
        self._launch(data, False, None)

    def kill_trainers(self) -> None:
        """The processes of all ranks are gone."""
        self.filling.clear()
        self.wanting.clear()
        self.world.kill_trainers()
        self.world.pump()

    def _launch(self, data: st.DataObject, back: bool, rules: Any) -> None:
        world = self.world
        world.launch(rules)
        parent = self._load(data, back)
        self.at = dict.fromkeys(self.at, parent.step if parent else 0)
        if data.draw(st.booleans(), label="somebody else's attempt in between"):
            world.supersede()
        world.claim(parent)

    @precondition(lambda self: self.calm <= 0 and not self.world.superseded)
    @rule()
    def somebody_else_claims(self) -> None:
        """Another job took the run; ours has not been ended yet."""
        self.calm = CALM
        self.world.supersede()

    def _load(self, data: st.DataObject, back: bool) -> CheckpointId | None:
        world = self.world
        whole = world.run.newest_whole()
        standing = {c for t in world.configured for c in world.run.committed(t) if c in world.lineage}
        loadable = sorted(standing | ({whole} if whole is not None else set()))
        step = None
        if loadable:
            step = data.draw(st.sampled_from(sorted(standing) or loadable)) if back else loadable[-1]
        if step is not None:
            self.pinned += world.fetch(step)
            if data.draw(st.booleans(), label="the load is over before the first save"):
                self.let_readers_go()
        return step

    # -- always -------------------------------------------------------------------------------------------------------
    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "world"):
            self.world.check_always()

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.world.broken:
            ENDINGS[self.ending](self)

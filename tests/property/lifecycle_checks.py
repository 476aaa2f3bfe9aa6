"""What the two machines must never do, asserted with every action, and what must be true between any two events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from holdfast.lifecycle import actions
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.slots import SlotView
from holdfast.model.identity import CheckpointId, ImageId

if TYPE_CHECKING:
    from tests.property.lifecycle_place import Place
    from tests.property.lifecycle_things import Page


class Checks:
    """Judges by what the world knows of slots and tiers; asks a machine only for what it shows."""

    def __init__(self, world: Place) -> None:
        self._world = world
        self._of: dict[type, Any] = {
            actions.Free: self._free,
            actions.Upload: self._upload,
            actions.CheckWhole: self._check_whole,
            actions.Commit: self._commit,
            actions.Prune: self._prune,
            actions.Sweep: self._sweep,
            actions.Ended: self._ended,
        }

    def action(self, owner: str | None, action: Any) -> None:
        """Before it is performed."""
        check = self._of.get(type(action))
        if check is not None:
            check(owner, action)

    # -- memory -------------------------------------------------------------------------------------------------------
    def _free(self, node: str, action: actions.Free) -> None:
        world = self._world
        page = world.pages[node, action.slot]
        assert page.state != "free", "freed twice"
        assert page.state != "filling" or not page.filler_alive, "freed under a live filler"
        assert page.pins == 0, "freed under a reader"
        assert not world.work_on(node, action.slot), "freed while in use"
        if page.image is not None and page.state == "held" and not page.bad:
            if page.image.image:
                self._free_shared(node, page.image)
            self._free_held(node, page.image.checkpoint)

    def _free_shared(self, node: str, image: ImageId) -> None:
        pages = [p for (n, _), p in self._world.pages.items() if n == node and p.state in ("staged", "held")]
        assert not any(image in p.relies_on for p in pages), f"freed {image}, on which a step here relies"
        newest = self._world.sharing and self._world.newest.get((image.rank, image.image)) == image
        want = self._world.wants.get(image.rank)
        outdated = want is not None and want.image == image.image and want.step > image.step
        assert not newest or outdated, f"freed {image}, on which the next step may rely"
        assert not self._forms(node, image), f"freed {image}, of a step that forms"

    def _forms(self, node: str, image: ImageId) -> bool:
        """Whether the rank staged its part of the image's own step, and others may still bring theirs."""
        pages = [p for (n, _), p in self._world.pages.items() if n == node and p.state in ("staged", "held")]
        here = [p.image for p in pages if not p.bad]
        newest = self._world.newest_whole(self._world.heard[node])
        status = self._world.run.status(image.checkpoint)
        forming = status is not None and status.memory == "staged" and (newest is None or newest < image.checkpoint)
        return forming and replace(image, image=0) in here

    def _free_held(self, node: str, step: CheckpointId) -> None:
        world = self._world
        if step in world.excused:
            return
        durable = any(c >= step and c in world.lineage for s in world.configured.values() for c in s.manifests)
        assert durable or step != world.newest_whole(), f"freed the only copy of {step}"
        # Of an attempt just claimed a node has yet to hear; trainers go on only when every node has.
        newest = step in world.lineage and step == world.newest_whole(world.heard[node])
        yields = durable and not any(r.is_memory for r in world.rules)
        assert yields or not newest, f"freed the newest whole step {step}"

    def _upload(self, node: str, action: actions.Upload) -> None:
        world = self._world
        page = world.pages[node, action.slot]
        assert page.state == ("held" if action.record is not None else "staged"), "flushed what nobody seals"
        assert page.image == action.image
        running = [t for t in world.tasks if t.owner == node and isinstance(t.action, actions.Upload)]
        mine = [t.action.image for t in running if t.action.tier == action.tier]
        assert action.image not in mine, "flushed twice at once"
        steps = [world.images_of(c) for c in world.steps_of(action.image)] if mine else []
        assert not mine or any(set(mine) <= step for step in steps), "two steps at once"
        here = {p.image for (n, _), p in world.pages.items() if n == node and p.state == "held" and not p.bad}
        relied = here & set(page.relies_on)
        assert relied <= world.stores[action.tier].images, "flushed before what it relies on"

    # -- tiers --------------------------------------------------------------------------------------------------------
    def _check_whole(self, owner: str | None, action: actions.CheckWhole) -> None:
        images = {i.record.id for i in action.images}
        assert {i.checkpoint for i in images if not i.image} == {action.checkpoint}, "mixed attempts or steps"
        assert images == self._world.images_of(action.checkpoint), "mixed attempts or steps"

    def _commit(self, owner: str | None, action: actions.Commit) -> None:
        world = self._world
        images = {i.record.id for i in action.images}
        step, store = action.checkpoint, world.stores[action.tier]
        assert {i.checkpoint for i in images if not i.image} == {step}, "mixed attempts or steps"
        assert images == world.images_of(step), "committed what is not complete"
        assert images <= store.images, "committed before all images stand there"
        assert step in world.checked, "committed unchecked"
        assert step in world.lineage, "committed what was abandoned"
        assert step not in store.tombstones, "committed what is being deleted"
        assert not world.superseded, "committed after being superseded"
        assert not self._committing(action.tier, step), "committed twice at once"

    def _prune(self, owner: str | None, action: actions.Prune) -> None:
        world = self._world
        store = world.stores[action.tier]
        assert not self._deleting(action.tier), "two deletions at once"
        assert not world.superseded, "pruned after being superseded"
        for step in action.checkpoints:
            assert step not in world.loading, "pruned under a load"
            assert not self._committing(action.tier, step), "pruned while committing"
            newest = max((c for c in store.manifests if c in world.lineage), default=None)
            assert step != newest or step in world.asked | store.tombstones, "retention removed the newest"

    def _sweep(self, owner: str | None, action: actions.Sweep) -> None:
        assert not self._deleting(action.tier), "two deletions at once"
        for step in action.checkpoints:
            assert step not in self._world.stores[action.tier].manifests, "swept images under a manifest"
            assert not self._committing(action.tier, step), "swept while committing"

    def _committing(self, tier: str, step: CheckpointId) -> bool:
        return any(self._world.find(actions.Commit, tier=tier, checkpoint=step))

    def _deleting(self, tier: str) -> bool:
        return any(self._world.find(actions.Prune, tier=tier)) or any(self._world.find(actions.Sweep, tier=tier))

    # -- the end ------------------------------------------------------------------------------------------------------
    def _ended(self, owner: str | None, action: actions.Ended) -> None:
        world = self._world
        newest = world.newest_whole()
        if action.free and newest is not None and newest not in world.excused and not world.superseded:
            assert any(newest in s.manifests for s in world.stores.values()), "let go of the only copy"

    # -- between any two events ---------------------------------------------------------------------------------------
    def always(self) -> None:
        """What tiers show is sound; no slow tier holds what a save needs; nothing lies about that nobody wants."""
        for name, store in self._world.stores.items():
            for step, images in store.manifests.items():
                broken = step in store.tombstones or images <= store.images
                assert broken, f"{name} shows {step} without its images"
        for rank, node in self._world.node_of.items():
            if node in self._world.names:
                self._room(node, rank)
                self._room_to_share(node, rank)
        if not self._world.channels():
            self._nothing_left_over()

    def _room(self, node: str, rank: int) -> None:
        machine = self._world.nodes[node]
        lagging = {t.name for t in machine.tiers() if t.lagging}
        newest = machine.newest_whole()
        views = [v for v in machine.slots() if v.rank == rank and self._world.pages[node, v.slot].number == 0]
        if any(v.image is None for v in views) or newest is None:
            return
        for v in views:
            if v.image is None or v.image.checkpoint >= newest or v.state != "held" or v.pins:
                continue
            held_by = {t for t, f in v.flushes.items() if f in ("waiting", "running", "cancelled")}
            assert held_by, f"{v.image} idles in a slot that rank {rank} needs"
            if not self._only_waits(machine, v):
                continue
            assert not held_by <= lagging, f"lagging {held_by} hold a slot that rank {rank} needs"
            assert (node, rank) not in self._world.waited_long, f"{held_by} hold a slot that rank {rank} waits for"

    def _room_to_share(self, node: str, rank: int) -> None:
        """A save that waits for a slot for what steps share gets one, once all work is done."""
        world, machine = self._world, self._world.nodes[node]
        want = world.wants.get(rank)
        if want is None or not want.image or not world.sharing or world.channels() or world.tasks:
            return
        pages = [p for (n, _), p in world.pages.items() if n == node]
        slots = [p for p in pages if (p.rank, p.number) == (rank, want.image)]
        if any(p.image is None or p.state != "held" for p in slots):
            return
        newest = machine.newest_whole()
        for slot in slots:
            named_by = [p for p in pages if slot.image is not None and self._names(p, slot.image)]
            if not any(p.pins for p in (slot, *named_by)):
                steps = [p.image.checkpoint for p in named_by if p.image is not None]
                old = not steps or (newest is not None and max(steps) < newest)
                assert not old, f"{slot.image} stays in a slot that rank {rank} waits for"

    def _names(self, page: Page, image: ImageId) -> bool:
        """Whether a page is of a first image that the other completes."""
        first = page.image
        return first == replace(image, image=0) or image in page.relies_on

    def _only_waits(self, machine: NodeMachine, view: SlotView) -> bool:
        """Whether no tier has begun what it still has to do for the image."""
        assert view.image is not None
        moving = {t: f for t, f in view.flushes.items() if f in ("waiting", "running", "cancelled")}
        begun = any(self._begun(machine, t, view.image.checkpoint) for t in moving)
        return all(f == "waiting" for f in moving.values()) and not begun

    def _begun(self, machine: NodeMachine, tier: str, step: CheckpointId) -> bool:
        same = [v for v in machine.slots() if v.image is not None and v.image.checkpoint == step]
        relied = {i for first, images in self._world.relied.items() if first.checkpoint == step for i in images}
        if any(v.image in relied and v.flushes.get(tier) in ("running", "cancelled") for v in machine.slots()):
            return True
        if any(v.flushes.get(tier) in ("running", "uploaded", "cancelled") for v in same):
            return True
        # An image may have been flushed and freed already.
        return any(i.checkpoint == step for i in self._world.stores[tier].images)

    def _nothing_left_over(self) -> None:
        """Once everybody has heard everything, nothing dropped or failed stays in a slot that nobody uses."""
        for key, page in self._world.pages.items():
            if page.image is None or page.state != "held" or page.pins or self._world.work_on(*key):
                continue
            if page.image.image and self._may_be_relied_on(page.image):
                continue
            status = self._world.run.status(page.image.checkpoint)
            gone = status is not None and status.memory in ("dropped", "failed")
            assert not gone, f"{page.image} stays, though its step was {status.memory if status else ''}"

    def _may_be_relied_on(self, image: ImageId) -> bool:
        # The agent cannot know of one that is only being filled.
        pages = [p for p in self._world.pages.values() if p.state in ("staged", "held")]
        images = [p.image for p in pages if p.image is not None and not p.bad]
        later = any((i.rank, i.image) == (image.rank, image.image) and i > image for i in images)
        return not later or any(image in p.relies_on for p in pages)

"""What this rank stages, and where it stands in the image: learnt before training, followed at every save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.format.image import plain_fits, write_notes
from holdfast.format.layout import Template, lay_out
from holdfast.format.names import MAX_ATTEMPT, MAX_STEP
from holdfast.model.identity import ImageId
from holdfast.trainer.capture import Capture, Captured
from holdfast.trainer.compare import compare_plain, compare_replicas, plain_digests
from holdfast.trainer.devices import page_lock_for
from holdfast.trainer.grouping import Grouping, Groups
from holdfast.trainer.handing import Described, describe, hand_over
from holdfast.trainer.move import cores
from holdfast.trainer.ranks import Ranks, Talk
from holdfast.trainer.session import Session
from holdfast.trainer.shared import SharedPart
from holdfast.trainer.shares import Shares, assign, unsplit
from holdfast.trainer.slots import Slots, TrainerSlot
from holdfast.trainer.stage import Stager
from holdfast.trainer.structure import Structure

_ANY = (MAX_ATTEMPT, MAX_STEP)


class StagePlan:
    """Layout of this rank's image, and of the one its steps share, if nothing is expected to change some tensors.

    Invariants: `follow` and `look_for_changes` run before `stage` in every save; a layout is made anew only when the
    structure changed, the plain values outgrew their room or a tensor changed that was thought frozen, never because a
    number grew.
    Threads: the training thread.
    """

    def __init__(self, run: str, ranks: Ranks) -> None:
        self._run = run
        self._ranks = ranks
        self._capture = Capture()
        self._shares: Shares | None = None
        self._shared_digest = ""
        self._captured: Captured | None = None
        self._payload = b""
        self._laid_out_for: Structure | None = None
        self._make: Callable[..., Template] | None = None
        self._template: Template | None = None
        self._stager: Stager | None = None
        self._grouping = Grouping()
        self._groups = Groups((), ())
        self._part: SharedPart | None = None
        self._relied_on: ImageId | None = None
        self._compared: set[str] = set()
        self._unmapped = 0

    @property
    def image_bytes(self) -> int:
        assert self._template is not None, "learn() or follow() come first"
        return self._template.layout.size_bytes

    @property
    def page_lock(self) -> Callable[[memoryview], Callable[[], None]] | None:
        """How slots are page-locked for what was seen last; None where nothing is on a device that asks for it."""
        captured = self._captured
        assert captured is not None, "learn() or follow() come first"
        return page_lock_for(chain(captured.tensors.values(), captured.own.values()))

    @property
    def sizes(self) -> tuple[int, int]:
        """Of the image of each step, and of the one that steps share (0: none)."""
        return self.image_bytes, self._part.size_bytes if self._part is not None else 0

    @property
    def to_stage(self) -> list[tuple[int, int]]:
        """What this save stages, as (number of the image, bytes); what steps share first, so that it is there for the
        other."""
        shared = [(1, self._part.size_bytes)] if self._part is not None and self._relied_on is None else []
        return [*shared, (0, self.image_bytes)]

    def learn(self, state: dict[str, Any], talk: Talk) -> None:
        """Lay out what the first save will stage: optimizer state as it will be after the first step.

        Collective.

        Raises: UnsupportedValueError, ReplicaMismatchError: on all ranks.
        """
        self._compared.clear()
        self._grouping.forget()
        captured, structure = self._look(state, talk)
        self._agree(structure, talk)
        self._compare(captured, talk)
        talk.each(lambda: self._lay_out(structure))

    def _look(self, state: dict[str, Any], talk: Talk) -> tuple[Captured, Structure]:
        seen: list[tuple[Captured, Structure]] = []

        def look() -> None:
            captured = self._capture.refresh(state)
            self._captured, self._payload = captured, captured.payload(talk.rank)
            seen.append((captured, self._capture.forecast(state)))

        talk.each(look)
        return seen[0]

    def _agree(self, structure: Structure, talk: Talk) -> None:
        """Exchange tables, one per distinct outline, and the boxes of every rank; compute who stages what."""
        told = talk.gather((structure.outline, structure.cuts))
        senders = {outline: rank for rank, (outline, _) in reversed(list(enumerate(told)))}
        tables = talk.gather(structure if senders[structure.outline] == talk.rank else None)
        known = {outline: tables[rank] for outline, rank in senders.items()}
        self._shares = assign([known[outline].cut_as(cuts) for outline, cuts in told])  # type: ignore[union-attr]
        self._shared_digest = structure.digest

    def follow(self, state: dict[str, Any]) -> None:
        """See the state as it is now; lay out anew only if its structure changed.

        Raises: UnsupportedValueError with the path.
        """
        captured = self._capture.refresh(state)
        self._captured, self._payload = captured, captured.payload(self._ranks.rank)
        template = self._template
        if captured.structure is self._laid_out_for and template and plain_fits(template.layout, len(self._payload)):
            return
        self._lay_out(captured.structure)

    def _lay_out(self, structure: Structure) -> None:
        rank = self._ranks.rank
        if self._shares is not None and structure.digest == self._shared_digest:
            pieces, aliases = self._shares.pieces(rank), self._shares.aliases(rank)
        else:
            # It changed after prepare: whole until the next start, without asking the other ranks.
            pieces, aliases = unsplit(structure, rank)
        assert self._captured is not None
        groups = self._grouping.split(structure, self._captured.owned, pieces, aliases)
        if self._template is None or self._laid_out_for is None or not self._same(structure, groups):
            self._lay_out_groups(structure, groups)
        self._laid_out_for = structure
        self._groups = groups

    def _lay_out_groups(self, structure: Structure, groups: Groups) -> None:
        """Raises: CapacityError; everything is as it was before, then."""
        threads = cores(self._ranks.size)
        part = self._part
        if part is None or groups.shared != self._groups.shared or structure is not self._laid_out_for:
            shared = self._maker(structure, groups, image=1) if groups.shared else None
            part = SharedPart(shared(), threads) if shared is not None else None
        make = self._maker(structure, groups)
        # Whatever it relies on, its layout is the same.
        longest = make(relies_on=(ImageId(*_ANY, self._ranks.rank, 1),)) if groups.shared else None
        self._template = make(min_header_bytes=longest.layout.header_bytes if longest is not None else 0)
        self._part, self._make = part, make
        self._stager = Stager(self._template, threads=threads)
        self._relied_on = None

    def _same(self, structure: Structure, groups: Groups) -> bool:
        """Whether the forecast came true, so that the layout made before training stands."""
        template = self._template
        assert template is not None
        assert self._laid_out_for is not None
        fits = plain_fits(template.layout, len(self._payload))
        return fits and structure.digest == self._laid_out_for.digest and groups == self._groups

    def _maker(self, structure: Structure, groups: Groups, *, image: int = 0) -> Callable[..., Template]:
        """`lay_out` for one image, but for what it relies on."""
        pieces, aliases = (groups.shared, groups.shared_aliases) if image else (groups.pieces, groups.aliases)
        return partial(
            lay_out,
            pieces,
            aliases,
            run=self._run,
            rank=self._ranks.rank,
            world_size=self._ranks.size,
            image=image,
            image_count=2 if groups.shared else 1,
            structure=structure.digest,
            plain_bytes=0 if image else len(self._payload),
        )

    def look_for_changes(self, session: Session, attempt: int) -> None:
        """Compare what steps share with what was staged of it: unchanged, this save relies on that.

        Tensors that change again and again move to the image of every step, if the arena has room for that.
        """
        self._follow_slots(session.slots)
        if self._part is None:
            return
        assert self._captured is not None
        relied_on = self._part.relied_on(session.slots, attempt)
        changed = self._part.changed(self._captured) if relied_on is not None else []
        if changed:
            relied_on = None
            self._part.outdate()
            self._move(session, self._grouping.note(self._captured.structure, changed))
        self._rely_on(relied_on)

    def _follow_slots(self, slots: Slots) -> None:
        """Let go of the views of slots if some are not mapped any more."""
        if slots.unmapped == self._unmapped:
            return
        self._unmapped = slots.unmapped
        if self._stager is not None:
            self._stager.forget_buffers()
        if self._part is not None:
            self._part.forget_buffers()

    def _move(self, session: Session, names: frozenset[str]) -> None:
        if not names or not self._grouping.may_try():
            return
        before = self._grouping.move(names)
        assert self._laid_out_for is not None
        try:
            self._lay_out(self._laid_out_for)
            session.prepare(*self.sizes)
        except HoldfastError:
            # There is no room for that, or nobody to ask: they are staged anew with the rest whenever they change.
            self._grouping.put_back(before)
            self._lay_out(self._laid_out_for)

    def _rely_on(self, image: ImageId | None) -> None:
        if image == self._relied_on:
            return
        assert self._make is not None
        assert self._template is not None
        assert self._stager is not None
        # As it was made, not anew: the plain values may have grown since, within their room.
        relied = () if image is None else (image,)
        self._template = self._make(relies_on=relied, min_header_bytes=self._template.layout.header_bytes)
        self._stager.retitle(self._template)
        self._relied_on = image

    def settle(self, talk: Talk) -> str:
        """In the first save of an attempt: agree anew where the forecast was wrong on any rank, and compare what no
        earlier comparison saw (optimizer state exists only after the first step).

        Collective.

        Returns: a warning about unmarked plain values that differ; empty when none do, or none of this rank.
        Raises: ReplicaMismatchError, on all ranks.
        """
        captured = self._captured
        assert captured is not None
        structure = captured.structure
        told = talk.gather((structure.digest != self._shared_digest, plain_digests(captured.tree)))
        if any(changed for changed, _ in told):
            self._agree(structure, talk)
            talk.each(lambda: self._lay_out(structure))
        self._compare(captured, talk)
        return compare_plain(captured.tree, [digests for _, digests in told], talk)

    def _compare(self, captured: Captured, talk: Talk) -> None:
        """Raises: ReplicaMismatchError naming the tensor whose bytes differ between ranks."""
        if talk.size > 1:
            assert self._shares is not None
            self._compared |= compare_replicas(captured, self._shares.replicated(talk.rank), self._compared, talk)

    def stage(
        self,
        slots: Sequence[TrainerSlot],
        *,
        attempt: int,
        step: int,
        due_mask: int,
        timed_mask: int = 0,
        notes: bytes = b"",
    ) -> None:
        """Copy into the slots, one per image of `to_stage` by number, and hand them to the agent: filling -> staged.

        What steps share goes first, so that the agent knows it when it hears of an image that relies on it.
        """
        assert self._template is not None
        assert self._stager is not None
        assert self._captured is not None
        described = partial(
            Described, world_size=self._ranks.size, image_count=2 if self._part else 1, due_mask=due_mask
        )
        for slot, (image, size) in zip(reversed(slots), self.to_stage, strict=True):
            identity = ImageId(attempt, step, self._ranks.rank, image)
            if image and self._part is not None:
                describe(slot, described(identity, size))
                self._part.stage(slot, self._captured, identity)
            else:
                describe(slot, described(identity, size, timed_mask=timed_mask, relies_on=self._relied_on))
                self._stager.stage(slot.room(size), self._captured, self._payload, attempt=attempt, step=step)
                if notes and self._ranks.rank == 0:
                    write_notes(slot.room(size), self._template.layout, notes)
            hand_over(slot)

    def forget(self) -> None:
        """Let go of every view of the slots, and of the state."""
        self._capture, self._captured = Capture(), None
        if self._stager is not None:
            self._stager.forget()
        if self._part is not None:
            self._part.forget()

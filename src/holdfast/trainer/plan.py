"""What this rank stages, and where it stands in the image: learnt before training, followed at every save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from holdfast.errors import ReplicaMismatchError
from holdfast.format.image import plain_fits, write_notes
from holdfast.format.layout import Template, lay_out
from holdfast.model.image import Piece
from holdfast.trainer.capture import Capture, Captured
from holdfast.trainer.compare import fingerprints, first_difference, first_unlike, leaf_digests, plain_digests
from holdfast.trainer.devices import page_lock_for
from holdfast.trainer.move import cores
from holdfast.trainer.ranks import Ranks, Talk
from holdfast.trainer.shares import Shares, assign, unsplit
from holdfast.trainer.slots import TrainerSlot
from holdfast.trainer.stage import Stager
from holdfast.trainer.structure import Structure
from holdfast.wire.pages import SlotState, barrier


class StagePlan:
    """Layout of this rank's image.

    Invariants: `follow` runs before `stage` in every save; a layout is made anew only when the structure changed or the
    plain values outgrew their room, never because a number grew.
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
        self._template: Template | None = None
        self._stager: Stager | None = None
        self._compared: set[str] = set()

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

    def learn(self, state: dict[str, Any], talk: Talk) -> None:
        """Lay out what the first save will stage: optimizer state as it will be after the first step.

        Collective.

        Raises: UnsupportedValueError, ReplicaMismatchError: on all ranks.
        """
        self._compared.clear()
        captured, structure = self._look(state, talk)
        self._agree(structure, talk)
        self._compare(captured, talk)
        self._lay_out(structure)

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
        if self._template is None or self._laid_out_for is None or not self._same(structure, pieces):
            self._template = self._make_template(structure, pieces, aliases)
            self._stager = Stager(self._template, threads=cores(self._ranks.size))
        self._laid_out_for = structure
        self._pieces = pieces

    def _same(self, structure: Structure, pieces: tuple[Piece, ...]) -> bool:
        """Whether the forecast came true, so that the layout made before training stands."""
        template = self._template
        assert template is not None
        assert self._laid_out_for is not None
        fits = plain_fits(template.layout, len(self._payload))
        return fits and structure.digest == self._laid_out_for.digest and pieces == self._pieces

    def _make_template(
        self, structure: Structure, pieces: tuple[Piece, ...], aliases: tuple[tuple[str, str], ...]
    ) -> Template:
        return lay_out(
            pieces,
            aliases,
            run=self._run,
            rank=self._ranks.rank,
            world_size=self._ranks.size,
            image=0,
            image_count=1,
            structure=structure.digest,
            relies_on=(),
            plain_bytes=len(self._payload),
        )

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
            self._lay_out(structure)
        self._compare(captured, talk)
        return self._compare_plain(captured.tree, [digests for _, digests in told], talk)

    def _compare_plain(self, tree: Mapping[str, Any], told: list[dict[str, str]], talk: Talk) -> str:
        """What is saved of unmarked plain values is rank 0's; say where that is not what another rank has."""
        item = first_unlike(told)
        if item is None:
            return ""
        found = first_unlike(talk.gather(leaf_digests(item[0], tree.get(item[0]))))
        if found is None:  # only the order in a dict
            return ""
        path, ranks = found
        if talk.rank not in (0, *ranks):
            return ""
        return (
            f"the plain value {path!r} of rank {', '.join(map(str, ranks))} differs from rank 0's, which alone is saved"
            "\n  hint: mark what belongs to each rank with holdfast.per_rank(...), or make it alike on all"
        )

    def _compare(self, captured: Captured, talk: Talk) -> None:
        """Raises: ReplicaMismatchError naming the tensor whose bytes differ between ranks."""
        if talk.size == 1:
            return
        assert self._shares is not None
        pieces = self._shares.replicated(talk.rank)
        seen = talk.each(lambda: fingerprints(captured, pieces, besides=self._compared))
        different = first_difference(seen)
        if different is not None:
            raise ReplicaMismatchError(
                f"ranks hold different bytes of {different!r}, which should be a replica",
                hint="broadcast the state from rank 0 before training (DDP does), mark what differs with "
                "holdfast.per_rank(...), or give ranks that train different models a group of their own",
            )
        self._compared.update(seen[talk.rank])

    def stage(self, slot: TrainerSlot, *, attempt: int, step: int, due_mask: int, notes: bytes = b"") -> None:
        """Copy into the slot and hand it to the agent: filling -> staged."""
        assert self._template is not None
        assert self._stager is not None
        assert self._captured is not None
        page, size = slot.page, self.image_bytes
        page.attempt, page.step, page.rank, page.committed_mask = attempt, step, self._ranks.rank, 0
        page.world_size, page.image, page.image_count = self._ranks.size, 0, 1
        page.image_bytes, page.due_mask = size, due_mask
        self._stager.stage(slot.room(size), self._captured, self._payload, attempt=attempt, step=step)
        if notes and self._ranks.rank == 0:
            write_notes(slot.room(size), self._template.layout, notes)
        barrier()
        page.state = SlotState.STAGED

    def warm(self, slot: TrainerSlot) -> None:
        """Build the views of a slot ahead of its first use."""
        if self._stager is not None and slot.capacity_bytes >= self.image_bytes:
            self._stager.warm(slot.room(self.image_bytes))

    def forget(self) -> None:
        """Let go of every view of the slots."""
        if self._stager is not None:
            self._stager.forget()

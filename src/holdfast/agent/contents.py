"""What the agent's tiers hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.agent.claiming import Claiming
from holdfast.agent.claims import Standing
from holdfast.agent.open_tiers import OpenTiers
from holdfast.errors import HoldfastError
from holdfast.model.identity import CheckpointId, Lineage
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.model.notes import Notes
from holdfast.store import catalog as catalogs
from holdfast.store import fetch

Stands = tuple[frozenset[CheckpointId], frozenset[CheckpointId], dict[CheckpointId, Notes]]
"""On one tier: committed, tombstoned, notes of the committed."""


@dataclass(slots=True)
class View:
    """What all tiers together hold, at one moment."""

    standing: Standing
    committed: dict[CheckpointId, list[str]] = field(default_factory=dict)
    sizes: dict[CheckpointId, int] = field(default_factory=dict)
    tombstoned: set[CheckpointId] = field(default_factory=set)
    abandoned: set[CheckpointId] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    damaged: dict[CheckpointId, list[str]] = field(default_factory=dict)
    """Per checkpoint what is wrong where it cannot be loaded from; `problems` has these, too."""
    wounds: dict[CheckpointId, list[catalogs.Wound]] = field(default_factory=dict)
    unread: dict[str, HoldfastError] = field(default_factory=dict)
    """Tiers that could not be looked at, and why; `problems` has these, too."""
    empty: bool = True
    unknown: HoldfastError | None = None
    """Why it cannot be said which attempt counts: nothing can be loaded then."""

    @property
    def lineage(self) -> Lineage:
        return self.standing.lineage

    @property
    def attempts(self) -> int:
        """The highest attempt; 0: none."""
        return self.standing.highest


def standing(found: catalogs.Catalog) -> Stands:
    """What a listing says to the run machine. What cannot be loaded does not count: nothing is let go for its sake."""
    return (
        frozenset(e.id for e in found if e.loadable),
        frozenset(e.id for e in found if e.tombstoned),
        found.notes,
    )


class Contents:
    """Looks at tiers and reads from them; changes nothing.

    Threads: any; each method blocks.
    """

    def __init__(self, tiers: OpenTiers, claiming: Claiming) -> None:
        self._tiers = tiers
        self._claiming = claiming

    def catalog(self, tier: str) -> Stands:
        """What stands on a tier. Raises: see `OpenTiers.look_at`."""
        return standing(self._tiers.look_at(tier, self._tiers.start_look_s))

    def view(self) -> View:
        """All tiers together: for loads and `ls`. A tier that cannot be read is a problem, not an error."""
        view = self._stand()
        for name, _ in self._tiers.shelved():
            try:
                self._see(view, name, self._tiers.look_at(name))
            except HoldfastError as e:
                view.problems.append(f"{name}: {e.message}")
                view.unread[name] = e
                view.empty = False
        view.abandoned = {c for c in view.committed if c not in view.standing.lineage}
        return view

    def _stand(self) -> View:
        """A view of nothing yet but whose the run is."""
        try:
            standing = self._claiming.for_load()
        except HoldfastError as e:
            return View(Standing(Lineage({}), 0), unknown=e, empty=False)
        doubts = [standing.doubt] if standing.doubt else []
        return View(standing, problems=doubts, empty=not standing.highest)

    def _see(self, view: View, name: str, found: catalogs.Catalog) -> None:
        for entry in found:
            view.empty = False
            if entry.tombstoned:
                view.tombstoned.add(entry.id)
            elif entry.loadable:
                view.committed.setdefault(entry.id, []).append(name)
                view.sizes[entry.id] = entry.size_bytes
            elif entry.committed:
                why = entry.problem.message if entry.problem else "images are missing or bad"
                view.problems.append(f"{entry.id} on {name}: {why}")
                view.damaged.setdefault(entry.id, []).append(f"{name}: {why}")
                view.wounds[entry.id] = [*view.wounds.get(entry.id, []), *entry.wounds(name)]

    def manifest(self, tier: str, checkpoint: CheckpointId) -> Manifest:
        """Raises: NotFoundError, CorruptError, TierError."""
        return catalogs.read_manifest(self._tiers.patient(self._tiers[tier]), checkpoint)

    def fetch(self, tier: str, record: ImageRecord, room: memoryview) -> ImageHeader:
        """An image into `room`, proven. Raises: CorruptError, NotFoundError, TierError."""
        return fetch.fetch_image(self._tiers[tier], record, room, self._tiers.parts(tier))

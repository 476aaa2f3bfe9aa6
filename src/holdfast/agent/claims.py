"""What the agent knows of the run's attempts, also while the tier that has the claims does not answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast.errors import HoldfastError, SupersededError
from holdfast.model.identity import Lineage
from holdfast.store.attempts import Attempts
from holdfast.tiers.contract import Tier


@dataclass(frozen=True, slots=True)
class Standing:
    """What a load goes by: the lineage, the highest attempt (0: none), and whether that was only remembered.

    `doubt` says so in words; it is empty where the home answered.
    """

    lineage: Lineage
    highest: int
    doubt: str = ""


class Claims:
    """Attempts are claimed on the home alone, so what it says counts; other tiers add what a former home had.

    Attributes:
        own: the attempt this arena claimed last; 0: none.

    Invariant: an attempt is never claimed on the strength of memory alone: `check` asks the home.
    Threads: the shelf's; each answer is one assignment.
    """

    def __init__(self, read: Callable[[Tier, Sequence[Tier]], Attempts]) -> None:
        """`read` lists the home, and other tiers beside it."""
        self._list = read
        self.own = 0
        self._read: Standing | None = None
        self._went_by: Standing | None = None

    def read(self, home: Tier, others: Sequence[Tier]) -> Standing:
        """The lineage of the highest attempt.

        Raises: what reading the home raises; what reading another tier raises if the home has no claim, for then it may
            be that tier which has them, or if the highest claim stands there alone.
        """
        found = self._list(home, others)
        if found.unread_highest is not None:
            raise found.unread_highest
        self._read = Standing(found.lineage, found.highest)
        return self._read

    def for_load(self, home: Tier, others: Sequence[Tier]) -> Standing:
        """As `read`; while the home does not answer, what it said last, or else what this arena claimed last.

        Raises: as `read`, when nothing is remembered.
        """
        try:
            return self.read(home, others)
        except HoldfastError as e:
            known = self._read or (Standing(Lineage({self.own: None}), self.own) if self.own else None)
            if known is None or not known.highest:
                hint = "which step is the newest follows from the claims on that tier: see to it, and load again"
                why = f"the claims of the run cannot be read: {e.message}"
                raise type(e)(why, hint=hint, tier=e.tier, key=e.key) from e
            where = e.tier or home.name
            doubt = f"the claims on {where} cannot be read ({e.message}): attempt {known.highest} counts as before"
            return Standing(known.lineage, known.highest, doubt)

    def go_by(self, standing: Standing) -> None:
        """A load was answered from this; the next claim stands on it."""
        self._went_by = standing

    def check(self, home: Tier) -> None:
        """Refuse to claim what was loaded while the home did not answer, if another attempt came about meanwhile.

        Raises: SupersededError; what listing the home raises.
        """
        went_by = self._went_by
        if went_by is None or not went_by.doubt:
            return
        highest = self._list(home, ()).highest
        if highest > went_by.highest:
            raise SupersededError(
                f"attempt {highest} was claimed while the claims on {home.name} could not be read; the load went by "
                f"attempt {went_by.highest}",
                hint="load again: the other attempt may have newer steps",
                tier=home.name,
            )

    def claimed(self, attempt: int) -> None:
        """An attempt is ours."""
        self.own, self._went_by = attempt, None

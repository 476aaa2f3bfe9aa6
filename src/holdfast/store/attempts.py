"""Attempts: claimed by one atomic create, read back, followed to the lineage, and asked who may act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.errors import (
    AlreadyExistsError,
    ConfigError,
    CorruptError,
    FormatVersionError,
    HoldfastError,
    NotFoundError,
    SupersededError,
    TierError,
    TierUnavailableError,
)
from holdfast.format import attempt as codec
from holdfast.format import names
from holdfast.model.identity import Attempt, CheckpointId, Lineage, lineage_of
from holdfast.tiers.contract import Tier, read_all

IMPORTER = "import:"
"""Begins the coordinator of a claim that an import made: nobody can be asked there whether it lives."""
_MAX_TRIES = 1000


@dataclass(frozen=True, slots=True)
class Attempts:
    """What the tiers tell of a run's attempts, by number.

    `highest` counts claims that cannot be read too: the number is taken. `problems` are those. `unread` says why spare
    tiers could not be listed, or not all of their claims be read.
    """

    records: tuple[Attempt, ...]
    highest: int
    problems: tuple[HoldfastError, ...] = ()
    unread: tuple[HoldfastError, ...] = ()

    @property
    def lineage(self) -> Lineage:
        """What the highest attempt stands on; one whose claim cannot be read stands on itself alone."""
        if self.highest and not any(a.attempt == self.highest for a in self.records):
            return Lineage({self.highest: None})
        return lineage_of(self.records)

    @property
    def unread_highest(self) -> HoldfastError | None:
        """Why the claim that counts, or whether there is one, is not known though it may be good; None when it is."""
        known = {a.attempt for a in self.records} | {names.parse_attempt_key(p.key) for p in self.problems if p.key}
        return self.unread[0] if self.unread and self.highest not in known else None


def read_attempts(tiers: Iterable[Tier], *, spare: Iterable[Tier] = ()) -> Attempts:
    """All claims on the given tiers; the first readable copy of each counts.

    Args:
        spare: further tiers, which are passed over where they fail. Claims that were listed count as numbers.

    Raises: what listing a tier or reading from it raises; a damaged claim is a problem, not an error.
    """
    records: dict[int, Attempt] = {}
    problems: list[HoldfastError] = []
    unread: list[HoldfastError] = []
    numbers = {0}
    for tier in tiers:
        _gather(tier, numbers, records, problems)
    for tier in spare:
        try:
            _gather(tier, numbers, records, problems)
        except HoldfastError as e:
            unread.append(e)
    unreadable = tuple(p for p in problems if p.key and names.parse_attempt_key(p.key) not in records)
    return Attempts(tuple(records[n] for n in sorted(records)), max(numbers), unreadable, tuple(unread))


def _gather(tier: Tier, numbers: set[int], records: dict[int, Attempt], problems: list[HoldfastError]) -> None:
    """Add a tier's claims: first the numbers of all, then what those say that are not known yet."""
    listed = _numbers(tier)
    numbers.update(listed)
    for number in sorted(listed - records.keys()):
        try:
            records[number] = _read(tier, number)
        except NotFoundError:
            continue
        except (CorruptError, FormatVersionError) as e:
            problems.append(e)


def _numbers(tier: Tier) -> set[int]:
    """Of the claims on a tier, whatever they say."""
    return {n for info in tier.list(names.ATTEMPTS) if (n := names.parse_attempt_key(info.key)) is not None}


def claim(
    authority: Tier,
    tiers: Sequence[Tier] = (),
    *,
    run: str,
    parent: CheckpointId | None,
    coordinator: str,
    seen: int = 0,
) -> Attempt:
    """Claim the attempt one above the highest on any tier.

    Args:
        authority: the tier the claim is made on, shared by all nodes.
        tiers: further tiers whose claims count; those that cannot be listed now are passed over.
        coordinator: where to ask whether this attempt still lives; unique to the claimant, for a retry tells a lost
            answer from a lost race by it.
        seen: the highest attempt the caller knows from elsewhere: keys of images and manifests, peers, pages.

    Atomicity: one create on `authority`. Durability: the claim survives what the tier survives. Not idempotent.

    Raises: ConfigError when the tier cannot create atomically; FormatVersionError when a newer Holdfast owns the run;
        TierUnavailableError when others win again and again.
    """
    if not authority.capabilities.atomic_create:
        raise ConfigError("attempts cannot be claimed on this tier", tier=authority.name)
    number = max(seen, parent.attempt if parent else 0, *(_highest(t) for t in tiers), _highest(authority, strict=True))
    for _ in range(_MAX_TRIES):
        number += 1
        attempt = Attempt(run, number, parent, coordinator)
        try:
            authority.put(names.attempt_key(number), memoryview(codec.encode(attempt)), if_absent=True)
        except AlreadyExistsError:
            number = max(number, _highest(authority, strict=True))
        else:
            return attempt
    raise TierUnavailableError(f"{_MAX_TRIES} attempts were claimed by others meanwhile", tier=authority.name)


def require_authority(authority: Tier, owner: int, checkpoint: CheckpointId | None = None) -> None:
    """Refuse unless `owner` is the highest attempt and `checkpoint` is on its lineage.

    Claims are listed; they are read for a checkpoint of another attempt alone, for the highest stands on all its own.

    Raises: SupersededError; TierError when the checkpoint is on no lineage because the owner's claim is gone.
    """
    own = checkpoint is None or checkpoint.attempt == owner
    attempts = Attempts((), max(_numbers(authority), default=0)) if own else read_attempts([authority])
    if attempts.highest > owner:
        raise SupersededError(
            f"attempt {attempts.highest} owns the run, this one is {owner}",
            hint="another launch took over; stop this one",
            tier=authority.name,
        )
    if checkpoint is not None and checkpoint not in attempts.lineage:
        if attempts.highest < owner:
            raise TierError(
                f"the claim of attempt {owner} is not there any more",
                hint="somebody deleted it: restart the job, which claims the next attempt",
                tier=authority.name,
                key=names.attempt_key(owner),
                step=checkpoint.step,
            )
        raise SupersededError(
            f"{checkpoint} is abandoned: attempt {attempts.highest} does not stand on it",
            tier=authority.name,
            step=checkpoint.step,
        )


def _highest(tier: Tier, *, strict: bool = False) -> int:
    """The highest claim on a tier; unless `strict` what can be listed of it."""
    attempts = read_attempts([tier]) if strict else read_attempts([], spare=[tier])
    newer = next((p for p in attempts.problems if isinstance(p, FormatVersionError)), None)
    if newer is not None:
        raise newer
    return attempts.highest


def _read(tier: Tier, number: int) -> Attempt:
    key = names.attempt_key(number)
    try:
        attempt = codec.decode(read_all(tier, key))
        if attempt.attempt != number:
            raise CorruptError(f"the claim says attempt {attempt.attempt}")
    except (CorruptError, FormatVersionError) as e:
        e.tier, e.key = tier.name, key
        raise
    return attempt

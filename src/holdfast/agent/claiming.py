"""Whose the run is: the claims on the agent's tiers, read and made."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from holdfast.agent.claims import Claims, Standing
from holdfast.agent.open_tiers import OpenTiers
from holdfast.errors import AgentError, HoldfastError, RunBusyError, SupersededError, TierUnavailableError
from holdfast.model.identity import CheckpointId, Lineage
from holdfast.store import attempts
from holdfast.tiers import same_place
from holdfast.tiers.contract import Tier
from holdfast.wire.client import AgentClient
from holdfast.wire.spawn import coordinator_socket
from holdfast.wire.status import Status

T = TypeVar("T")
_ASK_S = 5.0
_LOOKS_PER_CALL = 3
"""A trainer waits for a claim as for any call: a tier that hangs may take so small a part of that."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """An attempt that is ours now. `left` is the newest checkpoint on any tier, where it stands on nothing."""

    attempt: int
    lineage: Lineage
    left: CheckpointId | None = None


class Claiming:
    """Claims attempts, and knows the lineage.

    Attributes:
        owner: the attempt in whose name this agent commits and deletes; 0: none.
        claims: what is known of the run's attempts.

    Threads: any; each method blocks.
    """

    def __init__(self, tiers: OpenTiers) -> None:
        self._tiers = tiers
        self.owner = 0
        self.claims = Claims(self._claims_on)
        self._claim_lock = threading.Lock()
        """Held while a claim can be seen on the tier and is not known to be ours."""

    def lineage(self) -> tuple[Lineage, int]:
        """The lineage of the highest attempt, and its number (0: none). Raises: see `Claims.read`."""
        found = self.claims.read(self._tiers.authority, self._tiers.besides_home)
        return found.lineage, found.highest

    def in_our_name(self, act: Callable[[int], T]) -> T:
        """`act(owner)`; once more in the name of the next attempt, where it is ours and was claimed meanwhile.

        `act` is idempotent. Raises: what it raises; SupersededError when somebody else owns the run;
        TierUnavailableError when a claim of ours does not end.
        """
        while True:
            owner = self.owner
            try:
                return act(owner)
            except SupersededError:
                with self._no_claim_under_way():
                    if self.owner == owner:
                        raise

    def successor(self) -> int:
        """The highest attempt if it is not ours, else 0. Raises: see `lineage` and `in_our_name`."""
        _, highest = self.lineage()
        with self._no_claim_under_way():  # one of ours that was listed is known by then
            return highest if highest > self.owner else 0

    def own_again(self, attempt: int) -> None:
        """Act in the name of an attempt that this arena claimed before, unless a later one is ours meanwhile.

        Raises: see `in_our_name`.
        """
        with self._no_claim_under_way():
            self.owner = max(self.owner, attempt)

    @contextlib.contextmanager
    def _no_claim_under_way(self) -> Iterator[None]:
        limit_s = self._tiers.settings.call_timeout_s
        if not self._claim_lock.acquire(timeout=limit_s):
            raise TierUnavailableError(
                f"the claim of the next attempt did not end within {limit_s:g} s",
                hint="the file system hangs or is very slow; see dmesg",
                tier=self._tiers.authority.name,
            )
        try:
            yield
        finally:
            self._claim_lock.release()

    def _claims_on(self, home: Tier, others: Sequence[Tier]) -> attempts.Attempts:
        """Each within the time a look may take. Raises: see `read_attempts`."""
        return attempts.read_attempts([self._tiers.patient(home)], spare=[self._tiers.patient(t) for t in others])

    def claim(self, parent: CheckpointId | None, coordinator: str, seen: int) -> Claimed:
        """Claim the next attempt. Raises: see store.attempts.claim; SupersededError: see `Claims.check`."""
        others = self._tiers.besides_home
        self.claims.check(self._tiers.authority)
        limit_s = self._tiers.settings.call_timeout_s / _LOOKS_PER_CALL
        standing: set[CheckpointId] = set()
        for name, _ in self._tiers.shelved():
            with contextlib.suppress(HoldfastError):
                found = self._tiers.look_at(name, limit_s)
                seen = max(seen, found.highest_attempt)
                standing.update(e.id for e in found if e.loadable)
        with self._no_claim_under_way():
            claimed = attempts.claim(
                self._tiers.authority,
                [self._tiers.patient(t) for t in others],
                run=self._tiers.settings.run,
                parent=parent,
                coordinator=coordinator,
                seen=seen,
            )
            self.owner = claimed.attempt
            self.claims.claimed(claimed.attempt)
        left = max(standing, default=None) if parent is None else None
        return Claimed(claimed.attempt, self.lineage()[0], left)

    def for_load(self) -> Standing:
        """What a load goes by. Raises: see `Claims.for_load`."""
        return self.claims.for_load(self._tiers.authority, self._tiers.besides_home)

    def refuse_other_owner(self, own_coordinator: str) -> None:
        """Another arena of this machine may run the same run: ask its coordinator whether trainers are attached.

        Raises: RunBusyError.
        """
        found = attempts.read_attempts([self._tiers.patient(self._tiers.authority)])
        newest = max(found.records, key=lambda a: a.attempt, default=None)
        if newest is None or not newest.coordinator or newest.coordinator == own_coordinator:
            return
        path = coordinator_socket(newest.coordinator)
        if path is None or not os.path.exists(path):
            return
        attached = _attached_at(path, self._tiers.settings.home)
        if attached:
            raise RunBusyError(
                f"attempt {newest.attempt} of this run is coordinated at {path}, where {attached}",
                hint="end that job first, or use another run name",
            )


def _attached_at(socket_path: Path, home: str) -> str:
    """Who trains with the agent that answers there, in words; empty when nobody does, or no agent is there.

    One of another home leads a run that this one was copied from.
    """
    try:
        status = AgentClient(socket_path).get("/status", Status, timeout_s=_ASK_S)
    except AgentError:
        return ""
    except HoldfastError as e:
        return e.message  # it lives and does not say: perhaps somebody trains
    if not same_place(status.home, home):
        return ""
    pids = [str(t.pid) for t in status.trainers if t.alive]
    return f"process {', '.join(pids)} trains" if pids else ""

"""A tier that could not be opened when the agent started, and is opened as soon as it can be used."""

from __future__ import annotations

import threading
from collections.abc import Callable

from holdfast.errors import HoldfastError, TierUnavailableError
from holdfast.model.place import FailureDomain, Scope
from holdfast.tiers.contract import Capabilities, Tier
from holdfast.tiers.wrappers import Retry, RetryPolicy


class LateTier(Retry):
    """Tries to open the tier at every use, again like any call that fails, and is unavailable until it can.

    Invariant: the tier is opened once.
    Threads: any.
    """

    def __init__(self, name: str, scope: Scope, opens: Callable[[], Tier], policy: RetryPolicy | None = None) -> None:
        # Not that of the base: there is no tier underneath yet.
        self.name, self.policy = name, policy or RetryPolicy()
        # A cautious guess, until the tier says.
        self.capabilities = Capabilities(
            scope=scope,
            survives=FailureDomain.PROCESS,
            alignment_bytes=4096,
            part_bytes=16 << 20,
            concurrency=4,
            atomic_create=True,
        )
        self._opens = opens
        self._opened: Tier | None = None
        self._opening = threading.Lock()

    @property
    def inner(self) -> Tier:  # type: ignore[override]  # the base has it from the start
        """The tier. Raises: TierUnavailableError, with the reason, while it cannot be opened."""
        try:
            return self.open()
        except HoldfastError as e:
            raise TierUnavailableError(f"cannot be opened: {e.message}", hint=e.hint, tier=self.name) from e

    def open(self) -> Tier:
        """The tier; whoever asks while it is being opened waits for that. Raises: HoldfastError as opening it does."""
        with self._opening:
            if self._opened is None:
                self._opened = self._opens()
                self.capabilities = self._opened.capabilities
            return self._opened

    def close(self) -> None:
        """See Tier.close."""
        if self._opened is not None:
            self._opened.close()

"""Every error Holdfast raises, on one screen.

An error has a stable `kind` (for programs), an exit code (for the CLI), says whether a retry may help, where it
happened (tier, key, step) and, in `hint`, what the reader can do about it. Kinds and codes are listed in
docs/reference.md and never change meaning.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HoldfastError(Exception):
    """The root: catch this to catch everything Holdfast raises."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        tier: str | None = None,
        key: str | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.tier = tier
        self.key = key
        self.step = step

    def __str__(self) -> str:
        where = [f"{n} {v}" for n, v in (("tier", self.tier), ("step", self.step), ("key", self.key)) if v is not None]
        text = self.message + (f" [{', '.join(where)}]" if where else "")
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.tier, self.key, self.step))

    def to_dict(self) -> dict[str, Any]:
        """The error as plain JSON values, as `--json`, status and the wire show it."""
        return {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "tier": self.tier,
            "key": self.key,
            "step": self.step,
        }


def _rebuild(
    cls: type[HoldfastError], message: str, hint: str, tier: str | None, key: str | None, step: int | None
) -> HoldfastError:
    return cls(message, hint=hint, tier=tier, key=key, step=step)


def from_dict(data: dict[str, Any]) -> HoldfastError:
    """The error a `to_dict` described; an unknown kind comes back as the root class."""
    return _rebuild(
        BY_KIND.get(data["kind"], HoldfastError),
        data["message"],
        data.get("hint", ""),
        data.get("tier"),
        data.get("key"),
        data.get("step"),
    )


# What the caller did ---------------------------------------------------------------------------------------------
class UsageError(HoldfastError):
    """A call or argument that cannot mean anything."""

    kind, exit_code = "usage", 2


class ConfigError(HoldfastError):
    """A setting is wrong: unknown scheme, missing parent directory, contradictory scope."""

    kind, exit_code = "config", 3


class ClosedError(HoldfastError):
    """The Checkpointer was closed before this call."""

    kind, exit_code = "closed", 4


class StepExistsError(HoldfastError):
    """This step was already saved in this attempt."""

    kind, exit_code = "step-exists", 5


class UnsupportedValueError(HoldfastError):
    """A value in the state cannot be expressed; the message gives its path."""

    kind, exit_code = "unsupported-value", 6


class ReplicaMismatchError(HoldfastError):
    """Ranks hold different bytes, shapes or dtypes for what should be replicas."""

    kind, exit_code = "replica-mismatch", 7


class StructureError(HoldfastError):
    """The live state and the checkpoint do not have the same structure."""

    kind, exit_code = "structure", 8


class CapacityError(HoldfastError):
    """The state does not fit the arena; the message gives the sum and what to set."""

    kind, exit_code = "capacity", 9


class NotDueError(HoldfastError):
    """Waiting for a tier that is not due at this step would never end."""

    kind, exit_code = "not-due", 10


# Who may act -------------------------------------------------------------------------------------------------------
class SupersededError(HoldfastError):
    """A higher attempt owns the run; this one may no longer commit or prune."""

    kind, exit_code = "superseded", 20


class RunBusyError(HoldfastError):
    """Another launch of this run still lives on this node."""

    kind, exit_code, retryable = "run-busy", 21, True


class AgentError(HoldfastError):
    """The node agent could not be started, died, or answered nonsense."""

    kind, exit_code, retryable = "agent", 22, True


class DeadlineError(HoldfastError):
    """Something was waited for too long; the message says what."""

    kind, exit_code, retryable = "deadline", 23, True


class RankGoneError(HoldfastError):
    """Another rank left, or died, without closing; the memory stays for the restart."""

    kind, exit_code = "rank-gone", 24


# What became of a step -----------------------------------------------------------------------------------------------
class LoadError(HoldfastError):
    """Something is there and nothing (or not the asked step) can be loaded."""

    kind, exit_code = "load", 30


class NotFoundError(HoldfastError):
    """The named step, image or object does not exist."""

    kind, exit_code = "not-found", 31


class StepDroppedError(HoldfastError):
    """No slot came free in time, so this step was given up on all ranks."""

    kind, exit_code = "step-dropped", 32


class StepLostError(HoldfastError):
    """The agent died and its successor knows nothing of this step."""

    kind, exit_code = "step-lost", 33


class SkippedError(HoldfastError):
    """A lagging tier skipped this step in favour of a newer one."""

    kind, exit_code = "skipped", 34


# What the bytes said -------------------------------------------------------------------------------------------------
class CorruptError(HoldfastError):
    """Bytes contradict their checksum or their format."""

    kind, exit_code = "corrupt", 40


class FormatVersionError(HoldfastError):
    """Written by a newer Holdfast than this one."""

    kind, exit_code = "format-version", 41


# What a tier answered ------------------------------------------------------------------------------------------------
class TierError(HoldfastError):
    """A tier refused or failed an operation."""

    kind, exit_code = "tier", 50


class TierUnavailableError(TierError):
    """The tier did not answer properly; a retry may succeed."""

    kind, exit_code, retryable = "tier-unavailable", 51, True


class TierFullError(TierError):
    """No space, or a quota was reached."""

    kind, exit_code = "tier-full", 52


class TierPermissionError(TierError):
    """Read-only, or not allowed."""

    kind, exit_code = "tier-permission", 53


class AlreadyExistsError(TierError):
    """A conditional create found the key taken."""

    kind, exit_code = "already-exists", 54


def _tree(cls: type[HoldfastError]) -> list[type[HoldfastError]]:
    return [cls, *(d for sub in cls.__subclasses__() for d in _tree(sub))]


BY_KIND: dict[str, type[HoldfastError]] = {c.kind: c for c in _tree(HoldfastError)}

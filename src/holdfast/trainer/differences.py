"""Everything in which a state and a checkpoint differ: for one error, or listed after a load of what fits."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from holdfast.errors import StructureError

Kind = Literal["shape", "dtype", "other", "missing", "unexpected", "state"]

_SAID: dict[Kind, tuple[str, str]] = {
    "shape": ("has another shape", "have another shape"),
    "dtype": ("has another dtype", "have another dtype"),
    "other": ("does not match", "do not match"),
    "missing": ("is not in the checkpoint", "are not in the checkpoint"),
    "unexpected": ("is only in the checkpoint", "are only in the checkpoint"),
    "state": ("starts with empty optimizer state", "start with empty optimizer state"),
}
"""Of one, and of several."""
RESIZED = "without on_resize"
"""What a `per_rank` value is that says nothing of another number of ranks."""
MARKED = "marked"
"""What a value that was saved with `per_rank` is, where the state has one without."""
_IN_ERROR = 20
_IN_WARNING = 3
_NEAR = 3
_LOOKED_THROUGH = 20_000
"""Names that are searched for near ones: a message must not take longer than the load."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One item that a state and a checkpoint do not have in common.

    Attributes:
        kind: `missing` (only in the state), `unexpected` (only in the checkpoint), `shape`, `dtype`, `other`; `state`:
            a parameter whose optimizer state was left out for one of those.
        path: its name.
        here, there: what the state and the checkpoint have, in words; may be empty.
    """

    kind: Kind
    path: str
    here: str = ""
    there: str = ""

    def __str__(self) -> str:
        if self.kind in ("missing", "unexpected"):
            return self.path
        if self.kind == "state":
            return f"{self.path} ({self.here})"
        return f"{self.path} ({self.here} here, {self.there} in the checkpoint)"


@dataclass(slots=True)
class Differences:
    """What a comparison found, in the order it was found. True when there is any."""

    items: list[Difference] = field(default_factory=list)

    def note(self, kind: Kind, path: str, here: str = "", there: str = "") -> None:
        """One more."""
        self.items.append(Difference(kind, path, here, there))

    def __str__(self) -> str:
        return self.summary(_IN_ERROR) or "no differences"

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def of(self, kind: Kind) -> list[Difference]:
        """Those of one kind."""
        return [d for d in self.items if d.kind == kind]

    @property
    def missing(self) -> list[Difference]:
        """In the state, not in the checkpoint: left as they were."""
        return self.of("missing")

    @property
    def unexpected(self) -> list[Difference]:
        """In the checkpoint, not in the state: not loaded."""
        return self.of("unexpected")

    @property
    def shape(self) -> list[Difference]:
        """On both sides with different shapes: left as they were."""
        return self.of("shape")

    @property
    def dtype(self) -> list[Difference]:
        """On both sides with different dtypes: left as they were, nothing is converted."""
        return self.of("dtype")

    @property
    def other(self) -> list[Difference]:
        """On both sides, and not the same kind of thing: left as they were."""
        return self.of("other")

    @property
    def state(self) -> list[Difference]:
        """Parameters that start with empty optimizer state though the checkpoint has some of that name."""
        return self.of("state")

    def check(self, *, fits: bool = True, strict: bool) -> None:
        """Raise what a load may not pass over: when `strict` any difference, else that nothing `fits`.

        Raises: StructureError.
        """
        if not self.items or (fits and not strict):
            return
        what = "the state and the checkpoint differ" if strict else "nothing of the checkpoint fits the state"
        # That optimizer state is left out follows from the others, and would be true of a load that passes them over.
        causes = Differences([d for d in self.items if d.kind != "state"])
        raise StructureError(f"{what}; {causes.summary(_IN_ERROR)}", hint=self._hint(strict))

    def summary(self, shown: int = _IN_WARNING) -> str:
        """Counts, and the first of each kind."""
        return "; ".join(
            f"{len(found)} {said[len(found) > 1]}: {_list(found, shown)}"
            for kind, said in _SAID.items()
            if (found := self.of(kind))
        )

    def _hint(self, strict: bool) -> str:
        missing, unexpected = [d.path for d in self.missing], [d.path for d in self.unexpected]
        names = likely_names(missing, unexpected)
        if _renamed(missing, unexpected) is not None:
            advice = "have the names agree: of a model in a wrapper, pass the module inside"
        elif any(d.there == MARKED for d in self.other):
            advice = "put holdfast.per_rank(...) around it, as it was saved"
        elif any(d.here.endswith(RESIZED) for d in self.other):
            advice = (
                'say what becomes of it with another number of ranks: holdfast.per_rank(x, on_resize="drop") leaves it '
                "as it is here, a callable(values, rank, world_size) makes one of all"
            )
        elif not strict:
            advice = "pass the same keys as were saved (`holdfast show URL` lists the names)"
        elif self.shape or self.dtype or self.other:
            advice = "build the model as it was saved, or load with strict=False to take what fits and list the rest"
        else:
            advice = "load with strict=False to take what both have"
        return f"{names}; {advice}" if names else advice


def warn_of(differences: Differences, checkpoint: object) -> None:
    """One warning of what a load passed over, at the line that called whoever calls this; none when that is nothing."""
    if differences:
        n = len(differences)
        warnings.warn(
            f"loaded {checkpoint} but for {n} difference{'s' if n > 1 else ''}: {differences.summary()}",
            RuntimeWarning,
            stacklevel=3,
        )


def _list(found: Sequence[Difference], shown: int) -> str:
    more = f", and {len(found) - shown} more" if len(found) > shown else ""
    return ", ".join(map(str, found[:shown])) + more


def likely_names(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Which names of the other side are probably meant, in words: a renamed prefix, or near names; may be empty."""
    missing, unexpected = missing[:_LOOKED_THROUGH], unexpected[:_LOOKED_THROUGH]
    renamed = _renamed(missing, unexpected)
    if renamed is not None:
        here, there, count = renamed
        return f"{count} of {len(missing)} missing names are there with {there!r} in place of {here!r}"
    pairs = [(m, near) for m in missing[:_NEAR] for near in difflib.get_close_matches(m, unexpected, 1, 0.8)]
    return "; ".join(f"near to {m!r}: {near!r}" for m, near in pairs)


def _renamed(missing: Sequence[str], unexpected: Sequence[str]) -> tuple[str, str, int] | None:
    """(beginning here, beginning there, how many names) of the rename that explains most; None when none does."""
    by_end: dict[str, str] = {}
    for name in unexpected:
        for begin, end in _cuts(name):
            by_end.setdefault(end, begin)
    votes: Counter[tuple[str, str]] = Counter()
    for name in missing:
        begin, end = next(((b, e) for b, e in _cuts(name) if e in by_end), ("", ""))
        if end and (len(missing) > 1 or "." in end):
            votes[begin, by_end[end]] += 1
    if not votes:
        return None
    (here, there), count = votes.most_common(1)[0]
    return (here, there, count) if 2 * count >= len(missing) else None


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """(beginning with its dot, end) for every way to cut a name at a dot, the longest end first."""
    yield "", name
    at = name.find(".")
    while at >= 0:
        yield name[: at + 1], name[at + 1 :]
        at = name.find(".", at + 1)

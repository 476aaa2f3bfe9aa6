"""Everything in which a state and a checkpoint differ, for one error."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.errors import StructureError

_SHOWN = 100


@dataclass(slots=True)
class Differences:
    """Names on one side only, and names on both whose values cannot be the same."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def check(self, *, strict: bool) -> None:
        """Raises: StructureError; unless `strict`, only for what is on both sides and does not match."""
        parts = [("do not match", self.different)]
        if strict:
            parts += [("are not in the checkpoint", self.missing), ("are only in the checkpoint", self.unexpected)]
        lines = [f"{len(names)} {what}: {_list(names)}" for what, names in parts if names]
        if lines:
            raise StructureError(
                "the state and the checkpoint differ; " + "; ".join(lines),
                hint="build the model as it was saved, or load another step (`holdfast show URL` lists what is there)"
                if self.different
                else "load with strict=False to take what both have",
            )


def _list(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

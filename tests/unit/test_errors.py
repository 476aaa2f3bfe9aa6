"""The error tree: stable kinds, distinct exit codes, picklable, through the wire and back."""

from __future__ import annotations

import pickle

import pytest

from holdfast import errors

EXIT_CODES = {
    "error": 1, "usage": 2, "config": 3, "closed": 4, "step-exists": 5, "unsupported-value": 6,
    "replica-mismatch": 7, "structure": 8, "capacity": 9, "not-due": 10, "superseded": 20, "run-busy": 21,
    "agent": 22, "deadline": 23, "rank-gone": 24, "load": 30, "not-found": 31, "step-dropped": 32, "step-lost": 33,
    "skipped": 34, "corrupt": 40, "format-version": 41, "tier": 50, "tier-unavailable": 51, "tier-full": 52,
    "tier-permission": 53, "already-exists": 54,
}  # fmt: skip


def test_kinds_and_exit_codes_are_what_the_reference_says() -> None:
    assert {kind: cls.exit_code for kind, cls in errors.BY_KIND.items()} == EXIT_CODES


@pytest.mark.parametrize("cls", errors.BY_KIND.values(), ids=lambda c: c.kind)
def test_every_error_survives_pickle_and_wire(cls: type[errors.HoldfastError]) -> None:
    error = cls("what happened", hint="do this", tier="posix", key="images/x", step=7)
    for copy in (pickle.loads(pickle.dumps(error)), errors.from_dict(error.to_dict())):
        assert type(copy) is cls
        assert str(copy) == str(error)
    assert "tier posix, step 7, key images/x" in str(error)
    assert "hint: do this" in str(error)


def test_an_unknown_kind_comes_back_as_the_root() -> None:
    assert type(errors.from_dict({"kind": "from-the-future", "message": "m"})) is errors.HoldfastError

"""Every backend and every wrapper against the suite. A new backend is a function here and a line in PLACES."""

from pathlib import Path

import pytest

from holdfast.model.place import Scope
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Faults, Retry, Throttle

pytest.register_assert_rewrite("tests.contract.suite")  # before it is imported

from tests.contract.suite import *  # noqa: E402, F403
from tests.contract.suite import Place  # noqa: E402


def posix(root: Path, *, wrap=lambda tier: tier, **options) -> Place:
    opened: list[PosixTier] = []

    def open_(owner):
        opened.append(PosixTier(str(root), owner=owner, **options))
        return wrap(opened[-1])

    def stored():
        files = (p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] != ".tmp")
        return {str(p.relative_to(root)): p.read_bytes() for p in files}

    def close():
        for tier in opened:
            tier.close()

    def unfinished():
        return [p.name for p in root.glob(".tmp/*") if "-old-" not in p.name]

    return Place(open_, stored, unfinished, close=close)


def unsynced(root: Path, **options) -> Place:
    """Nothing waits for the disk: what reaches it is a matter of test_posix.py."""
    return posix(root, fsync=lambda fd: None, **options)


def memory(root: Path) -> Place:
    slots = HeapSlots()
    tier = MemoryTier(slots)

    def stored():
        return {key: bytes(slot.buffer) for key, slot in slots._published.items()} | tier._small

    return Place(lambda owner: tier, stored, lambda: [s.key for s in slots._pending], outlives=False)


PLACES = {
    "posix": posix,
    "posix-buffered": lambda root: unsynced(root, direct=False),
    "nvme": lambda root: unsynced(root, scope=Scope.NODE, recycle_from_bytes=1),
    "memory": memory,
    "retry": lambda root: unsynced(root, wrap=Retry),
    "throttle": lambda root: unsynced(root, wrap=lambda t: Throttle(t, write_bytes_per_s=1e12, read_bytes_per_s=1e12)),
    "faults": lambda root: unsynced(root, wrap=Faults),
    "all-wrappers": lambda root: unsynced(root, wrap=lambda t: Retry(Throttle(Faults(t), write_bytes_per_s=1e12))),
}


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    place = PLACES[request.param](tmp_path / "tier")
    yield place
    place.close()

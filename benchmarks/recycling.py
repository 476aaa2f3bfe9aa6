"""What recycling files gives on a disk: writing an image over a deleted one, or writing a new one and freeing the old.

    python benchmarks/recycling.py --on /mnt/nvme

One sample is what an agent does per image in steady state: upload past the page cache, fsync, publish, then delete the
image before it. Samples come in pairs, every second one in the other order; the number is the median of their ratios.
"""

from __future__ import annotations

import argparse
import json
import mmap
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from holdfast.model.place import Scope
from holdfast.tiers.posix import PosixTier

MIB = 1 << 20


def sample(tier: PosixTier, number: int, image: memoryview) -> tuple[float, float]:
    """Seconds of the upload, and of the deletion after it."""
    began = time.perf_counter()
    upload = tier.upload(f"images/{number}/0", len(image))
    part_bytes = tier.capabilities.part_bytes
    for at in range(0, len(image), part_bytes):
        upload.write(at, image[at : at + part_bytes])
    upload.publish()
    published = time.perf_counter()
    tier.delete(f"images/{number - 1}/0")
    return published - began, time.perf_counter() - published


def measure(on: Path, size_bytes: int, pairs: int) -> dict[str, object]:
    """Everything about both ways; `ratio` above 1 says that recycling is faster."""
    image = memoryview(mmap.mmap(-1, size_bytes))
    image[:] = bytes(range(256)) * (size_bytes // 256)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-recycling-", dir=on))
    try:
        tiers = {
            "fresh": PosixTier(str(folder / "fresh"), scope=Scope.NODE),
            "recycled": PosixTier(str(folder / "recycled"), scope=Scope.NODE, recycle_from_bytes=MIB),
        }
        told: dict[str, list[tuple[float, float]]] = {name: [] for name in tiers}
        for number in range(1, pairs + 3):  # the first two are not counted: nothing is recycled yet
            for name in list(tiers)[:: 1 if number % 2 else -1]:
                told[name].append(sample(tiers[name], number, image))
        for tier in tiers.values():
            tier.close()
    finally:
        shutil.rmtree(folder)
    whole = {name: [up + gone for up, gone in samples[2:]] for name, samples in told.items()}
    return {
        "size_bytes": size_bytes,
        "pairs": pairs,
        "ratio": statistics.median(f / r for f, r in zip(whole["fresh"], whole["recycled"], strict=True)),
        **{f"{n}_upload_s": statistics.median(up for up, _ in s[2:]) for n, s in told.items()},
        **{f"{n}_delete_s": statistics.median(gone for _, gone in s[2:]) for n, s in told.items()},
        "seconds": whole,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", type=Path, default=Path("."), help="a directory on the disk")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=15)
    said = parser.parse_args()
    print(json.dumps(measure(said.on, said.mib * MIB, said.pairs)))

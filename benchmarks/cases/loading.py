"""Load: from memory after kill -9, and cold from the disk."""

from __future__ import annotations

from pathlib import Path

from benchmarks.channel import Variant, VariantError
from benchmarks.files import forget_cached, images
from benchmarks.plan import Bench, in_turn
from benchmarks.record import Number

MEMORY_GOAL = 1.3
_SEED, _OTHER_SEED = 1, 2  # a loader starts from other values, so that a load that loaded nothing shows
_CORES = 2


def from_memory(bench: Bench) -> list[Number]:
    """Save once; then kill the trainer and load in a fresh process, again and again."""
    image = bench.places.memory / "image"
    env = bench.places.environment()
    with Variant("benchmarks.ours", env, **bench.setup(threads=2), home=bench.home, seed=_SEED) as saver:
        size_bytes = saver.ready()["bytes"]
        saver.ask("attach")
        saver.ask("prepare")
        saver.ask("save")
        expected = saver.ask("fingerprint")["value"]
        saver.kill()
    _fill(image, size_bytes)
    samples = []
    for index in range(bench.plan.pairs):
        bench.say(f"load from memory: {index + 1}")
        samples.append(_after_kill(bench, index, image, expected))
    image.unlink()
    floor, single, ours = ([s[k] for s in samples] for k in ("floor_s", "floor_single_s", "load_s"))
    return [
        Number(
            "load_memory",
            "load from memory after kill -9",
            "checked copy",
            MEMORY_GOAL,
            list(zip(floor, ours, strict=True)),
            {"samples": samples},
        ),
        Number(
            "load_memory_single",
            "load from memory after kill -9",
            "checked copy, 1 thread",
            None,
            list(zip(single, ours, strict=True)),
        ),
    ]


def _after_kill(bench: Bench, index: int, image: Path, expected: int) -> dict[str, float]:
    env = bench.places.environment()
    with (
        Variant("benchmarks.floors", env, **bench.floor_setup(threads=2), image=str(image)) as floor,
        Variant("benchmarks.ours", env, **bench.setup(threads=2), home=bench.home, seed=_OTHER_SEED) as loader,
    ):
        floor.ready()
        loader.ready()
        attach_s = loader.ask("attach")["s"]
        below, above = in_turn(index, lambda: floor.ask("load", workers=_CORES), lambda: loader.ask("load"))
        single = floor.ask("load", workers=1)
        _check(loader, expected)
        loader.kill()
    return {"floor_s": below["s"], "floor_single_s": single["s"], "load_s": above["s"], "attach_s": attach_s}


def from_disk(bench: Bench) -> list[Number]:
    """Save once and close; then, with no agent, no arena and no cached page, load in a fresh process."""
    env = bench.places.environment()
    with Variant("benchmarks.ours", env, **bench.setup(threads=2), home=bench.home, seed=_SEED) as saver:
        saver.ready()
        saver.ask("attach")
        saver.ask("save")
        expected = saver.ask("fingerprint")["value"]
        saver.ask("close")
    (image,) = images(Path(bench.home))
    pairs = []
    with Variant("benchmarks.floors", env, **bench.floor_setup(threads=2)) as floor:
        floor.ready()
        for index in range(bench.plan.pairs):
            bench.say(f"load from disk: {index + 1}")
            pairs.append(_cold(bench, index, floor, image, expected))
    return [Number("load_disk", "load from disk, no agent, cold", "read", None, pairs)]


def _cold(bench: Bench, index: int, floor: Variant, image: Path, expected: int) -> tuple[float, float]:
    env = bench.places.environment()
    with Variant("benchmarks.ours", env, **bench.setup(threads=2), home=bench.home, seed=_OTHER_SEED) as loader:
        loader.ready()
        loader.ask("attach")
        forget_cached(image)
        below, above = in_turn(index, lambda: floor.ask("read", path=str(image)), lambda: loader.ask("load"))
        _check(loader, expected)
        loader.ask("discard")
    return below["s"], above["s"]


def _check(loader: Variant, expected: int) -> None:
    found = loader.ask("fingerprint")["value"]
    if found != expected:
        raise VariantError(f"loaded other values than were saved: {found} instead of {expected}")


def _fill(path: Path, size_bytes: int) -> None:
    """An image's worth of shared memory for the floor, with room for alignment."""
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(size_bytes // len(block) + 2):
            file.write(block)

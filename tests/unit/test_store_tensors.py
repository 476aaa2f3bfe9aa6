"""Tensors read from a tier by proven blocks, boxes that meet, numbers of every dtype, and two checkpoints compared."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.tensor_fixtures import find_tensor, rows, save

from holdfast.errors import CorruptError, NotFoundError
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.format.numbers import has_numbers, numbers
from holdfast.model.manifest import Manifest
from holdfast.model.rect import Rect
from holdfast.store import tensors
from holdfast.store.attempts import claim
from holdfast.store.diff import Side, compare_structure, compare_tensors
from holdfast.store.moments import Change, Histogram, Moments
from holdfast.store.rects import disjoint, pairs, parts, without
from holdfast.store.tensors import Images
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier


@pytest.fixture
def tier(tmp_path: Path):
    tier = open_tier(f"file://{tmp_path}/run7", name="posix", owner="1.test")
    claim(tier, run="r", parent=None, coordinator="")
    yield tier
    tier.close()


def read_whole(tier: Tier, manifest: Manifest, fqn: str = "w") -> np.ndarray:
    tensor = find_tensor(Images(tier), manifest, fqn)
    out = np.full(tensor.record.shape, np.nan, np.float32)
    for chunk, rect in tensor.rects:
        where = tuple(slice(a, b) for a, b in zip(rect.offsets, rect.stops, strict=True))
        out[where] = tensor.read(chunk, rect).reshape(-1).view(np.float32).reshape(rect.lengths)
    return out


# Rectangles ----------------------------------------------------------------------------------------------------------
def cells(rect: Rect) -> set[tuple[int, ...]]:
    shape = tuple(range(a, b) for a, b in zip(rect.offsets, rect.stops, strict=True))
    return {tuple(map(int, c)) for c in np.array(np.meshgrid(*shape, indexing="ij")).reshape(len(shape), -1).T}


rects = st.tuples(*[st.tuples(st.integers(0, 4), st.integers(1, 4)) for _ in range(2)]).map(
    lambda dims: Rect(tuple(o for o, _ in dims), tuple(n for _, n in dims))
)


@given(rects, rects)
def test_what_is_left_and_what_is_common_make_the_rectangle(a, b):
    left, common = list(without(a, b)), a.meet(b)
    found = [c for rect in [*left, *([common] if common else [])] for c in cells(rect)]
    assert len(found) == len(set(found))
    assert set(found) == cells(a)


@given(st.lists(rects, max_size=5), st.lists(rects, max_size=5))
def test_every_element_comes_once_and_pairs_meet_wherever_both_are(one, two):
    first, second = disjoint(one), disjoint(two)
    for given_rects, found in ((one, first), (two, second)):
        all_cells = [c for _, rect in found for c in cells(rect)]
        assert len(all_cells) == len(set(all_cells))
        assert set(all_cells) == {c for rect in given_rects for c in cells(rect)}
        assert all(cells(rect) <= cells(given_rects[index]) for index, rect in found)
    met = [c for _, _, rect in pairs(first, second) for c in cells(rect)]
    assert len(met) == len(set(met))
    assert set(met) == {c for b in one for c in cells(b)} & {c for b in two for c in cells(b)}


@given(rects, st.integers(1, 6))
def test_parts_are_the_rectangle_in_row_order(rect, most):
    found = list(parts(rect, lambda b: b.size <= most))
    assert all(b.size <= most for b in found)
    assert [c for b in found for c in sorted(cells(b))] == sorted(cells(rect))


def test_a_tensor_without_dimensions_is_one_rectangle():
    scalar = Rect((), ())
    assert (scalar.size, scalar.span(scalar), scalar.meet(scalar)) == (1, (0, 1), scalar)
    assert list(parts(scalar, lambda b: False)) == [scalar]
    assert list(pairs([(0, scalar)], [(0, scalar)])) == [(0, 0, scalar)]


# Numbers -------------------------------------------------------------------------------------------------------------
FLOATS = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_value_of_a_small_float_is_what_torch_says(dtype):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    bits = np.arange(256, dtype=np.uint8) if kind.itemsize == 1 else np.arange(65536, dtype=np.uint16)
    raw = bits.view(np.uint8)
    expected = torch.from_numpy(raw.copy()).view(kind).to(torch.float64).numpy()
    with np.errstate(invalid="ignore"):
        found = numbers(raw, dtype).astype(np.float64)
    np.testing.assert_array_equal(found, expected)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


def test_what_has_no_numbers_says_so():
    assert not has_numbers("float4_e2m1fn_x2")
    with pytest.raises(KeyError):
        numbers(np.zeros(4, np.uint8), "int4")


def test_moments_are_those_of_the_whole_whatever_the_parts():
    values = np.random.default_rng(0).normal(1e6, 1.0, 10_000)
    values[5] = 0
    whole = Moments()
    for part in np.array_split(np.concatenate([values, [math.nan, math.inf, -math.inf]]), 7):
        whole.add(part)
    assert (whole.count, whole.nan, whole.inf, whole.zero, whole.finite) == (10_003, 1, 2, 1, 10_000)
    assert (whole.least, whole.greatest) == (0.0, values.max())
    assert whole.mean == pytest.approx(values.mean(), rel=1e-12)
    assert whole.deviation == pytest.approx(values.std(), rel=1e-9)
    assert whole.l2 == pytest.approx(np.linalg.norm(values), rel=1e-12)


def test_norms_do_not_overflow_or_vanish():
    huge, tiny = Moments(), Moments()
    huge.add(np.array([3e200, 4e200]))
    tiny.add(np.array([3e-200, 4e-200]))
    assert huge.l2 == pytest.approx(5e200)
    assert tiny.l2 == pytest.approx(5e-200)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-1e308, 1e308), (2.0, 2.0)])
def test_a_histogram_counts_everything_once(low, high):
    histogram = Histogram(low, high, bins=8)
    histogram.add(np.array([low, high, (low + high) / 2, math.nan, math.inf]))
    assert histogram.counts.sum() == 3
    assert (histogram.edges()[0], histogram.edges()[-1]) == (low, high)


def test_a_change_counts_bytes_and_measures_values():
    a = np.array([1.0, 0.0, math.nan, 5.0, math.inf], np.float32)
    b = np.array([4.0, -0.0, math.nan, 9.0, 1.0], np.float32)
    change = Change()
    change.add(a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4), ("float32", "float32"))
    assert (change.count, change.changed, change.nonfinite) == (5, 4, 1)
    assert (change.l2, change.max_abs) == (5.0, 4.0)
    assert change.relative == pytest.approx(5.0 / math.hypot(1, 5))


def test_a_change_from_nothing_is_infinite_and_no_change_is_none():
    zero, one = np.zeros((4, 4), np.uint8), np.frombuffer(np.ones(4, np.float32).tobytes(), np.uint8).reshape(4, 4)
    change, same = Change(), Change()
    change.add(zero, one, ("float32", "float32"))
    same.add(zero, zero, ("float32", "float32"))
    assert (change.relative, same.relative) == (math.inf, 0.0)


# Reading -------------------------------------------------------------------------------------------------------------
WHOLE = np.arange(24 * 10, dtype=np.float32).reshape(24, 10)


@pytest.mark.parametrize(
    "held",
    [
        rows(WHOLE, 3),
        [[((0, 0), (24, 4))], [((0, 4), (24, 6))]],
        [[((0, 0), (24, 10))], [((0, 0), (24, 10))]],
        [[((0, 0), (16, 10))], [((8, 2), (16, 8)), ((16, 0), (8, 2))]],
    ],
    ids=["rows", "columns", "replicas", "overlapping"],
)
def test_a_tensor_is_read_whole_whoever_holds_what(tier, held, monkeypatch):
    monkeypatch.setattr(tensors, "PART_BYTES", 64)
    manifest = save(tier, 1, [{"w": (WHOLE, rects)} for rects in held])
    assert (read_whole(tier, manifest) == WHOLE).all()
    found = find_tensor(Images(tier), manifest, "w")
    values = np.concatenate([p.reshape(-1).view(np.float32) for p in found.parts()])
    assert sorted(values) == sorted(WHOLE.reshape(-1))


def test_memory_is_bounded_and_each_block_is_read_once(tier):
    large = np.arange(11 * BLOCK_BYTES // 4, dtype=np.float32)
    manifest = save(tier, 1, [{"w": (large, [((0,), large.shape)])}])
    read: list[int] = []
    images = Images(tier, progress=read.append)
    total = sum(len(p) for p in find_tensor(images, manifest, "w").parts())
    assert total == large.size
    assert sum(read) <= manifest.size_bytes + 3 * BLOCK_BYTES
    assert len(images._blocks) * BLOCK_BYTES <= tensors.KEPT_BYTES
    assert images._heads._blocks == {}


def test_of_small_images_only_the_tables_are_read_twice(tier):
    manifest = save(tier, 1, [{"w": (WHOLE, rects)} for rects in rows(WHOLE, 3)])
    read: list[int] = []
    images = Images(tier, progress=read.append)
    assert sum(len(p) for p in find_tensor(images, manifest, "w").parts()) == WHOLE.size
    assert sum(read) == sum(record.size_bytes + 4096 for record in manifest.images)


def flip(tier_home: Path, key: str, at: int) -> None:
    path = tier_home / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["header", "data", "table"])
def test_no_number_is_computed_from_damaged_bytes(tier, tmp_path, where):
    manifest = save(tier, 1, [{"w": (WHOLE, [((0, 0), WHOLE.shape)])}])
    layout = find_tensor(Images(tier), manifest, "w").entry_of(0)
    at = {"header": 300, "data": layout.start + 5, "table": manifest.size_bytes - 8}[where]
    flip(tmp_path / "run7", names.image_key(manifest.images[0].id), at)
    with pytest.raises(CorruptError) as caught:
        list(find_tensor(Images(tier), manifest, "w").parts())
    assert caught.value.key == names.image_key(manifest.images[0].id)


def test_another_image_of_the_same_shape_is_no_substitute(tier, tmp_path):
    manifest = save(tier, 1, [{"w": (WHOLE, [((0, 0), WHOLE.shape)])}])
    other = save(tier, 2, [{"w": (WHOLE + 1, [((0, 0), WHOLE.shape)])}])
    old, new = (tmp_path / "run7" / names.image_key(m.images[0].id) for m in (manifest, other))
    old.write_bytes(new.read_bytes())
    with pytest.raises(CorruptError, match="the header says image 0 of rank 0, step 2"):
        list(find_tensor(Images(tier), manifest, "w").parts())


# Comparing -----------------------------------------------------------------------------------------------------------
def compare(tier: Tier, first: Manifest, second: Manifest) -> Any:
    images = Images(tier)
    sides = Side(first, images), Side(second, images)
    differences = compare_structure(*sides)
    return differences, {c.first.fqn: c for c in compare_tensors(*sides, differences)}


@pytest.mark.parametrize("part_bytes", [16, 1 << 20])
def test_two_world_sizes_compare_as_the_tensors_they_are(tier, monkeypatch, part_bytes):
    monkeypatch.setattr("holdfast.store.diff.PART_BYTES", part_bytes)
    moved = WHOLE.copy()
    moved[3, 4], moved[20, 9] = moved[3, 4] + 3, moved[20, 9] - 4
    first = save(tier, 1, [{"w": (WHOLE, rects)} for rects in rows(WHOLE, 3)])
    second = save(tier, 2, [{"w": (moved, r)} for r in ([((0, 0), (24, 4))], [((0, 4), (24, 6))])])
    differences, changes = compare(tier, first, second)
    assert not differences.any
    change = changes["w"].change
    assert (change.count, change.changed, change.max_abs, change.l2) == (240, 2, 4.0, 5.0)
    assert change.first_l2 == pytest.approx(np.linalg.norm(WHOLE.astype(np.float64)))


def test_structure_is_told_before_any_image_is_read(tier):
    ones = np.ones((4,), np.float32)
    first = save(tier, 1, [{"a": (ones, [((0,), (4,))]), "b": (ones, [((0,), (4,))])}])
    wide = np.ones((8,), np.float32)
    second = save(tier, 2, [{"b": (wide, [((0,), (8,))]), "c": (ones, [((0,), (4,))])}])
    differences, changes = compare(tier, first, second)
    assert [t.fqn for t in differences.only_first] == ["a"]
    assert [t.fqn for t in differences.only_second] == ["c"]
    assert [(a.shape, b.shape) for a, b in differences.shapes] == [((4,), (8,))]
    assert changes == {}


def test_other_dtypes_compare_by_value(tier):
    first = save(tier, 1, [{"w": (np.array([1.5, 2.0], np.float32), [((0,), (2,))])}])
    half = save(tier, 2, [{"w": (np.array([1.5, 3.0], np.float16), [((0,), (2,))])}], dtype="float16")
    differences, changes = compare(tier, first, half)
    assert [(a.dtype, b.dtype) for a, b in differences.dtypes] == [("float32", "float16")]
    assert (changes["w"].change.changed, changes["w"].change.l2) == (1, 1.0)


def test_what_is_damaged_is_named_and_the_rest_compared(tier, tmp_path):
    half = rows(WHOLE, 2)
    held = [{"w": (WHOLE, half[0]), "a": (WHOLE, [((0, 0), (24, 10))])}, {"w": (WHOLE, half[1])}]
    first, second = save(tier, 1, held), save(tier, 2, held)
    (tmp_path / "run7" / names.image_key(second.images[1].id)).unlink()
    _, changes = compare(tier, first, second)
    assert changes["a"].error is None
    assert changes["a"].change.count == 240
    assert isinstance(changes["w"].error, NotFoundError)
    assert changes["w"].error.key == names.image_key(second.images[1].id)

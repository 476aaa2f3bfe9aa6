"""Checkpoints as files of others: whole tensors in row order, names and trees as they were, or refused by name."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.import_fixtures import bytes_of, copy, source_of, write_safetensors
from tests.unit.store_fixtures import begin
from tests.unit.tensor_fixtures import find_tensor, rows, save

from holdfast.errors import CorruptError, NotFoundError, UnsupportedValueError, UsageError
from holdfast.format import names
from holdfast.format.nested import DCP_MARK
from holdfast.format.plain import Opaque, TensorRef, encode
from holdfast.model.identity import ImageId
from holdfast.model.manifest import Manifest
from holdfast.store.exporting import rows as in_row_order
from holdfast.store.exporting.chosen import Chosen, choose
from holdfast.store.exporting.places import new_file, new_folder
from holdfast.store.exporting.rows import in_rows
from holdfast.store.exporting.safetensors import export_safetensors
from holdfast.store.tensors import Images
from holdfast.tiers.posix import PosixTier

W = np.arange(64 * 12, dtype=np.float32).reshape(64, 12)
DEEP = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
SCALAR = np.array(2.5, np.float32)


@pytest.fixture
def tier(tmp_path):
    tier = PosixTier(f"{tmp_path}/run7", owner="1.test")
    begin(tier)
    yield tier
    tier.close()


def whole(array: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    return array, [((0,) * array.ndim, array.shape)]


def cut(array: np.ndarray, dim: int, ranks: int) -> list[tuple[np.ndarray, list[Any]]]:
    """What each rank holds of an array that is cut along a dimension."""
    borders = [array.shape[dim] * r // ranks for r in range(ranks + 1)]
    held = []
    for a, b in pairwise(borders):
        offsets = tuple(a if d == dim else 0 for d in range(array.ndim))
        lengths = tuple(b - a if d == dim else n for d, n in enumerate(array.shape))
        held.append((array, [(offsets, lengths)]))
    return held


def chosen_of(tier: PosixTier, manifest: Manifest, **options: Any) -> Chosen:
    return choose(Images(tier), manifest, manifest.plain or b"", **options)


# Rows ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window_bytes", [4, 100, 1000, 10**6])
@pytest.mark.parametrize(("array", "dim"), [(W, 0), (W, 1), (DEEP, 0), (DEEP, 1), (DEEP, 2)])
def test_tensors_come_in_row_order_however_they_are_cut(tier, array, dim, window_bytes, monkeypatch):
    manifest = save(tier, 1, [{"w": held} for held in cut(array, dim, 4)])
    monkeypatch.setattr(in_row_order, "_window_bytes", lambda rects: window_bytes)
    windows = list(in_rows(find_tensor(Images(tier), manifest, "w")))
    assert b"".join(w.tobytes() for w in windows) == array.tobytes()
    assert max(w.nbytes for w in windows) <= max(window_bytes, 4)


def test_replicas_that_overlap_and_tensors_without_dimensions_or_elements(tier):
    parts = [[((0, 0), (40, 12))], [((30, 0), (34, 12))]]
    empty = np.zeros((0, 3), np.float32)
    held = [{"w": (W, rects)} for rects in parts]
    held[0] |= {"scalar": whole(SCALAR), "empty": whole(empty)}
    manifest = save(tier, 1, held)
    images = Images(tier)
    for name, array in (("w", W), ("scalar", SCALAR), ("empty", empty)):
        assert b"".join(p.tobytes() for p in in_rows(find_tensor(images, manifest, name))) == array.tobytes()


def test_windows_are_larger_where_many_pieces_lie_beside_each_other(tier):
    manifest = save(tier, 1, [{"w": held} for held in cut(W, 1, 12)])
    columns = find_tensor(Images(tier), manifest, "w").rects
    manifest = save(tier, 2, [{"w": (W, r)} for r in rows(W, 8)])
    lines = find_tensor(Images(tier), manifest, "w").rects
    assert in_row_order._window_bytes(columns) == 12 * 4 * 2**20
    assert in_row_order._window_bytes(lines) == in_row_order._window_bytes([]) == 2 * 4 * 2**20


def test_damage_is_an_error_and_leaves_no_file(tier, tmp_path):
    manifest = save(tier, 1, [{"w": whole(W)}])
    path = tmp_path / "run7" / names.image_key(ImageId(1, 1, 0))
    chosen = chosen_of(tier, manifest)
    data = bytearray(path.read_bytes())
    data[chosen.tensors["w"].entry_of(0).start + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        export_safetensors(chosen_of(tier, manifest), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run7"]


# What is chosen ------------------------------------------------------------------------------------------------------
def state(tier: PosixTier, plain: dict[str, Any] | None = None) -> Manifest:
    held = {name: whole(W) for name in ("model.a.w", "model.b", "optim.state.a.w.exp_avg", "ema.w", "alone")}
    values = {"optim": {"param_groups": [{"lr": 0.1}]}, "epoch": 3, "ema": {"w": TensorRef("ema.w"), "decay": 0.9}}
    return save(tier, 1, [held], plain=[values if plain is None else plain])


def test_the_state_of_a_checkpointer_nests_by_its_names(tier):
    chosen = chosen_of(tier, state(tier))
    assert chosen.tree == {
        "model": {"a.w": TensorRef("model.a.w"), "b": TensorRef("model.b")},
        "optim": {
            "param_groups": [{"lr": 0.1}],
            "state": {"a.w": {"exp_avg": TensorRef("optim.state.a.w.exp_avg")}},
        },
        "epoch": 3,
        "ema": {"w": TensorRef("ema.w"), "decay": 0.9},
        "alone": TensorRef("alone"),
    }
    assert set(chosen.tensors) == {"model.a.w", "model.b", "optim.state.a.w.exp_avg", "ema.w", "alone"}
    assert chosen.size_bytes == 5 * W.nbytes
    assert (chosen.aliases, chosen.left_out) == ({}, ())


def test_one_key_as_if_it_were_the_whole(tier):
    manifest = state(tier)
    assert chosen_of(tier, manifest, only="model").tree == {"a.w": TensorRef("model.a.w"), "b": TensorRef("model.b")}
    with pytest.raises(NotFoundError, match="there are model"):
        chosen_of(tier, manifest, only="modle")
    for single in ("epoch", "alone"):
        with pytest.raises(UsageError, match="is a single value"):
            chosen_of(tier, manifest, only=single)


def test_names_are_left_out(tier):
    manifest = state(tier)
    chosen = chosen_of(tier, manifest, without=("optim", "ema.decay", "model.b", "epoch"))
    assert chosen.tree == {
        "model": {"a.w": TensorRef("model.a.w")}, "ema": {"w": TensorRef("ema.w")}, "alone": TensorRef("alone"),
    }  # fmt: skip
    assert set(chosen.left_out) == {"optim", "ema.decay", "model.b", "epoch"}
    with pytest.raises(UsageError, match=r"nothing called 'mod', 'epoch\.x'"):
        chosen_of(tier, manifest, without=("mod", "epoch.x", "optim"))


def test_what_belongs_to_one_rank_is_left_out_and_listed(tier):
    own = {"__holdfast__.per_rank": ["rng", "data"], "rng": 1, "data": {"at": 5}, "data.inner": 6, "epoch": 3}
    chosen = chosen_of(tier, state(tier, own))
    assert chosen.tree["epoch"] == 3
    assert not {"rng", "data", "data.inner"} & chosen.tree.keys()
    assert chosen.left_out == ("rng", "data")


def test_a_mark_says_how_names_nest(tier):
    mark = {"nested": True, "flat": [[]], "state": []}
    chosen = chosen_of(tier, state(tier, {DCP_MARK: mark}))
    assert chosen.tree == {name: TensorRef(name) for name in chosen.tensors}


def test_a_tensor_that_no_image_holds_is_an_error(tier):
    with pytest.raises(CorruptError, match="no image holds it"):
        chosen_of(tier, state(tier, {"a": TensorRef("gone")}))


def test_plain_values_that_are_no_tree_are_corrupt(tier):
    manifest = state(tier)
    with pytest.raises(CorruptError, match="no tree"):
        choose(Images(tier), manifest, encode([1]))


# safetensors ---------------------------------------------------------------------------------------------------------
def test_a_folder_with_one_file_that_the_library_reads(tier, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    manifest = save(
        tier,
        1,
        [{"model.w": held, "model.deep": deep} for held, deep in zip(cut(W, 1, 4), cut(DEEP, 2, 4), strict=True)],
    )
    told: list[int] = []
    chosen = chosen_of(tier, manifest, only="model")
    paths = export_safetensors(chosen, tmp_path / "out", progress=told.append)
    assert paths == [tmp_path / "out/model.safetensors"]
    found = safetensors.load_file(paths[0])
    assert {name: a.tolist() for name, a in found.items()} == {"w": W.tolist(), "deep": DEEP.tolist()}
    assert sum(told) == chosen.size_bytes == W.nbytes + DEEP.nbytes


def test_several_files_with_an_index_that_an_import_reads(tier, tmp_path):
    manifest = save(tier, 1, [{f"w{n}": whole(W + n) for n in range(5)}])
    paths = export_safetensors(chosen_of(tier, manifest), tmp_path / "out", file_bytes=2 * W.nbytes + 10)
    assert [p.name for p in paths] == [
        *(f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)), "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": 5 * W.nbytes}
    assert index["weight_map"]["w2"] == "model-00002-of-00003.safetensors"
    found = bytes_of(source_of(tmp_path / "out"))
    assert found == {(f"w{n}", (0, 0)): (W + n).tobytes() for n in range(5)}


def test_one_file_where_the_path_is_called_so(tier, tmp_path):
    manifest = save(tier, 1, [{"w": whole(W)}])
    assert export_safetensors(chosen_of(tier, manifest), tmp_path / "x.safetensors", file_bytes=1) == [
        tmp_path / "x.safetensors"
    ]
    assert bytes_of(source_of(tmp_path / "x.safetensors")) == {("w", (0, 0)): W.tobytes()}


def test_elements_lie_at_multiples_of_their_size(tier, tmp_path):
    from holdfast.format.dtypes import TORCH

    held = {"b": whole(np.arange(3, dtype=np.float32)), "a": whole(W)}
    path = export_safetensors(chosen_of(tier, save(tier, 1, [held])), tmp_path / "x.safetensors")[0]
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    assert n % 8 == 0
    header = json.loads(data[8 : 8 + n])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert all(e["data_offsets"][0] % TORCH[e["dtype"]][1] == 0 for e in header.values())


def test_what_has_no_place_is_named_and_nothing_is_written(tier, tmp_path):
    with pytest.raises(UnsupportedValueError) as caught:
        export_safetensors(chosen_of(tier, state(tier)), tmp_path / "out")
    for name in ("optim.param_groups.0.lr (a float)", "epoch (a int)", "ema.decay (a float)"):
        assert name in caught.value.message
    manifest = save(
        tier, 2, [{"w": whole(np.arange(3, dtype=np.float32))}], dtype="float32", plain=[{"t": Opaque("x", 1)}]
    )
    with pytest.raises(UnsupportedValueError, match=r"t \(a Opaque"):
        export_safetensors(chosen_of(tier, manifest), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_it_lacks_is_named(tier, tmp_path):
    manifest = save(tier, 1, [{"w": whole(np.arange(3, dtype=np.complex128))}], dtype="complex128")
    with pytest.raises(UnsupportedValueError, match=r"w \(a tensor of complex128"):
        export_safetensors(chosen_of(tier, manifest), tmp_path / "out")


# Places --------------------------------------------------------------------------------------------------------------
def test_nothing_is_replaced(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(UsageError, match="is there already"), new_file(tmp_path / name):
            pass
        with pytest.raises(UsageError, match="is there already"), new_folder(tmp_path / name):
            pass
    with pytest.raises(NotFoundError, match="mkdir"), new_file(tmp_path / "no/file"):
        pass


def fail_in_file(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"x")
        raise ZeroDivisionError


def fail_in_folder(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "inner").touch()
        raise ZeroDivisionError


@pytest.mark.parametrize("fail", [fail_in_file, fail_in_folder])
def test_what_failed_leaves_nothing(tmp_path, fail):
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_its_name_once_it_is_whole(tmp_path):
    with new_file(tmp_path / "file") as file:
        file.write(b"whole")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_was_exported_and_imported_is_the_same(tier, tmp_path):
    tensors = {"a": W, "b": np.arange(5), "c": SCALAR}
    source = source_of(write_safetensors(tmp_path / "in.safetensors", tensors))
    manifest = copy(tier, source, 7)
    export_safetensors(chosen_of(tier, manifest), tmp_path / "out.safetensors")
    assert bytes_of(source_of(tmp_path / "out.safetensors")) == bytes_of(source)

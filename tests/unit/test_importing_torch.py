"""Files of torch.save and folders of torch DCP, made by torch: read without it, or refused by name; nothing runs."""

import argparse
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from tests.unit.import_fixtures import bytes_of, copy, source_of, stored_bytes
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from holdfast.errors import CorruptError, UnsupportedValueError, UsageError
from holdfast.format import plain
from holdfast.format.nested import DCP_MARK
from holdfast.format.plain import Opaque, TensorRef
from holdfast.store.importing import source as sources
from holdfast.store.importing.source import Source
from holdfast.store.verify import verify_checkpoint
from holdfast.tiers.posix import PosixTier

pytestmark = pytest.mark.torch


class Boom:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def raw(tensor: torch.Tensor) -> bytes:
    """Its elements in row order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def whole(source: Source) -> dict[str, bytes]:
    """The bytes of every tensor, all of which are whole."""
    return {fqn: data for (fqn, _), data in bytes_of(source).items()}


@pytest.fixture
def tier(tmp_path):
    tier = PosixTier(f"{tmp_path}/run7", owner="1.test")
    yield tier
    tier.close()


# torch.save ----------------------------------------------------------------------------------------------------------
def training() -> dict[str, Any]:
    """A state as many jobs save it, after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "epoch": 3,
        "history": [(1, 0.5), (2, float("inf"))],
        "rng": torch.get_rng_state(),
        "numpy": np.arange(3),
        "size": torch.Size([2, 3]),
        "config": {"dtype": torch.bfloat16, "device": torch.device("cuda:1"), "names": {"a", "b"}, "raw": b"\0\xff"},
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_s_state(tmp_path, protocol):
    state = training()
    found = source_of(saved(tmp_path / "step_100.pt", state, pickle_protocol=protocol))
    expected = {f"model.{name}": t for name, t in state["model"].items()} | {"rng": state["rng"]}
    for number, entries in state["optim"]["state"].items():
        expected |= {f"optim.state.{number}.{key}": t for key, t in entries.items()}
    assert whole(found) == {name: raw(t) for name, t in expected.items()}
    assert {s.piece.fqn: (s.piece.shape, s.piece.dtype) for s in found.stored} == {
        name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in expected.items()
    }
    tree = found.tree
    assert (tree["epoch"], tree["history"], tree["rng"]) == (3, [(1, 0.5), (2, float("inf"))], TensorRef("rng"))
    assert tree["size"] == Opaque("torch.Size", [2, 3])
    assert tree["config"]["dtype"] == Opaque("torch.dtype", "bfloat16")
    assert tree["config"]["names"] == {"a", "b"}
    assert tree["optim"]["state"][0]["exp_avg"] == TensorRef("optim.state.0.exp_avg")
    assert tree["optim"]["param_groups"][0]["lr"] == 0.1
    assert "model" not in tree
    assert tree[DCP_MARK]["flat"] == [["model"]]
    back = plain.decode(found.plain, keep_unknown=True)
    assert back.pop("numpy").tolist() == tree.pop("numpy").tolist() == [0, 1, 2]
    assert back == tree


KINDS = {
    "bfloat16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "float8": torch.arange(6).to(torch.float8_e4m3fn),
    "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
    "complex128": torch.tensor([1 + 2j], dtype=torch.complex128),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "strided": torch.arange(20)[3::4],
    "channels": torch.arange(48.0).reshape(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
    "offset": torch.arange(10)[4:7],
    "parameter": torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_of_every_kind(tmp_path, protocol):
    found = source_of(saved(tmp_path / "x.pt", KINDS, pickle_protocol=protocol))
    assert whole(found) == {name: raw(t) for name, t in KINDS.items()}


def test_tensors_that_share_memory(tmp_path, tier):
    base = torch.arange(100.0)
    state = {"a": base[:60], "b": base[40:], "tied": base[:60], "all": base, "other": torch.ones(2)}
    found = source_of(saved(tmp_path / "x.pt", state))
    assert found.aliases == (("tied", "a"),)
    assert whole(found) == {name: raw(t) for name, t in state.items() if name != "tied"}
    manifest = copy(tier, found, 1)
    assert stored_bytes(tier, manifest) == {name: raw(t) for name, t in state.items()}


def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pt", {"a": torch.arange(1000.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert whole(source_of(path)) == {"a": raw(torch.arange(1000.0))}


@pytest.mark.parametrize("of", ["storage", "unused"])
def test_a_flipped_bit_is_found_also_where_no_tensor_is(tmp_path, tier, of):
    base = torch.arange(1000, dtype=torch.int64)
    state = {"a": base[:500] if of == "unused" else base}
    path = saved(tmp_path / "x.pt", state)
    data = bytearray(path.read_bytes())
    data[data.find(raw(base)) + 7000] ^= 1
    path.write_bytes(data)
    found = source_of(path)
    with pytest.raises(CorruptError, match="do not match the checksum"):
        copy(tier, found, 1)


def test_a_flipped_bit_in_the_pickle_is_found(tmp_path):
    path = saved(tmp_path / "x.pt", {"name": "text", "a": torch.ones(3)})
    data = bytearray(path.read_bytes())
    data[data.find(b"text")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="its pickle does not match"):
        source_of(path)


def test_a_file_that_is_cut_off_is_corrupt(tmp_path):
    path = saved(tmp_path / "x.pt", training())
    data = path.read_bytes()
    for end in range(4, len(data), len(data) // 50):
        path.write_bytes(data[:end])
        with pytest.raises(CorruptError):
            source_of(path)


def rewritten(path: Path, change: dict[str, bytes | None]) -> Path:
    """The zip with other records; None: without one."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    prefix = next(iter(records)).partition("/")[0]
    for name, data in change.items():
        records.pop(f"{prefix}/{name}", None)
        if data is not None:
            records[f"{prefix}/{name}"] = data
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            new.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"data/0": None}, CorruptError, "is not there"),
        ({"data/0": b"\0" * 11}, CorruptError, "has 11 bytes"),
        ({"byteorder": b"big"}, UnsupportedValueError, "big-endian"),
        ({"constants.pkl": b""}, UnsupportedValueError, "TorchScript"),
        ({"data.pkl": None}, UnsupportedValueError, "no data.pkl"),
        ({"data.pkl": b"\x80\x02N."}, UsageError, "is a NoneType"),
    ],
)
def test_files_that_are_not_whole(tmp_path, change, error, said):
    path = rewritten(saved(tmp_path / "x.pt", {"a": torch.ones(3)}), change)
    with pytest.raises(error, match=said):
        source_of(path)


def test_a_file_without_a_byte_order_is_little_endian(tmp_path):
    path = rewritten(saved(tmp_path / "x.pt", {"a": torch.ones(3)}), {"byteorder": None})
    assert whole(source_of(path)) == {"a": raw(torch.ones(3))}


def test_one_tensor_and_lists_need_a_key(tmp_path):
    path = saved(tmp_path / "x.pt", torch.ones(3))
    with pytest.raises(UsageError, match="is a tensor, and a state is a dict"):
        source_of(path)
    assert whole(source_of(path, under="w")) == {"w": raw(torch.ones(3))}
    path = saved(tmp_path / "y.pt", [torch.ones(3), {"x": 5}])
    found = source_of(path, under="items")
    assert found.tree["items"] == [TensorRef("items.0"), {"x": 5}]


def test_keys_that_are_no_text_need_a_key_above_them(tmp_path):
    path = saved(tmp_path / "x.pt", {0: torch.ones(3), 1: "x"})
    with pytest.raises(UnsupportedValueError, match="can be no key of a state"):
        source_of(path)
    assert source_of(path, under="x").tree["x"] == {0: TensorRef("x.0"), 1: "x"}


def test_reserved_keys_are_refused(tmp_path):
    with pytest.raises(UnsupportedValueError, match="can be no key"):
        source_of(saved(tmp_path / "x.pt", {"__holdfast__.per_rank": ["a"]}))


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_runs(tmp_path, protocol):
    marker = tmp_path / "ran"
    path = saved(tmp_path / "x.pt", {"a": torch.ones(3), "evil": [Boom(marker)]}, pickle_protocol=protocol)
    with pytest.raises(UnsupportedValueError, match=r"posix\.system is needed"):
        source_of(path)
    assert not marker.exists()


ODD: list[Any] = [
    (lambda: torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
    (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "_rebuild_qtensor"),
    (lambda: torch.tensor([1 + 1j]).conj(), "conjugated"),
    (lambda: argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
    (lambda: torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(ODD)))
def test_other_objects_are_refused_by_name(tmp_path, number):
    make, said = ODD[number]
    path = saved(tmp_path / "x.pt", {"a": torch.ones(3), "odd": make()})
    with pytest.raises(UnsupportedValueError, match=said):
        source_of(path)


def test_values_without_a_plain_form_are_named_together(tmp_path):
    state = {"a": torch.ones(3), "b": {"array": bytearray(b"x"), "kind": list}, "c": [np.dtype("f4")], "ok": 1}
    path = saved(tmp_path / "x.pt", state, pickle_protocol=5)
    with pytest.raises(UnsupportedValueError) as caught:
        source_of(path)
    assert caught.value.message.endswith(
        "3 cannot be taken: b.array (a bytearray), b.kind (the name list), c.0 (a Dtype)"
    )
    found = source_of(path, without=("b.array", "b.kind", "c"))
    assert (found.tree["ok"], found.tree["b"], set(found.left_out)) == (1, {}, {"b.array", "b.kind", "c"})


def test_what_does_not_lie_in_a_row_has_a_limit(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", {"t": torch.arange(300.0).reshape(10, 30).t(), "a": torch.ones(3)})
    monkeypatch.setattr(sources, "GATHERED_BYTES", 1000)
    with pytest.raises(UnsupportedValueError, match=r"t \(its elements do not lie in a row"):
        source_of(path)
    assert whole(source_of(path, without=("t",))) == {"a": raw(torch.ones(3))}


def test_a_copy_loads_into_a_module(tmp_path, tier):
    import holdfast

    state = training()
    state["model"] = OrderedDict(state["model"])
    copy(tier, source_of(saved(tmp_path / "x.pt", state)), 100)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    live = {"model": model, "epoch": 0, "history": []}
    assert holdfast.load(f"file://{tmp_path}/run7", live, only=None) == 100
    assert (live["epoch"], live["history"]) == (3, [(1, 0.5), (2, float("inf"))])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state["model"][name]), name
    assert torch.equal(
        holdfast.read(f"file://{tmp_path}/run7", "optim.state.0.exp_avg"), state["optim"]["state"][0]["exp_avg"]
    )


# torch DCP -----------------------------------------------------------------------------------------------------------
def save_dcp(path: Path, state: dict[str, Any], **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=path, **options)
    return path


def named_training() -> dict[str, Any]:
    """As `get_state_dict` gives it."""
    state = training()
    names = list(dict(state["model"]))
    return {
        "model": state["model"],
        "optim": {
            "state": {name: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)} for name in names},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": names}],
        },
        "epoch": 3,
        "more": {"pair": (torch.ones(2), torch.zeros(2)), "nothing": None, "list": [torch.ones(1), {"x": 1}]},
    }


def test_a_folder_of_dcp(tmp_path, tier):
    state = named_training()
    found = source_of(save_dcp(tmp_path / "step_100", state))
    expected = {f"model.{name}": t for name, t in state["model"].items()}
    for name, entries in state["optim"]["state"].items():
        expected |= {f"optim.state.{name}.{key}": t for key, t in entries.items()}
    expected |= {f"more.pair.{n}": t for n, t in enumerate(state["more"]["pair"])}
    expected |= {"more.list.0": state["more"]["list"][0]}
    assert found.kind == "dcp"
    assert whole(found) == {name: raw(t) for name, t in expected.items()}
    assert found.tree == {
        "optim": {"param_groups": state["optim"]["param_groups"]},
        "epoch": 3,
        "more": {
            "pair": (TensorRef("more.pair.0"), TensorRef("more.pair.1")),
            "nothing": None,
            "list": [TensorRef("more.list.0"), {"x": 1}],
        },
        DCP_MARK: {"nested": True, "flat": [["model"]], "state": [["optim"]]},
    }
    manifest = copy(tier, found, 100)
    assert all(v.ok for v in verify_checkpoint(tier, manifest))
    assert stored_bytes(tier, manifest) == {name: raw(t) for name, t in expected.items()}


def test_names_that_do_not_nest(tmp_path):
    state = {"a.b": torch.ones(3), "value": {"x": 1}, "c": 5}
    path = save_dcp(tmp_path / "x", state, planner=DefaultSavePlanner(flatten_state_dict=False))
    found = source_of(path)
    assert found.tree == {"value": {"x": 1}, "c": 5, DCP_MARK: {"nested": False}}
    assert whole(found) == {"a.b": raw(torch.ones(3))}
    below = source_of(path, under="model")
    assert below.tree == {"model.value": {"x": 1}, "model.c": 5, DCP_MARK: {"nested": False}}
    assert whole(below) == {"model.a.b": raw(torch.ones(3))}


def test_everything_of_dcp_below_a_key(tmp_path):
    found = source_of(save_dcp(tmp_path / "x", {"w": torch.ones(3), "n": 1}), under="model")
    assert found.tree["model"] == {"w": TensorRef("model.w"), "n": 1}
    assert whole(found) == {"model.w": raw(torch.ones(3))}


def test_items_are_left_out(tmp_path):
    path = save_dcp(tmp_path / "x", named_training())
    found = source_of(path, without=("optim", "more.pair.1", "more.nothing"))
    assert "optim" not in found.tree
    assert found.tree["more"] == {
        "pair": (TensorRef("more.pair.0"), None),
        "list": [TensorRef("more.list.0"), {"x": 1}],
    }
    assert {"more.pair.1", "more.nothing", "optim.param_groups.0.lr"} <= set(found.left_out)


def test_items_that_would_run_are_named_together_and_do_not(tmp_path):
    marker = tmp_path / "ran"
    state = {"a": torch.ones(3), "evil": Boom(marker), "more": {"args": argparse.Namespace(x=1)}, "ok": 1}
    path = save_dcp(tmp_path / "x", state)
    marker.unlink(missing_ok=True)
    with pytest.raises(UnsupportedValueError, match="2 cannot be taken") as caught:
        source_of(path)
    assert "evil (posix.system is needed" in caught.value.message
    assert "more.args (argparse.Namespace is needed" in caught.value.message
    found = source_of(path, without=("evil", "more.args"))
    assert (found.tree["ok"], found.left_out) == (1, ("evil", "more.args"))
    assert not marker.exists()


def change_metadata(path: Path, change: Any) -> None:
    with (path / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    with (path / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)


def info_of(metadata: Any, fqn: str) -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == fqn)


def test_metadata_that_would_run_do_not(tmp_path):
    path = save_dcp(tmp_path / "x", {"a": torch.ones(3)})
    for field in ("planner_data", "storage_data", "version"):
        marker = tmp_path / field
        change_metadata(path, lambda m, f=field, mark=marker: setattr(m, f, Boom(mark)))
        with pytest.raises(UnsupportedValueError, match=r"posix\.system"):
            source_of(path)
        assert not marker.exists()
        save_dcp(path, {"a": torch.ones(3)})


def _sizes(metadata: Any, shape: list[int]) -> None:
    tensor = metadata.state_dict_metadata["w"]
    tensor.size = torch.Size(shape)
    tensor.chunks[0].sizes = torch.Size(shape)


def _second_chunk(metadata: Any, offset: int) -> None:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    tensor = metadata.state_dict_metadata["w"]
    tensor.size = torch.Size([offset + 4, 2])
    tensor.chunks.append(ChunkStorageMetadata(torch.Size([offset, 0]), torch.Size([4, 2])))
    metadata.storage_data[MetadataIndex("w", torch.Size([offset, 0]))] = info_of(metadata, "w")


DAMAGE: list[Any] = [
    (lambda m: setattr(info_of(m, "w"), "relative_path", "../x/__0_0.distcp"), "no name of a file"),
    (lambda m: setattr(info_of(m, "w"), "relative_path", ".."), "no name of a file"),
    (lambda m: setattr(info_of(m, "w"), "relative_path", "/etc/passwd"), "no name of a file"),
    (lambda m: setattr(info_of(m, "w"), "relative_path", "gone.distcp"), "is not there"),
    (lambda m: setattr(info_of(m, "w"), "offset", 10**9), "an item ends at"),
    (lambda m: setattr(info_of(m, "w"), "offset", -1), "is nowhere"),
    (lambda m: setattr(info_of(m, "w"), "length", 10), "no zip"),
    (lambda m: _sizes(m, [4, 3]), "by the metadata, and"),
    (lambda m: _sizes(m, [2, 4]), "by the metadata, and"),
    (lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32), "by the metadata, and"),
    (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([5, 2])), "is nowhere"),
    (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([3, 2])), "no rectangle"),
    (lambda m: setattr(m.state_dict_metadata["w"], "chunks", []), "no part of"),
    (lambda m: _second_chunk(m, 6), "is nowhere"),
    (lambda m: _second_chunk(m, 2), "overlap"),
    (lambda m: m.storage_data.clear(), "nothing says where"),
    (lambda m: setattr(m, "storage_data", None), "where a dict belongs"),
    (lambda m: m.state_dict_metadata.update(n=5), "no TensorStorageMetadata"),
    (lambda m: m.state_dict_metadata.update({5: 5}), "where a str belongs"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_half_and_hostile_folders_are_refused(tmp_path, number):
    change, said = DAMAGE[number]
    path = save_dcp(tmp_path / "x", {"w": torch.arange(8.0).reshape(4, 2)})
    change_metadata(path, change)
    with pytest.raises((CorruptError, UsageError), match=said):
        source_of(path)


def test_transformed_items_are_refused(tmp_path):
    path = save_dcp(tmp_path / "x", {"w": torch.ones(3)})
    change_metadata(path, lambda m: setattr(info_of(m, "w"), "transform_descriptors", ["zstd"]))
    with pytest.raises(UnsupportedValueError, match="transformed"):
        source_of(path)


def test_links_in_a_folder_of_dcp_are_refused(tmp_path):
    path = save_dcp(tmp_path / "x", {"w": torch.ones(3)})
    (path / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (path / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptError, match="is a link"):
        source_of(path)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_folder_of_dcp_that_is_cut_off_is_corrupt(tmp_path, name):
    path = save_dcp(tmp_path / "x", named_training())
    data = (path / name).read_bytes()
    for end in range(0, len(data), len(data) // 20):
        (path / name).write_bytes(data[:end])
        with pytest.raises(CorruptError):
            source_of(path)


def test_planner_data_that_are_not_whole_leave_names_as_they_are(tmp_path):
    path = save_dcp(tmp_path / "x", {"a": {"b": torch.ones(3)}, "c": 1})
    change_metadata(path, lambda m: m.planner_data.pop("c"))
    assert source_of(path).tree == {
        "c": 1,
        DCP_MARK: {"nested": False, "planner_data": {"a.b": ("a", "b")}},
    }
    change_metadata(path, lambda m: setattr(m, "planner_data", {"a.b": ("a", "b"), "c": ("a", "b")}))
    assert source_of(path).tree[DCP_MARK]["nested"] is False

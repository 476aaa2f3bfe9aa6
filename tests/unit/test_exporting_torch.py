"""What is exported for torch is read by torch, restricted and mapped; what DCP wrote and we export it loads again."""

import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import images_of
from tests.unit.import_fixtures import copy, source_of
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from holdfast.dcp import export as dcp_export
from holdfast.dcp.export import export_dcp
from holdfast.errors import UnsupportedValueError, UsageError
from holdfast.format import names
from holdfast.format.image import check, read_plain
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.store.attempts import claim
from holdfast.store.commit import commit
from holdfast.store.exporting.chosen import Chosen, choose
from holdfast.store.exporting.safetensors import export_safetensors
from holdfast.store.exporting.torch_save import export_torch
from holdfast.store.tensors import Images
from holdfast.tiers.posix import PosixTier

pytestmark = pytest.mark.torch

HALF_BYTE: torch.dtype = vars(torch)["uint4"]  # torch does not say that it has it
DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int64", "bool", "complex64", "complex128",
    "uint16", "uint32", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


@pytest.fixture
def tier(tmp_path):
    tier = PosixTier(f"{tmp_path}/run7", owner="1.test")
    claim(tier, run="run7", parent=None, coordinator="")
    yield tier
    tier.close()


def save(tier: PosixTier, step: int, *states: dict[str, Any]) -> Manifest:
    """A checkpoint as a Checkpointer lays it out; `states[rank]` is that of each rank."""
    sources = images_of(*states, step=step)
    records = []
    for source in sources:
        header = source.header
        upload = tier.upload(names.image_key(header.id), header.size_bytes)
        upload.write(0, memoryview(bytearray(source.buffer)))
        upload.publish()
        records.append(ImageRecord(header.id, header.size_bytes, check(source.buffer, header.layout)))
    plain = read_plain(sources[0].buffer, sources[0].header.layout)
    return commit(tier, tier, owner=1, headers=[s.header for s in sources], records=records, plain=plain)


def chosen_of(tier: PosixTier, manifest: Manifest, **options: Any) -> Chosen:
    images = Images(tier)
    record = next(r for r in manifest.images if (r.id.rank, r.id.image) == (0, 0))
    plain = manifest.plain if manifest.plain is not None else images.plain(record)
    return choose(images, manifest, plain, **options)


def training() -> tuple[dict[str, Any], torch.nn.Module]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model,
        "optim": optimizer,
        "epoch": 3,
        "history": [(1, 0.5)],
        "more": {"ema": torch.ones(2)},
    }, model


def odd_values() -> dict[str, Any]:
    return {
        "size": torch.Size([2]),
        "dtype": torch.float16,
        "device": torch.device("cuda:0"),
        "ordered": OrderedDict(b=1, a=2),
        "counter": Counter("abb"),
        "names": {"a"},
        "raw": b"\0\xff",
        "large": -(2**70),
        "text": "é",
        "list": [None, True, 1.5],
        "tensors": {dtype: torch.arange(3).to(getattr(torch, dtype)) for dtype in DTYPES},
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        view = (lambda t: t.reshape(-1).view(torch.uint8)) if a.numel() else (lambda t: t)
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(view(a), view(b)))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


# torch.save ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_it_restricted_and_mapped(tier, tmp_path, mapped):
    state, model = training()
    paths = export_torch(chosen_of(tier, save(tier, 1, state)), tmp_path / "x.pt")
    assert paths == [tmp_path / "x.pt"]
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found["model"][name], tensor), name
    assert (found["epoch"], found["history"]) == (3, [(1, 0.5)])
    assert torch.equal(found["more"]["ema"], torch.ones(2))
    assert found["optim"]["param_groups"][0]["lr"] == 0.1
    state_of_first = state["optim"].state_dict()["state"][0]
    assert torch.equal(found["optim"]["state"]["0.weight"]["exp_avg"], state_of_first["exp_avg"])
    again = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    again.load_state_dict(found["model"])


def test_values_and_dtypes_come_back(tier, tmp_path):
    state = odd_values()
    export_torch(chosen_of(tier, save(tier, 1, state)), tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    for key, value in state.items():
        assert same(value, found[key]), key


def test_storages_can_be_mapped(tier, tmp_path):
    export_torch(chosen_of(tier, save(tier, 1, odd_values())), tmp_path / "x.pt")
    source = source_of(tmp_path / "x.pt")
    assert all(s.start % 64 == 0 for s in source.stored)


def test_ties_stay_ties(tier, tmp_path):
    tied = torch.arange(6.0)
    manifest = save(tier, 1, {"a": tied, "b": tied, "c": {"d": tied}})
    chosen = chosen_of(tier, manifest)
    assert set(chosen.aliases.values()) == {"a"}
    assert chosen.size_bytes == 24
    export_torch(chosen, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr() == found["c"]["d"].data_ptr()
    export_torch(chosen_of(tier, manifest, without=("a",)), tmp_path / "y.pt")
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    assert found["b"].data_ptr() == found["c"]["d"].data_ptr()
    assert torch.equal(found["b"], tied)


def test_what_torch_would_not_read_is_named_and_nothing_is_written(tier, tmp_path):
    state = {
        "frozen": frozenset([1]),
        "generator": torch.Generator(),
        "packed": torch.zeros(3, dtype=torch.uint8).view(HALF_BYTE),
        "ok": torch.ones(2),
    }
    manifest = save(tier, 1, state)
    with pytest.raises(UnsupportedValueError, match="would not read frozen") as caught:
        export_torch(chosen_of(tier, manifest), tmp_path / "x.pt")
    assert "generator (torch.Generator)" in caught.value.message
    assert "packed (a tensor of uint4)" in caught.value.message
    assert not (tmp_path / "x.pt").exists()
    export_torch(chosen_of(tier, manifest, without=("frozen", "generator", "packed")), tmp_path / "x.pt")
    assert list(torch.load(tmp_path / "x.pt", weights_only=True)) == ["ok"]


@pytest.mark.parametrize("export", [export_torch, export_safetensors, export_dcp])
def test_tensors_stored_by_their_parts_are_refused(tier, tmp_path, export):
    state = {"sparse": torch.eye(3).to_sparse(), "w": torch.ones(2)}
    manifest = save(tier, 1, state)
    with pytest.raises(UnsupportedValueError, match="sparse: sparse, quantized"):
        export(chosen_of(tier, manifest), tmp_path / "x")
    export(chosen_of(tier, manifest, without=("sparse",)), tmp_path / "x")


def test_what_was_exported_is_imported_again(tier, tmp_path):
    state, model = training()
    manifest = save(tier, 1, state)
    export_torch(chosen_of(tier, manifest), tmp_path / "x.pt")
    again = copy(tier, source_of(tmp_path / "x.pt"), 2)
    export_torch(chosen_of(tier, again), tmp_path / "y.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("x.pt", "y.pt"))
    assert one["optim"]["param_groups"] == two["optim"]["param_groups"]
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in model.state_dict())


# torch DCP -----------------------------------------------------------------------------------------------------------
def load_dcp(path: Path) -> dict[str, Any]:
    """All of it, as `dcp_to_torch_save` reads it."""
    state: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(
            state, storage_reader=FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True
        )
    return state


def test_dcp_loads_it(tier, tmp_path):
    state, model = training()
    paths = export_dcp(chosen_of(tier, save(tier, 1, state)), tmp_path / "step_1")
    assert {p.name for p in paths} == {".metadata", "__0_0.distcp"}
    found = load_dcp(tmp_path / "step_1")
    for name, tensor in model.state_dict().items():
        assert torch.equal(found["model"][name], tensor), name
    assert (found["epoch"], found["history"]) == (3, [(1, 0.5)])
    assert found["optim"]["param_groups"][0]["lr"] == 0.1


def test_dcp_loads_every_dtype_and_value(tier, tmp_path):
    state = odd_values()
    state["pair"] = (torch.ones(2), {"x": torch.zeros(1)})
    export_dcp(chosen_of(tier, save(tier, 1, state)), tmp_path / "x")
    found = load_dcp(tmp_path / "x")
    for key, value in state.items():
        if key == "tensors":
            assert all(same(value[dtype], found["tensors"][dtype]) for dtype in DTYPES)
        elif key == "pair":
            assert same(value[0], found["pair"][0])
            assert same(value[1], found["pair"][1])
        elif key not in ("ordered", "counter"):  # dicts are dicts there
            assert same(value, found[key]), key
    assert found["ordered"] == {"b": 1, "a": 2}


def test_large_tensors_are_cut_and_plans_are_many(tier, tmp_path):
    whole = torch.arange(1000.0).reshape(50, 20)
    manifest = save(tier, 1, {"w": whole, "b": torch.ones(7)})
    export_dcp(chosen_of(tier, manifest), tmp_path / "x", piece_bytes=1000, plan_bytes=1500)
    files = {p.name for p in (tmp_path / "x").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} < files
    found = load_dcp(tmp_path / "x")
    assert torch.equal(found["w"], whole)
    back = source_of(tmp_path / "x")
    assert len([s for s in back.stored if s.piece.fqn == "w"]) > 3
    again = copy(tier, back, 2)
    export_dcp(chosen_of(tier, again), tmp_path / "y")
    assert torch.equal(load_dcp(tmp_path / "y")["w"], whole)


def test_what_torch_save_does_not_take_is_named(tier, tmp_path):
    state = {"generator": torch.Generator(), "packed": torch.zeros(3, dtype=torch.uint8).view(HALF_BYTE)}
    with pytest.raises(UnsupportedValueError) as caught:
        export_dcp(chosen_of(tier, save(tier, 1, state)), tmp_path / "x")
    assert "generator (torch.Generator)" in caught.value.message
    assert "packed (a tensor of uint4)" in caught.value.message
    assert not (tmp_path / "x").exists()


def test_a_failing_export_leaves_no_folder(tier, tmp_path, monkeypatch):
    manifest = save(tier, 1, {"w": torch.ones(3)})

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(dcp_export._Planner, "_read", fail)
    with pytest.raises(ZeroDivisionError):
        export_dcp(chosen_of(tier, manifest), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        export_dcp(chosen_of(tier, manifest), tmp_path / "x")


# safetensors ---------------------------------------------------------------------------------------------------------
def test_the_library_reads_a_model_with_ties(tier, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    embed = torch.nn.Embedding(5, 4)
    head = torch.nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    model = torch.nn.ModuleDict({"embed": embed, "head": head}).to(torch.bfloat16)
    manifest = save(tier, 1, {"model": model, "epoch": 3})
    chosen = chosen_of(tier, manifest, only="model")
    path = export_safetensors(chosen, tmp_path / "x.safetensors")[0]
    assert {k: v.tolist() for k, v in safetensors.load_file(path).items()} == {"embed.weight": embed.weight.tolist()}
    fresh = torch.nn.Embedding(5, 4)
    other = torch.nn.Linear(4, 5, bias=False)
    other.weight = fresh.weight
    again = torch.nn.ModuleDict({"embed": fresh, "head": other}).to(torch.bfloat16)
    safetensors.load_model(again, path)
    assert torch.equal(other.weight, embed.weight)

"""DTensors as one rank of a job sees them: what is captured, foretold, refused. The job is torch's fake one."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")

import torch.distributed as dist  # noqa: E402
from tests.images import fill, read  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from holdfast.errors import StructureError, UnsupportedValueError  # noqa: E402
from holdfast.format.image import lay_out, seal  # noqa: E402
from holdfast.trainer import dtensor  # noqa: E402
from holdfast.trainer.capture import Capture  # noqa: E402
from holdfast.trainer.shares import unsplit  # noqa: E402
from holdfast.trainer.stage import Stager  # noqa: E402
from holdfast.trainer.structure import Box  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two by two ranks, of which this is the last: coordinate (1, 1)."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    dist.destroy_process_group()


def made(mesh: DeviceMesh, *placements: Any, shape: tuple[int, ...] = (5, 4)) -> DTensor:
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return distribute_tensor(whole, mesh, list(placements), src_data_rank=None)


def test_the_local_tensor_is_captured_and_where_it_lies(mesh):
    captured = Capture().refresh({"w": made(mesh, Shard(0), Shard(1)), "r": made(mesh, Replicate(), Replicate())})
    assert captured.structure.shared["w"].shape == (5, 4)
    assert captured.structure.boxes_of("w") == (Box((3, 2), (2, 2), (0, 0)),)
    assert captured.structure.shared["r"].cut is None
    assert captured.tensors["w"].tolist() == [[14, 15], [18, 19]]
    assert type(captured.tensors["r"]) is torch.Tensor


def test_an_unchanged_state_is_the_same_structure_and_new_memory_is_seen(mesh):
    state = {"w": made(mesh, Shard(0), Shard(1)), "plain": torch.zeros(3)}
    capture = Capture()
    first = capture.refresh(state)
    assert capture.refresh(state).tensors is first.tensors
    state["w"]._local_tensor = torch.full((2, 2), 7.0)
    second = capture.refresh(state)
    assert second.structure is first.structure
    assert second.tensors["w"].tolist() == [[7, 7], [7, 7]]
    state["w"] = made(mesh, Shard(0), Shard(1))
    assert capture.refresh(state).structure is first.structure
    state["w"] = made(mesh, Shard(1), Replicate())
    assert capture.refresh(state).structure.digest != first.structure.digest


def test_ranks_of_a_mesh_differ_in_their_boxes_only(mesh):
    structure = Capture().refresh({"w": made(mesh, Shard(0), Shard(1)), "v": made(mesh, Shard(0), Shard(1))}).structure
    assert len(structure.cuts) == 1, "tensors that are cut alike have it in common"
    other = structure.cut_as(((Box((0, 0), (3, 2), (0, 0)),),))
    assert (other.outline, other.shared) == (structure.outline, structure.shared)
    assert other.digest != structure.digest


def test_optimizer_state_is_foretold_as_the_first_step_makes_it(mesh):
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(made(mesh, Shard(0), Replicate()))})
    model["empty"] = torch.nn.Parameter(made(mesh, Shard(0), Shard(0), shape=(1, 2)))
    cases: list[tuple[Any, dict[str, Any]]] = [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.NAdam, {}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adagrad, {}),
    ]
    for kind, options in cases:
        state = {"model": model, "optim": kind(model.parameters(), **options)}
        foretold = Capture().forecast(state)
        assert not any(entries for entries in state["optim"].state.values() if "exp_avg" in entries)
        for parameter in model.values():
            parameter.grad = torch.ones_like(parameter)
        state["optim"].step()
        assert foretold == Capture().refresh(state).structure, kind


def test_gathered_parameters_are_put_back_sharded_or_refused(mesh):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    for part in model:
        fully_shard(part, mesh=mesh, reshard_after_forward=False)
    capture = Capture()
    before = capture.refresh({"model": model})
    model(torch.ones(1, 4))
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    after = capture.refresh({"model": model})
    assert after.structure is before.structure
    assert {name: t.data_ptr() for name, t in after.tensors.items()} == {
        name: t.data_ptr() for name, t in before.tensors.items()
    }
    assert all(isinstance(p, DTensor) for p in model.parameters())

    model(torch.ones(1, 4))
    for part in model:
        part._state_dict_pre_hooks.clear()  # as if another torch had put its hook elsewhere
    with pytest.raises(UnsupportedValueError, match=r"'model\.0' are gathered") as caught:
        capture.refresh({"model": model})
    assert "reshard()" in caught.value.hint


def test_a_tied_parameter_stands_once(mesh):
    one = torch.nn.Parameter(made(mesh, Shard(0), Replicate()))
    structure = Capture().refresh({"m": torch.nn.ParameterDict({"a": one, "b": one})}).structure
    assert structure.aliases == {"m.b": "m.a"}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda mesh: DTensor.from_local(torch.ones(2), mesh, [Replicate(), Partial()]), ["Partial", "redistribute"]),
        (
            lambda mesh: DTensor.from_local(
                torch.ones(3), mesh, [Shard(0), Shard(0)], shape=torch.Size([9]), stride=(1,)
            ),
            ["[3]"],
        ),
    ],
)
def test_what_has_no_place_in_a_global_tensor_is_refused_with_its_name(mesh, build, words):
    with pytest.raises(UnsupportedValueError) as caught:
        Capture().refresh({"net": {"w": build(mesh)}})
    assert "'net.w'" in caught.value.message
    assert [word for word in words if word not in caught.value.message + caught.value.hint] == []


def test_a_rank_outside_of_the_mesh_holds_nothing(mesh):
    apart = distribute_tensor(torch.zeros(4), DeviceMesh("cpu", [0, 1]), [Shard(0)], src_data_rank=None)
    assert Capture().refresh({"w": apart}).structure.boxes_of("w") == ()


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(1), Shard(1)), (Replicate(), Shard(0))])
@pytest.mark.parametrize("saved", [(Shard(1), Shard(0)), (Replicate(), Replicate())])
def test_a_shard_takes_what_it_needs_of_a_whole_tensor(mesh, placements, saved):
    """From an image that has the tensor complete, in one entry that rows and columns are taken from."""
    whole = made(mesh, Replicate(), Replicate(), shape=(6, 8))
    live = torch.zeros_like(made(mesh, *placements, shape=(6, 8)))
    fill({"w": live}, [image_of({"w": whole})])
    assert torch.equal(dtensor.local_of(live), made(mesh, *placements, shape=(6, 8)).to_local())


class App:
    """An object that gives and takes its state itself, as users of torch DCP write it."""

    def __init__(self, weight: DTensor) -> None:
        self.weight, self.seen = weight, 0

    def state_dict(self) -> dict[str, Any]:
        return {"deep": [{"weight": self.weight.clone()}], "seen": self.seen, "plain": torch.ones(2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        given = state["deep"][0]["weight"]
        assert given.placements == self.weight.placements
        self.weight.copy_(given)
        self.seen = state["seen"]
        assert type(state["plain"]) is torch.Tensor


def test_an_object_with_a_state_of_its_own_gets_its_shards_back_as_it_has_them(mesh):
    saved = App(made(mesh, Replicate(), Replicate(), shape=(6, 8)))
    saved.seen = 7
    live = App(torch.zeros_like(made(mesh, Shard(0), Shard(1), shape=(6, 8))))
    fill({"app": live}, [image_of({"app": saved})])
    assert live.seen == 7
    assert torch.equal(live.weight.to_local(), made(mesh, Shard(0), Shard(1), shape=(6, 8)).to_local())

    other = App(torch.zeros_like(made(mesh, Shard(0), Shard(1), shape=(6, 9))))
    with pytest.raises(StructureError, match=r"app\.deep\.0\.weight"):
        fill({"app": other}, [image_of({"app": saved})])


def image_of(state: dict[str, Any]) -> Any:
    captured = Capture().refresh(state)
    payload = captured.payload(0)
    pieces, aliases = unsplit(captured.structure, 0)
    template = lay_out(pieces, aliases, run="r", rank=0, world_size=1, plain_bytes=len(payload))
    buffer = memoryview(bytearray(template.layout.size_bytes))
    Stager(template).stage(buffer, captured, payload, attempt=1, step=1)
    seal(buffer, template.layout)
    return read(bytes(buffer))

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

import holdfast
from holdfast.errors import UnsupportedValueError, UsageError
from holdfast.format.plain import TensorRef
from holdfast.trainer import values
from holdfast.trainer.capture import Capture

pytestmark = pytest.mark.torch


def capture(state: Any):
    return Capture().refresh(state)


def small_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    return model


def stepped(model, kind=torch.optim.AdamW, **options):
    optimizer = kind(model.parameters(), **options)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_modules_give_parameters_and_persistent_buffers_under_their_path():
    captured = capture({"model": small_model()})
    specs = captured.structure.shared
    assert list(specs) == [f"model.{n}" for n in small_model().state_dict()]
    assert specs["model.0.weight"].kind == "parameter"
    assert specs["model.0.weight"].shape == (4, 3)
    assert specs["model.1.running_mean"].kind == "buffer"
    assert specs["model.1.num_batches_tracked"].dtype == "int64"
    assert [s.splittable for s in specs.values()] == [True] * 4 + [False] * 3
    assert captured.tree == {}


def test_optimizer_state_is_named_by_its_parameters():
    model = small_model()
    captured = capture({"optimizer": stepped(model), "model": model})
    assert "optimizer.state.0.weight.exp_avg" in captured.tensors
    assert captured.structure.shared["optimizer.state.1.bias.step"].shape == ()
    assert captured.structure.shared["optimizer.state.1.bias.step"].kind == "optimizer"
    (group,) = captured.tree["optimizer"]["param_groups"]
    assert group["params"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert group["lr"] == 0.001
    assert "state" not in captured.tree["optimizer"]


def test_with_parameters_of_two_modules_names_are_full():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], momentum=0.9)
    groups = capture({"nets": {"a": one, "b": two}, "optimizer": optimizer}).tree["optimizer"]["param_groups"]
    assert groups[0]["params"] == ["nets.a.weight", "nets.a.bias", "nets.b.weight", "nets.b.bias"]


def test_a_bare_parameter_in_the_state_names_its_optimizer_state():
    weight = torch.nn.Parameter(torch.zeros(2))
    captured = capture({"w": weight, "optimizer": torch.optim.SGD([weight])})
    assert captured.tree["optimizer"]["param_groups"][0]["params"] == ["w"]
    assert captured.structure.shared["w"].kind == "parameter"


def test_a_parameter_without_module_is_refused_with_its_place():
    model = small_model()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": [torch.nn.Parameter(torch.zeros(5))]}])
    with pytest.raises(UnsupportedValueError, match=r"parameter 0 of group 1 of the optimizer 'optimizer'") as e:
        capture({"model": model, "optimizer": optimizer})
    assert "put the module" in e.value.hint


def test_optimizer_state_of_a_stranger_is_refused():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state["global"] = {"step": torch.zeros(())}  # type: ignore[index]
    with pytest.raises(UnsupportedValueError, match="keeps state for str 'global'"):
        capture({"model": model, "optimizer": optimizer})


def test_odd_optimizer_entries_stand_in_the_tree():
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight] = {"n": 3, "old": [torch.ones(2)], "a.b": torch.zeros(1), 7: None, "m": torch.ones(1)}
    captured = capture({"model": model, "opt": optimizer})
    assert captured.tree["opt"]["state"] == {
        "weight": {
            "n": 3,
            "old": [TensorRef("opt.state.weight.old.0")],
            "a.b": TensorRef("opt.state.weight.a.b"),
            7: None,
        }
    }
    assert {n for n in captured.tensors if n.startswith("opt.")} == {
        "opt.state.weight.m",
        "opt.state.weight.old.0",
        "opt.state.weight.a.b",
    }
    assert captured.structure.shared["opt.state.weight.old.0"].kind == "optimizer"


def test_tied_parameters_are_aliases_of_the_first():
    model = torch.nn.ModuleDict({"emb": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].register_parameter("weight", model["emb"].weight)  # type: ignore[arg-type]
    captured = capture({"model": model, "copy": model["emb"].get_parameter("weight").detach()})
    assert captured.structure.aliases == {"model.head.weight": "model.emb.weight", "copy": "model.emb.weight"}
    assert list(captured.tensors) == ["model.emb.weight"]


def test_views_that_differ_in_any_way_are_not_tied():
    base = torch.arange(6.0)
    state = {"a": base, "b": base[:3], "c": base.view(2, 3), "d": base[1:], "e": base.view(torch.int32), "f": base[:0]}
    captured = capture({**state, "g": base[:0]})
    assert captured.structure.aliases == {}
    assert len(captured.tensors) == 7


def test_conjugate_of_a_tensor_is_not_tied_to_it():
    z = torch.ones(2, dtype=torch.complex64) * 1j
    assert capture({"z": z, "w": z.conj()}).structure.aliases == {}


def test_wrappers_leave_no_trace_in_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    inner = torch.nn.Sequential(checkpoint_wrapper(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2))
    compiled = torch.compile(inner, backend="eager")  # wraps; compiles at the first call only
    captured = capture({"model": compiled, "optimizer": stepped(compiled, torch.optim.SGD, momentum=0.9)})
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [n for n in captured.tensors if n.startswith("model.")] == [f"model.{n}" for n in names]
    assert captured.tree["optimizer"]["param_groups"][0]["params"] == names


def test_a_users_own_attribute_named_module_stays():
    model = torch.nn.Module()
    model.module = torch.nn.Linear(1, 1, bias=False)
    assert list(capture({"m": model}).tensors) == ["m.module.weight"]


def test_data_parallel_prefixes_are_stripped():
    inner = torch.nn.Linear(2, 2)
    assert list(capture({"m": torch.nn.DataParallel(inner)}).tensors) == ["m.weight", "m.bias"]


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))
        self.calls = 3

    def get_extra_state(self):
        return {"calls": self.calls, "seen": torch.arange(2)}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_extra_state_is_kept_under_the_modules_path():
    captured = capture({"m": torch.nn.Sequential(Counting())})
    assert captured.tree == {
        "m": {"m.0._extra_state": {"calls": 3, "seen": TensorRef("m.0._extra_state.seen")}},
    }
    assert list(captured.tensors) == ["m.0.w", "m.0._extra_state.seen"]


def without_bias(module, content, prefix, metadata):
    del content[prefix + "bias"]


def test_state_dict_hooks_are_respected():
    model = torch.nn.Linear(2, 2)
    model.register_state_dict_post_hook(without_bias)
    assert list(capture({"m": model}).tensors) == ["m.weight"]


def test_containers_keep_their_kind_and_elide_items():
    state = {
        "d": {1: torch.ones(1), "x": OrderedDict(a=1), "c": Counter("aab"), "dd": defaultdict(int, q=2)},
        "l": [torch.ones(1), (torch.ones(1), 2), torch.nn.Linear(1, 1, bias=False), None],
        "n": float("nan"),
    }
    tree = capture(state).tree
    assert tree["d"] == {1: TensorRef("d.1"), "x": OrderedDict(a=1), "c": Counter("aab"), "dd": {"q": 2}}
    assert type(tree["d"]["c"]) is Counter
    assert type(tree["d"]["dd"]) is defaultdict
    assert tree["l"] == [TensorRef("l.0"), (TensorRef("l.1.0"), 2), None, None]


def test_stateful_objects_stand_under_their_own_path():
    class Loader:
        def state_dict(self):
            return {"pos": 4, "rng": torch.zeros(2)}

        def load_state_dict(self, state): ...

    captured = capture({"data": {"train": Loader(), "epoch": 2}})
    assert captured.tree == {"data.train": {"pos": 4, "rng": TensorRef("data.train.rng")}, "data": {"epoch": 2}}


def test_an_object_that_cannot_give_its_state_is_named():
    class Broken:
        def state_dict(self):
            raise RuntimeError("workers are gone")

        def load_state_dict(self, state): ...

    with pytest.raises(UnsupportedValueError, match=r"'data\.train' cannot give .*: RuntimeError: workers are gone"):
        capture({"data": {"train": Broken()}})


def test_per_rank_values_stand_apart():
    captured = capture({"rng": holdfast.per_rank(torch.zeros(4)), "x": {"y": holdfast.per_rank({"n": 1})}, "e": 1})
    assert list(captured.structure.own) == list(captured.own) == ["rng"]
    assert captured.tensors == {}
    assert captured.own_tree == {"rng": TensorRef("rng"), "x.y": {"n": 1}}
    assert set(values.decode(captured.payload(0))) == {"rng", "x", "x.y", "e", "__holdfast__.per_rank"}
    assert set(values.decode(captured.payload(1))) == {"rng", "x.y", "__holdfast__.per_rank"}


def test_per_rank_marks_are_checked():
    with pytest.raises(UsageError):
        holdfast.per_rank(holdfast.per_rank(1))
    with pytest.raises(UsageError):
        holdfast.per_rank(1, on_resize="maybe")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedValueError, match=r"'x\.a' is marked per_rank inside"):
        capture({"x": holdfast.per_rank({"a": holdfast.per_rank(1)})})


def cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


class Wrapped(torch.Tensor):
    def __tensor_flatten__(self): ...


REFUSED = [
    (lambda: {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"the name 'a\.b'"),
    (lambda: {"a": {1: torch.ones(1), "1": torch.ones(1)}}, r"the name 'a\.1'"),
    (lambda: {"a": {"b": {1, 2}, "c": {1: object()}}}, r"object"),
    (lambda: {"a": cycle()}, r"'a\.0\.again' contains itself"),
    (lambda: {"a": [torch.nested.nested_tensor([torch.ones(2)])]}, r"the tensor 'a\.0' is nested"),
    (lambda: {"a": torch.ones(1, device="meta")}, r"'a' is on the meta device"),
    (lambda: {"a": torch.nn.LazyLinear(3)}, r"'a\.weight' has no shape yet"),
    (lambda: {"a": torch.ones(2).as_subclass(Wrapped)}, r"'a', a .*Wrapped, cannot be taken apart"),
    (lambda: {"a": torch.masked.masked_tensor(torch.ones(2), torch.ones(2).bool())}, r"'a' is a .*MaskedTensor"),
    (lambda: {"__metadata__": torch.ones(1)}, r"cannot be named"),
    (lambda: {"__holdfast__.x": torch.ones(1)}, r"cannot be named"),
    (lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint4x2)}, r"'a' is quantized as"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=[m for _, m in REFUSED])
@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.filterwarnings("ignore:The PyTorch API of [Mn]")
def test_what_cannot_be_saved_is_refused_with_its_path(state, message):
    with pytest.raises(UnsupportedValueError, match=message):
        capture(state()).payload(0)


def test_the_state_is_a_dict_with_names():
    with pytest.raises(UsageError):
        capture([1])
    with pytest.raises(UsageError):
        capture({1: 2})


# Again and again ----------------------------------------------------------------------------------------------------
def test_an_unchanged_state_gives_the_same_objects():
    model = small_model()
    state = {"model": model, "optimizer": stepped(model), "step": 1}
    again = Capture()
    first = again.refresh(state)
    state["step"] = 2
    state["optimizer"].param_groups[0]["lr"] = 0.5
    second = again.refresh(state)
    assert second.structure is first.structure
    assert second.tensors is first.tensors
    assert second.tree["step"] == 2
    assert second.tree["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_a_tensor_that_comes_new_is_looked_at():
    again = Capture()
    again.refresh({"x": torch.zeros(2, 2), "n": 1})
    freed = torch.zeros(2, 2)
    freed.untyped_storage().resize_(0)
    for bad in (torch.zeros(2, 2, device="meta"), freed):
        with pytest.raises(UnsupportedValueError, match="'x'"):
            again.refresh({"x": bad, "n": 1})


def test_a_tied_tensor_may_be_replaced_with_its_tie():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    again = Capture()
    for _ in range(3):
        shared = torch.nn.Parameter(torch.zeros(2, 2))
        for part in model.values():
            part.register_parameter("weight", shared)
        captured = again.refresh({"m": model, "none": torch.empty(0), "nothing": torch.empty(0)})
        assert captured.structure.aliases == {"m.b.weight": "m.a.weight"}
        assert captured.tensors["m.a.weight"] is shared
        assert "m.b.weight" not in captured.tensors


def test_a_tie_lasts_as_long_as_both_see_the_memory_the_same_way():
    a = torch.randn(3, 3)
    state = {"a": a, "b": a.view(3, 3)}
    again = Capture()
    for tied in (True, False, True):
        captured = again.refresh(state)
        assert captured.structure.aliases == ({"b": "a"} if tied else {})
        assert list(captured.tensors) == (["a"] if tied else ["a", "b"])
        state["b"].t_()


def test_a_new_tensor_of_the_same_form_keeps_the_structure():
    again = Capture()
    first = again.refresh({"rng": torch.zeros(3), "x": torch.ones(1)})
    second = again.refresh({"rng": torch.ones(3), "x": torch.ones(1)})
    assert second.structure is first.structure
    assert second.tensors["rng"][0] == 1


def swap_parameter(m):
    m[0].weight = torch.nn.Parameter(torch.ones(4, 3))


def swap_data(m):
    m[0].weight.data = torch.ones(4, 3)


CHANGES = {
    "parameter": (swap_parameter, True),
    "data": (swap_data, True),
    "dtype in place": (lambda m: m.half(), False),
    "reshaped in place": (lambda m: setattr(m[0].weight, "data", m[0].weight.data.view(3, 4)), False),
    "new buffer": (lambda m: m.register_buffer("extra", torch.ones(1)), False),
    "new child": (lambda m: m.append(torch.nn.Linear(1, 1)), False),
    "replaced child": (lambda m: m.__setitem__(0, torch.nn.Linear(3, 4)), True),
    "removed bias": (lambda m: m[0].register_parameter("bias", None), False),
    "tied": (lambda m: setattr(m[1].bias, "data", m[1].weight.data), False),
    "hook": (
        lambda m: m[0].register_state_dict_post_hook(without_bias),
        False,
    ),
    "persistence": (lambda m: m.register_buffer("scratch", m.scratch), False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(name):
    change, same_structure = CHANGES[name]
    model = small_model()
    again = Capture()
    first = again.refresh({"model": model})
    change(model)
    second = again.refresh({"model": model})
    fresh = Capture().refresh({"model": model})
    assert second.tensors is not first.tensors
    assert (second.structure is first.structure) == same_structure
    assert second.structure == fresh.structure
    assert (second.structure.digest == first.structure.digest) == same_structure
    assert all(second.tensors[n] is fresh.tensors[n] for n in fresh.tensors)


def test_optimizer_names_follow_a_replaced_module():
    one, two = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(one.parameters())
    again = Capture()
    again.refresh({"m": one, "optimizer": optimizer})
    with pytest.raises(UnsupportedValueError, match="so its optimizer state has no name"):
        again.refresh({"m": two, "optimizer": optimizer})


def test_state_that_torch_replaced_is_seen():
    model = small_model()
    optimizer = stepped(model)
    state = {"m": model, "optimizer": optimizer}
    again = Capture()
    first = again.refresh(state)
    optimizer.load_state_dict(optimizer.state_dict())
    second = again.refresh(state)
    name = "optimizer.state.0.weight.exp_avg"
    assert second.tensors[name] is optimizer.state[model[0].weight]["exp_avg"]
    assert second.structure is first.structure
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:-1]
    optimizer.state.pop(model[1].bias)
    assert len(again.refresh(state).tensors) == len(first.tensors) - 3


def test_optimizer_state_that_appears_is_seen():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    again = Capture()
    before = again.refresh({"m": model, "optimizer": optimizer})
    stepped(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = again.refresh({"m": model, "optimizer": optimizer})
    assert len(after.tensors) - len(before.tensors) == 12

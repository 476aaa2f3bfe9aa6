import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

import holdfast
from holdfast.errors import CorruptError, LoadError, StructureError, UnsupportedValueError
from holdfast.model.identity import ImageId
from holdfast.trainer.apply import ranks_needed
from holdfast.trainer.saved import Source

pytestmark = pytest.mark.torch


def differences(state, sources, **options):
    with pytest.raises(StructureError) as e:
        fill(state, sources, **options)
    return e.value.message


# Containers ---------------------------------------------------------------------------------------------------------
def test_plain_values_are_replaced_in_their_containers():
    saved = {
        "epoch": 5,
        "hist": [1, 2, {"x": (1, 2)}],
        "cfg": {"a": 1, 7: "seven", "gone": None},
        "od": OrderedDict(b=1, a=2),
        "seen": Counter("aab"),
        "dd": defaultdict(list, k=[1]),
        "nothing": {"a": 1},
        "kind": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    live: dict[str, Any] = {
        "epoch": 0,
        "hist": [9],
        "cfg": {"a": 0, "extra": 1},
        "od": OrderedDict(),
        "seen": Counter(c=4),
        "dd": defaultdict(int),
        "nothing": None,
        "kind": None,
        "size": None,
        "device": None,
    }
    kept = {key: live[key] for key in ("hist", "cfg", "od", "seen", "dd")}
    fill(live, images_of(saved))
    assert live == saved
    assert all(live[key] is container for key, container in kept.items()), "containers stay the same objects"
    assert list(live["od"]) == ["b", "a"]
    assert type(live["size"]) is torch.Size


def test_tensors_in_containers_are_filled_or_made():
    saved = {
        "x": {"a": torch.ones(2), "b": [torch.full((2,), 2.0), (torch.full((1,), 3.0), 4)], "new": {"c": torch.ones(1)}}
    }
    a, b = torch.zeros(2), torch.zeros(2)
    live: dict[str, Any] = {"x": {"a": a, "b": [b]}}
    fill(live, images_of(saved))
    assert live["x"]["a"] is a
    assert live["x"]["b"][0] is b
    assert a.tolist() == [1.0, 1.0]
    assert b.tolist() == [2.0, 2.0]
    assert live["x"]["b"][1][0].tolist() == [3.0]
    assert live["x"]["b"][1][1] == 4
    assert live["x"]["new"]["c"].tolist() == [1.0]


def test_tuples_are_rebuilt_around_their_tensors():
    a = torch.zeros(2)
    live: dict[str, Any] = {"t": (a, 1, (2,))}
    fill(live, images_of({"t": (torch.ones(2), 5, (6, 7))}))
    assert live["t"][0] is a
    assert live["t"][1:] == (5, (6, 7))
    assert a.tolist() == [1.0, 1.0]


def test_items_inside_containers_find_their_own_state():
    def nets(value):
        net = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            net.weight.fill_(value)
        return {"nets": [net, {"n": value}], "loader": {"train": Loader(value)}}

    live = nets(0.0)
    net, loader = live["nets"][0], live["loader"]["train"]
    fill(live, images_of(nets(4.0)))
    assert live["nets"][0] is net
    assert live["loader"]["train"] is loader
    assert net.weight.item() == 4.0
    assert live["nets"][1] == {"n": 4.0}
    assert loader.position == 4.0
    assert loader.table.tolist() == [4.0]


def test_what_a_users_code_raises_is_told_with_its_path():
    class Failing(Loader):
        def load_state_dict(self, state):
            raise KeyError("position")

    images = images_of({"d": {"train": Loader(1.0)}})
    with pytest.raises(LoadError, match=r"load_state_dict of 'd\.train' raised KeyError: 'position'"):
        fill({"d": {"train": Failing(0.0)}}, images)


def test_what_torch_raises_is_a_load_error(monkeypatch):
    images = images_of({"t": torch.ones(2)})

    def fail(*_, **__):
        raise RuntimeError("device lost")

    monkeypatch.setattr(torch, "_foreach_copy_", fail)
    with pytest.raises(LoadError, match="cannot be filled: device lost"):
        fill({"t": torch.zeros(4)[::2]}, images)


def test_a_load_does_not_ask_for_what_it_replaces():
    class Slow(Loader):
        def state_dict(self):
            raise AssertionError("not asked for")

    live = Slow(0.0)
    fill({"d": live}, images_of({"d": Loader(3.0)}))
    assert live.position == 3.0


class Loader:
    """Anything that keeps its state itself."""

    def __init__(self, value):
        self.position = value
        self.table = torch.full((1,), value)

    def state_dict(self):
        return {"position": self.position, "table": self.table}

    def load_state_dict(self, state):
        self.position, self.table = state["position"], state["table"]


def test_generators_go_on_where_they_were():
    live = {"g": torch.Generator(), "made": None}
    generator = live["g"]
    saved = {"g": torch.Generator().manual_seed(5), "made": torch.Generator().manual_seed(6)}
    images = images_of(saved)
    fill(live, images)
    assert live["g"] is generator
    for key, one in saved.items():
        assert torch.equal(torch.rand(3, generator=live[key]), torch.rand(3, generator=one))


def test_a_generator_of_a_device_that_is_not_here_is_refused_before_anything_is_copied():
    [image] = images_of({"x": torch.ones(1), "g": torch.Generator()})
    elsewhere = Source(image.header, image.buffer, image.read_plain().replace(b'"cpu"', b'"meta"'))
    live: dict[str, Any] = {"x": torch.zeros(1), "g": None}
    with pytest.raises(LoadError, match="no generator of 'meta' can be made here") as caught:
        fill(live, [elsewhere])
    assert caught.value.hint
    assert live["x"].tolist() == [0.0]


def test_tied_tensors_load_tied_or_not():
    weight = torch.arange(4.0)
    images = images_of({"a": weight, "b": weight})
    apart = fill({"a": torch.zeros(4), "b": torch.zeros(4)}, images)
    assert apart["a"].tolist() == apart["b"].tolist() == [0, 1, 2, 3]
    shared = torch.zeros(4)
    assert fill({"a": shared, "b": shared}, images)["a"].tolist() == [0, 1, 2, 3]
    two = images_of({"a": weight, "b": weight + 1})
    assert "b (shares its memory with a here" in differences({"a": shared, "b": shared}, two)


# Differences --------------------------------------------------------------------------------------------------------
def test_every_difference_is_in_one_error_and_nothing_is_touched():
    images = images_of({"model": torch.nn.Linear(2, 3), "x": {"t": torch.ones(2)}, "old": torch.ones(1), "n": 1})
    model = torch.nn.Linear(2, 4)
    model.register_buffer("late", torch.zeros(1))
    before = model.weight.clone()
    state = {"model": model, "x": {"t": torch.zeros(2, dtype=torch.float64)}, "n": 0, "fresh": 1}
    message = differences(state, images)
    assert "model.weight (float32 [4, 2] here, float32 [3, 2] in the checkpoint)" in message
    assert "x.t (float64 [2] here, float32 [2] in the checkpoint)" in message
    assert "2 are not in the checkpoint: model.late, fresh" in message
    assert "1 is only in the checkpoint: old" in message
    assert torch.equal(model.weight, before)
    assert state["n"] == 0


def test_not_strict_takes_what_both_have():
    images = images_of({"model": torch.nn.Linear(2, 3), "old": torch.ones(1), "n": 1, "gone": {"a": 1}})
    model = torch.nn.Linear(2, 3)
    model.register_buffer("late", torch.full((1,), 7.0))
    state = fill({"model": model, "n": 0, "fresh": 3}, images, strict=False)
    assert state["n"] == 1
    assert state["fresh"] == 3
    assert model.get_buffer("late").item() == 7.0


def test_a_value_cannot_stand_for_a_tensor():
    assert "t (a tensor here, int in the checkpoint)" in differences({"t": torch.ones(1)}, images_of({"t": 1}))
    assert "d (a dict of tensors or items here, int in the checkpoint)" in differences(
        {"d": {"t": torch.ones(1)}}, images_of({"d": 1})
    )
    assert fill({"t": 1}, images_of({"t": torch.ones(1)}))["t"].tolist() == [1.0]


def test_only_some_keys_are_filled():
    images = images_of({"model": torch.nn.Linear(1, 1), "optimizer": {"a": torch.ones(1)}, "epoch": 4})
    state = {"model": torch.nn.Linear(1, 1), "epoch": 0}
    fill(state, images, only=("model",))
    assert state["epoch"] == 0
    message = differences({"model": torch.nn.Linear(1, 1, bias=False)}, images, only=("model",))
    assert message.endswith("only in the checkpoint: model.bias")
    assert "has no 'nodel'" in differences(state, images, only=("nodel",))


def test_a_state_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = torch.nn.Linear(1, 1)
    with pytest.raises(UnsupportedValueError, match="meta"):
        fill({"model": model}, images_of({"model": torch.nn.Linear(1, 1)}))


# Optimizers ---------------------------------------------------------------------------------------------------------
def trained(order=(0, 1), **options):
    torch.manual_seed(1)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(2)])
    groups = [{"params": list(model[i].parameters()), "lr": 0.1 * (i + 1)} for i in order]
    optimizer = torch.optim.AdamW(groups, **options)
    return {"model": model, "optimizer": optimizer}


def step(state):
    for name, parameter in state["model"].named_parameters():
        parameter.grad = torch.full_like(parameter, float(len(name)) + parameter.shape[0])
    with torch.no_grad():
        for i, parameter in enumerate(state["model"].parameters()):
            parameter.grad += i
    state["optimizer"].step()
    return state


def by_name(state):
    names = {p: n for n, p in state["model"].named_parameters()}
    return {names[p]: {k: v.clone() for k, v in e.items()} for p, e in state["optimizer"].state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].keys() == b[n].keys() and all(torch.equal(a[n][k], b[n][k]) for k in a[n]) for n in a
    )


def test_reordered_groups_get_the_state_of_their_parameters():
    saved = step(trained())
    live = trained(order=(1, 0))
    fill(live, images_of(saved))
    assert same(by_name(live), by_name(saved))
    assert [g["lr"] for g in live["optimizer"].param_groups] == [0.2, 0.1]


def test_allocated_state_stands_where_a_step_would_put_it():
    live = fill(trained(), images_of(step(trained())))
    parameter = live["model"][0].weight
    entries = live["optimizer"].state[parameter]
    assert list(entries) == ["step", "exp_avg", "exp_avg_sq"]
    assert entries["exp_avg"].stride() == parameter.stride()
    assert not entries["exp_avg"].requires_grad
    step(live)


def test_state_that_the_checkpoint_lacks_is_gone():
    images = images_of(trained())
    live = fill(step(trained()), images)
    assert not live["optimizer"].state


def test_existing_state_is_filled_in_place():
    saved, live = step(step(trained())), step(trained())
    kept = live["optimizer"].state[live["model"][0].weight]["exp_avg"]
    fill(live, images_of(saved))
    assert live["optimizer"].state[live["model"][0].weight]["exp_avg"] is kept
    assert same(by_name(live), by_name(saved))


def test_state_of_another_kind_of_optimizer_is_named():
    images = images_of(step(trained()))
    live = trained()
    live["optimizer"] = torch.optim.SGD(live["model"].parameters(), momentum=0.9)
    message = differences(live, images)
    assert "optimizer.state.0.weight.momentum_buffer" in message
    assert "optimizer.state.0.weight.exp_avg_sq" in message


def test_parameters_missing_from_a_side_are_named():
    images = images_of(trained())
    live = trained()
    live["optimizer"] = torch.optim.AdamW(live["model"][0].parameters())
    assert "only in the checkpoint: optimizer.param_groups: 1.weight, optimizer.param_groups: 1.bias" in differences(
        live, images
    )
    assert "not in the checkpoint: optimizer.param_groups: 1." in differences(trained(), images_of(live))


def test_merged_groups_must_have_had_the_same_settings():
    images = images_of(trained())
    live = trained()
    live["optimizer"] = torch.optim.AdamW(live["model"].parameters())
    assert "one group here, groups with different settings in the checkpoint" in differences(live, images)


def test_how_a_process_computes_is_no_state():
    images = images_of(step(trained(foreach=True, weight_decay=0.5)))
    live = fill(trained(fused=True), images)
    group = live["optimizer"].param_groups[0]
    assert (group["foreach"], group["fused"], group["weight_decay"]) == (None, True, 0.5)


def test_a_learning_rate_that_is_a_tensor_is_filled():
    def with_tensor(lr):
        state = trained()
        state["optimizer"] = torch.optim.AdamW(state["model"].parameters(), lr=torch.tensor(lr))
        return state

    live = with_tensor(0.5)
    lr = live["optimizer"].param_groups[0]["lr"]
    fill(live, images_of(with_tensor(0.25)))
    assert live["optimizer"].param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


def test_an_optimizer_with_state_of_its_own_kind():
    def lbfgs(steps):
        torch.manual_seed(2)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        x = torch.randn(8, 3)

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return {"model": model, "optimizer": optimizer}, closure

    saved, more = lbfgs(2)
    images = images_of(saved)
    live, live_more = lbfgs(0)
    fill(live, images)
    saved["optimizer"].step(more)
    live["optimizer"].step(live_more)
    assert torch.equal(saved["model"].weight, live["model"].weight)


# Modules that load themselves ---------------------------------------------------------------------------------------
class Counting(torch.nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((2,), float(calls)))
        self.calls = calls

    def get_extra_state(self):
        return {"calls": self.calls, "t": torch.full((1,), float(self.calls))}

    def set_extra_state(self, state):
        self.calls = state["calls"] + int(state["t"].item())


def test_extra_state_is_given_back():
    live = torch.nn.Sequential(Counting(1))
    weight = live[0].get_parameter("w")
    fill({"m": live}, images_of({"m": torch.nn.Sequential(Counting(4))}))
    assert live[0].calls == 8
    assert live[0].w is weight
    assert weight.tolist() == [4.0, 4.0]


def test_load_hooks_see_the_load():
    live = torch.nn.Linear(1, 1)
    seen = []
    live.register_load_state_dict_post_hook(lambda module, keys: seen.append(module.weight.item()))
    saved = torch.nn.Linear(1, 1)
    fill({"m": live}, images_of({"m": saved}))
    assert seen == [saved.weight.item()]


# Several ranks ------------------------------------------------------------------------------------------------------
def large(value):
    torch.manual_seed(value)
    return {"w": torch.nn.Parameter(torch.randn(1000, 999)), "small": torch.nn.Parameter(torch.randn(3)), "n": value}


def test_split_tensors_are_put_together():
    images = images_of(*[large(0) for _ in range(3)])
    pieces = [[e.piece for e in s.header.layout.entries] for s in images]
    assert [sum(p.nbytes for p in part) > 1_000_000 for part in pieces] == [True] * 3
    live = fill(large(1), images, rank=2, world_size=5)
    assert all(torch.equal(live[k], large(0)[k]) for k in ("w", "small"))
    assert live["n"] == 0


def test_a_missing_piece_is_never_loaded_around():
    images = images_of(*[large(0) for _ in range(3)])
    with pytest.raises(CorruptError, match=r"no image holds element \[\d+, 0\] of 'w'"):
        fill(large(1), images[:1] + images[2:])
    images[1] = Source(images[1].header, images[1].buffer[:-4096])
    with pytest.raises(CorruptError, match=rf"{re.escape(str(ImageId(1, 7, 1)))} has"):
        fill(large(1), images)


def own(value, **options):
    return {
        "rng": holdfast.per_rank(torch.full((2,), float(value)), **options),
        "n": holdfast.per_rank(value, **options),
    }


def test_each_rank_gets_its_own_values():
    images = images_of(own(10), own(11), own(12))
    for rank in range(3):
        live = own(0)
        tensor = live["rng"].value
        assert ranks_needed(live, 3, rank=rank, world_size=3) == {0, rank}
        fill(live, images, rank=rank, world_size=3)
        assert live["rng"].value is tensor
        assert tensor.tolist() == [10.0 + rank] * 2
        assert live["n"].value == 10 + rank


def test_own_modules_and_stateful_objects():
    def state(value):
        norm = torch.nn.BatchNorm1d(1)
        norm.get_buffer("running_mean").fill_(value)
        return {"norm": holdfast.per_rank(norm), "data": {"loader": holdfast.per_rank(Loader(value))}}

    images = images_of(state(1.0), state(2.0))
    live = fill(state(0.0), images, rank=1, world_size=2)
    assert live["norm"].value.running_mean.item() == 2.0
    assert live["data"]["loader"].value.position == 2.0
    resized = fill(
        {"norm": holdfast.per_rank(live["norm"].value, "drop"), "data": live["data"]},
        images,
        strict=False,
        only=("norm",),
    )
    assert resized["norm"].value.running_mean.item() == 2.0


def test_another_number_of_ranks_follows_on_resize():
    images = images_of(own(10), own(11))
    assert "n (per_rank of 3 ranks without on_resize here, of 2 ranks in" in differences(
        own(0), images, rank=2, world_size=3
    )
    with pytest.raises(StructureError) as caught:
        fill(own(0), images, rank=2, world_size=3)
    assert 'holdfast.per_rank(x, on_resize="drop")' in caught.value.hint
    kept = {**own(0), "x": 1}
    fill(kept, images_of({**own(10), "x": 2}, {**own(11), "x": 2}), rank=2, world_size=3, strict=False)
    assert (kept["n"].value, kept["x"]) == (0, 2)
    assert fill(own(0, on_resize="drop"), images, rank=2, world_size=3)["n"].value == 0
    calls = []

    def merge(values, rank, world):
        calls.append((rank, world))
        return sum(values[1:], values[0])

    live = own(0, on_resize=merge)
    tensor = live["rng"].value
    assert ranks_needed(live, 2, rank=2, world_size=3) == {0, 1}
    fill(live, images, rank=2, world_size=3)
    assert live["n"].value == 21
    assert live["rng"].value is tensor
    assert tensor.tolist() == [21.0, 21.0]
    assert calls == [(2, 3)] * 2


def test_a_mark_that_is_new_takes_the_shared_value():
    images = images_of({"rng": torch.ones(2), "n": 3}, {"rng": torch.ones(2), "n": 4})
    live = fill(own(0), images, rank=1, world_size=2)
    assert live["rng"].value.tolist() == [1.0, 1.0]
    assert live["n"].value == 3


def test_a_mark_that_is_gone_is_a_difference():
    images = images_of(own(1), own(2))
    message = differences({"rng": torch.zeros(2), "n": 0}, images, rank=1, world_size=2)
    assert "rng (not marked per_rank here, marked in the checkpoint), n (not marked" in message
    assert "only in the checkpoint" not in message

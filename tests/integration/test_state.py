"""What a state may be made of: everything comes back as it was, in place."""

import threading
from collections import Counter, OrderedDict, defaultdict

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from tests import everything  # noqa: E402
from tests.integration.place import due  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import StructureError, UnsupportedValueError  # noqa: E402
from holdfast.wire.mapped import populate  # noqa: E402

pytestmark = pytest.mark.torch


def saved(place, state, step=1):
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) is None
        due(ckpt.save(step, state)).wait("durable", timeout_s=30)


def loaded(place, state, **options):
    with holdfast.Checkpointer(place.url) as ckpt:
        return ckpt.load(state, **options)


def training(seed=0, width=16):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Linear(width, 4)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 50])
    return {"model": model, "optim": optimizer, "sched": scheduler, "step": 0}


def train(state, steps):
    for _ in range(steps):
        state["optim"].zero_grad()
        state["model"](torch.randn(32, 8)).square().mean().backward()
        state["optim"].step()
        state["sched"].step()
        state["step"] += 1


def test_training_goes_on_from_a_load_as_if_nothing_had_happened(place):
    one = training()
    train(one, 3)
    saved(place, one, step=3)
    torch.manual_seed(7)
    train(one, 3)
    other = training(seed=1)
    weight = other["model"][0].weight
    assert loaded(place, other) == 3
    assert other["model"][0].weight is weight, "tensors are filled in place"
    assert other["step"] == 3
    assert isinstance(other["sched"].milestones, Counter)
    torch.manual_seed(7)
    train(other, 3)
    for (name, a), (_, b) in zip(one["model"].state_dict().items(), other["model"].state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert one["sched"].get_last_lr() == other["sched"].get_last_lr()


def test_a_training_of_everything_goes_on_after_a_load(place):
    everything.teach()
    one = everything.Everything(0)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(one.state) is None
        for step in range(5):
            one.step()
            one.before_save()
            handle = due(ckpt.save(step, one.state))
            assert handle.stall_s < 30
        handle.wait("durable", timeout_s=60)
    uninterrupted = [one.step() for _ in range(3)]
    after = one.picture()
    other = everything.Everything(1)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(other.state) == 4
        other.after_load()
        assert [other.step() for _ in range(3)] == uninterrupted
        assert other.picture() == after
        due(ckpt.save(7, other.state)).wait("durable", timeout_s=60)
    third = everything.Everything(2)
    assert holdfast.load(place.url, third.state, only=None) == 7, "without an agent, from the files"
    third.after_load()
    assert third.picture() == after


def test_tensors_of_every_kind_come_back(place):
    base = torch.arange(24.0).reshape(4, 6)

    def state(fill):
        tied = base.clone() if fill else torch.zeros(4, 6)
        return {
            "tied": [tied, tied],
            "transposed": (base.t().clone().t() if fill else torch.zeros(6, 4).t()),
            "strided": (torch.arange(40.0)[::2] if fill else torch.zeros(40)[::2]),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(2.5 if fill else 0.0, dtype=torch.float64),
            "bf16": torch.full((5,), 1.5 if fill else 0, dtype=torch.bfloat16),
            "bool": torch.tensor([fill, False]),
            "complex": torch.full((3,), complex(1, -2) if fill else 0, dtype=torch.complex64),
            "float8": torch.full((4,), 1.0 if fill else 0.0).to(torch.float8_e4m3fn),
            "int64": torch.full((2, 2), -(2**60) if fill else 0),
        }

    want = state(True)
    saved(place, want)
    got = state(False)
    assert loaded(place, got) == 1
    assert got["tied"][0] is got["tied"][1]
    assert torch.equal(got["tied"][0], want["tied"][0])
    for name in want.keys() - {"tied", "float8"}:
        assert torch.equal(got[name], want[name]), name
    assert torch.equal(got["float8"].float(), want["float8"].float())
    assert not got["transposed"].is_contiguous()


def test_plain_values_come_back_exactly(place):
    def state(fill):
        values = {
            "big": 2**200, "nan": float("nan"), "zero": -0.0, "text": "ü\0", "bytes": b"\xff\0", "none": None,
            "nested": [1, (2, {"a": [True]})], "keys": {1: "a", (2, "b"): 3, None: 4}, "set": {1, 2},
            "ordered": OrderedDict(b=1, a=2), "default": defaultdict(list, x=[1]), "counter": Counter("aab"),
            "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"),
            "array": np.arange(6).reshape(2, 3), "number": np.float32(1.5),
        }  # fmt: skip
        return {"values": values if fill else dict.fromkeys(values)}

    want = state(True)["values"]
    saved(place, {"values": want})
    got = state(False)
    assert loaded(place, got) == 1
    found = got["values"]
    assert str(found.pop("nan")) == "nan"
    assert str(found["zero"]) == "-0.0"
    assert (found.pop("array") == want["array"]).all()
    for name, value in found.items():
        assert (type(value), value) == (type(want[name]), want[name]), name


def test_cpu_tensors_are_copied_not_aliased(place):
    x = torch.zeros(1 << 20)
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load({"x": x})
        for step in range(4):
            x.fill_(step)
            ckpt.save(step, {"x": x})
            x.fill_(-1)  # at once: whatever is read later must be the copy
    y = torch.zeros(1 << 20)
    assert loaded(place, {"x": y}, step=2) == 2
    assert (y == 2).all()


def test_optimizer_state_follows_its_parameter_whatever_the_order(place):
    one = {"a": torch.nn.Parameter(torch.zeros(3)), "b": torch.nn.Parameter(torch.zeros(3))}

    def job(order):
        module = torch.nn.ParameterDict(one)
        return {"model": module, "optim": torch.optim.SGD([module[k] for k in order], lr=0.1, momentum=0.9)}

    first = job("ab")
    for key, grad in (("a", 1.0), ("b", 2.0)):
        one[key].grad = torch.full((3,), grad)
    first["optim"].step()
    saved(place, first)
    second = job("ba")
    assert loaded(place, second) == 1
    moments = [second["optim"].state[one[k]]["momentum_buffer"][0].item() for k in "ab"]
    assert moments == [1.0, 2.0]


def test_a_value_that_cannot_be_expressed_is_refused_by_its_path(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load({"x": torch.zeros(2)})
        due(ckpt.save(1, {"x": torch.ones(2)})).wait("durable", timeout_s=30)
        with pytest.raises(UnsupportedValueError) as caught:
            ckpt.save(2, {"x": torch.ones(2), "args": {"deep": [object()]}})
        assert "args" in caught.value.message
        assert "deep" in caught.value.message
        assert caught.value.hint
        due(ckpt.save(2, {"x": torch.full((2,), 2.0)})).wait("durable", timeout_s=30)
    x = torch.zeros(2)
    assert loaded(place, {"x": x}) == 2
    assert x.tolist() == [2.0, 2.0]


def test_a_state_of_another_structure_is_refused_before_anything_is_copied(place):
    saved(place, {"x": torch.ones(2), "y": torch.ones(3)})
    x = torch.zeros(2)
    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.raises(StructureError) as caught:
            ckpt.load({"x": x, "y": torch.zeros(4), "z": torch.zeros(1)})
        assert "y" in caught.value.message
        assert "z" in caught.value.message
        assert caught.value.hint
        assert x.tolist() == [0.0, 0.0]
        said = r"loaded step 1 .* but for 3 differences: 1 has another shape: y"
        with pytest.warns(RuntimeWarning, match=said) as told:
            assert ckpt.load({"x": x, "y": torch.zeros(4), "z": torch.zeros(1), "n": 1}, strict=False) == 1
        assert [w.filename for w in told] == [__file__]
        assert ckpt.last_load is not None
        assert [(d.kind, d.path) for d in ckpt.last_load.differences] == [
            ("shape", "y"),
            ("missing", "z"),
            ("missing", "n"),
        ]
    assert x.tolist() == [1.0, 1.0]


def test_structure_that_grows_in_mid_run_is_saved_right(place):
    model = torch.nn.Linear(64, 64)
    model.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.bias], lr=0.1)
    state = {"model": model, "optim": optimizer}

    def step():
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        step()
        ckpt.save(1, state)
        model.weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.weight]})
        state["ema"] = torch.full((256, 1024), 3.0)  # 1 MiB: outgrows the slots
        step()
        due(ckpt.save(2, state)).wait("durable", timeout_s=30)
        state["ema"].fill_(4.0)
        step()
        ckpt.save(3, state)
    again = torch.nn.Linear(64, 64)
    other = torch.optim.AdamW([again.bias], lr=0.1)
    other.add_param_group({"params": [again.weight]})
    got = {"model": again, "optim": other, "ema": torch.zeros(256, 1024)}
    assert loaded(place, got) == 3
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(other.state[again.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"])
    assert (got["ema"] == 4).all()


def test_structure_that_grows_before_its_first_slots_are_mapped(place, monkeypatch):
    """The arena may still be faulted when the state outgrows it: what was asked for counts, not what is mapped."""
    go = threading.Event()

    def late(buffer):
        assert go.wait(30)
        populate(buffer)

    monkeypatch.setattr("holdfast.trainer.slots.populate", late)
    state = {"small": torch.zeros(16)}
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        state["large"] = torch.full((256, 1024), 3.0)
        threading.Timer(0.5, go.set).start()
        due(ckpt.save(1, state)).wait("durable", timeout_s=30)
    got = {"small": torch.ones(16), "large": torch.zeros(256, 1024)}
    assert loaded(place, got) == 1
    assert (got["large"] == 3).all()

"""What a load says of a state that is not the one saved, and what it makes of it when told to take what fits."""

import warnings
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

from holdfast.errors import StructureError, UsageError
from holdfast.trainer.apply import plan_load
from holdfast.trainer.differences import Differences, likely_names, warn_of

pytestmark = pytest.mark.torch


def take_what_fits(state, sources, **options):
    """Load with strict=False; what was passed over, by kind."""
    plan = plan_load(state, sources, rank=0, world_size=1, strict=False, **options)
    plan.filling.fill()
    plan.finish()
    return plan.differences


def refused(state, sources, **options):
    with pytest.raises(StructureError) as e:
        fill(state, sources, **options)
    return e.value


def trained(width=3, extra=False, optimizer=torch.optim.AdamW, steps=3, seed=0, **options):
    torch.manual_seed(seed)
    layers = {"body": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, width)}
    if extra:
        layers["lora"] = torch.nn.Linear(4, 4, bias=False)
    model = torch.nn.ModuleDict(layers)
    made = optimizer(model.parameters(), **options)
    state = {"model": model, "optim": made, "step": steps}
    for _ in range(steps):
        step(state)
    return state


def step(state):
    for i, parameter in enumerate(state["model"].parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * (i + 1))
    state["optim"].step()


def names(found):
    return [d.path for d in found]


# What is passed over -------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_left_alone_and_listed_with_both_sides():
    images = images_of({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(2), "gone": torch.ones(1), "n": 5})
    live: dict[str, Any] = {
        "a": torch.zeros(2),
        "b": torch.zeros(4),
        "c": torch.zeros(2).bfloat16(),
        "new": torch.zeros(1),
        "n": 0,
    }
    found = take_what_fits(live, images)
    assert [(d.kind, d.path, d.here, d.there) for d in found] == [
        ("shape", "b", "float32 [4]", "float32 [3]"),
        ("dtype", "c", "bfloat16 [2]", "float32 [2]"),
        ("missing", "new", "float32 [1]", ""),
        ("unexpected", "gone", "", "float32 [1]"),
    ]
    assert (live["a"].tolist(), live["n"]) == ([1, 1], 5)
    assert not any(live[key].any() for key in ("b", "c", "new")), "nothing is converted or cut"


def test_of_tied_tensors_that_were_two_the_first_counts():
    shared = torch.zeros(2)
    found = take_what_fits({"a": shared, "b": shared}, images_of({"a": torch.ones(2), "b": torch.full((2,), 2.0)}))
    assert shared.tolist() == [1, 1]
    assert [str(d) for d in found.other] == ["b (shares its memory with a here, a tensor of its own in the checkpoint)"]


def test_things_of_another_kind_stay_as_they_are():
    generator = torch.Generator().manual_seed(3)
    images = images_of({"t": 1, "d": 2, "x": torch.ones(1)})
    live: dict[str, Any] = {"t": torch.zeros(1), "d": {"t": torch.zeros(1)}, "x": torch.zeros(1), "g": generator}
    kept = live["d"]
    found = take_what_fits(live, images)
    assert (live["x"].item(), live["t"].item()) == (1, 0)
    assert live["d"] is kept
    assert names(found.other) == ["t", "d"]
    assert names(found.missing) == ["g"]


def test_where_nothing_fits_that_is_an_error_also_when_not_strict():
    images = images_of({"model": torch.nn.Linear(2, 2), "step": 4})
    state = {"net": torch.nn.Linear(2, 2), "step": 0}
    error = refused(state, images, strict=False)
    assert error.message.startswith("nothing of the checkpoint fits the state; 2 are not in the checkpoint: net.weight")
    assert "2 of 2 missing names are there with 'model.' in place of 'net.'; have the names agree" in error.hint
    assert state["step"] == 0


# Optimizers ----------------------------------------------------------------------------------------------------------
def test_parameters_that_fit_get_their_state_and_the_others_start_empty():
    saved = trained()
    live = trained(width=5, extra=True, steps=1, seed=1)
    found = take_what_fits(live, images_of(saved))
    state = live["optim"].state
    model, was = live["model"], saved["model"]
    assert torch.equal(model["body"].weight, was["body"].weight)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(state[model["body"].weight][key], saved["optim"].state[was["body"].weight][key])
    for fresh in (model["head"].weight, model["head"].bias, model["lora"].weight):
        assert fresh not in state, "no step count without its averages"
    assert names(found.shape) == ["model.head.weight", "model.head.bias"]
    assert names(found.state) == ["optim.state.head.weight", "optim.state.head.bias"]
    assert names(found.missing) == ["model.lora.weight", "optim.param_groups: lora.weight"]
    step(live)
    assert state[model["head"].weight]["step"].item() == 1
    assert state[model["body"].weight]["step"].item() == 4


def test_the_optimizer_may_stand_before_its_model():
    live = trained(width=5, steps=0)
    live = {"optim": live["optim"], "model": live["model"], "step": 0}
    take_what_fits(live, images_of(trained()))
    assert live["model"]["head"].weight not in live["optim"].state
    step(live)


def test_a_parameter_in_another_dtype_starts_anew():
    live = trained(steps=0)
    live["model"]["head"].to(torch.bfloat16)
    found = take_what_fits(live, images_of(trained()))
    assert names(found.dtype) == ["model.head.weight", "model.head.bias"]
    assert live["model"]["head"].weight not in live["optim"].state
    step(live)


def test_another_optimizer_takes_no_state_it_would_not_understand():
    live = trained(steps=0)
    found = take_what_fits(live, images_of(trained(optimizer=torch.optim.SGD, momentum=0.9, lr=0.1)))
    assert not live["optim"].state
    assert "optim.state.body.weight.exp_avg" in names(found.missing)
    assert "optim.state.body.weight.momentum_buffer" in names(found.unexpected)
    assert "optim.state.body.weight" in names(found.state)
    step(live)
    assert torch.equal(live["model"]["body"].bias.isfinite().all(), torch.tensor(True))


def test_an_optimizer_that_cannot_be_foretold_takes_its_state_only_for_the_same_parameters():
    def lbfgs(**options):
        state = trained(optimizer=torch.optim.LBFGS, steps=0, **options)
        for parameter in state["model"].parameters():
            parameter.grad = torch.ones_like(parameter)
        state["optim"].step(lambda: sum(p.sum() for p in state["model"].parameters()))
        return state

    same, changed = (
        trained(optimizer=torch.optim.LBFGS, steps=0),
        trained(optimizer=torch.optim.LBFGS, width=5, steps=0),
    )
    assert not take_what_fits(same, images_of(lbfgs()))
    assert same["optim"].state
    found = take_what_fits(changed, images_of(lbfgs()))
    assert not changed["optim"].state
    assert names(found.state) == ["optim.state.body.weight"]


def test_groups_with_different_settings_are_not_mixed():
    saved = trained(steps=0)
    parameters = list(saved["model"].parameters())
    saved["optim"] = torch.optim.AdamW([{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:], "lr": 0.25}])
    live = trained(steps=0, lr=0.125)
    found = take_what_fits(live, images_of(saved))
    assert names(found.other) == ["optim.param_groups.0"]
    assert live["optim"].param_groups[0]["lr"] == 0.125


# What is asked for ---------------------------------------------------------------------------------------------------
def test_only_reaches_into_modules_and_containers():
    saved = trained() | {"progress": {"epoch": 3, "seen": [1, 2], "ema": {"w": torch.ones(2)}}}
    live = trained(steps=0, seed=1) | {"progress": {"epoch": 0, "seen": [9], "ema": {"w": torch.zeros(2)}}}
    before = live["model"]["body"].weight.clone()
    kept = live["progress"]
    fill(live, images_of(saved), only=("model.head", "progress.epoch", "progress.ema"))
    assert torch.equal(live["model"]["head"].weight, saved["model"]["head"].weight)
    assert torch.equal(live["model"]["body"].weight, before)
    assert live["progress"] is kept
    assert (kept["epoch"], kept["seen"], kept["ema"]["w"].tolist()) == (3, [9], [1, 1])
    assert not live["optim"].state


def test_differences_outside_of_what_is_asked_for_do_not_count():
    images = images_of(trained())
    live = trained(width=5, steps=0)
    fill(live, images, only=("model.body",))
    assert "model.head.weight" in refused(live, images, only=("model",)).message


def test_only_names_that_select_nothing_are_refused_with_near_ones():
    images, live = images_of(trained()), trained(steps=0)
    error = refused(live, images, only=("model.haed", "model.body"))
    assert "the state has no 'model.haed'" in error.message
    assert "inside the optimizer 'optim'" in refused(live, images, only=("optim.state",)).message
    for wrong in ("model", (), (1,), 5, iter(())):
        with pytest.raises(UsageError) as caught:
            fill(live, images, only=wrong)
        assert caught.value.hint


def test_names_may_come_from_a_generator():
    saved, live = trained(), trained(steps=0, seed=1)
    fill(live, images_of(saved), only=(name for name in live if name == "model"))
    assert torch.equal(live["model"]["body"].weight, saved["model"]["body"].weight)
    assert live["step"] == 0


# Words ---------------------------------------------------------------------------------------------------------------
def test_errors_are_grouped_and_bounded():
    saved = {f"old{i}": torch.ones(1) for i in range(300)} | {f"b{i}": torch.ones(2) for i in range(50)}
    error = refused({f"new{i}": 0 for i in range(30)} | {f"b{i}": torch.ones(3) for i in range(50)}, images_of(saved))
    assert "50 have another shape: b0 (float32 [3] here, float32 [2] in the checkpoint), b1" in error.message
    assert "and 30 more; 30 are not in the checkpoint: new0, new1" in error.message
    assert error.message.endswith("and 280 more")
    assert "b20" not in error.message
    assert len(error.message) < 3000


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ("model.{}", "model.module.{}", "'model.module.' in place of 'model.'"),
        ("model._orig_mod.{}", "model.{}", "'model.' in place of 'model._orig_mod.'"),
        ("{}", "net.{}", "'net.' in place of ''"),
    ],
)
def test_a_renamed_prefix_is_found(here, there, words):
    parts = [f"layers.{i}.weight" for i in range(5)]
    told = likely_names([here.format(p) for p in parts], [there.format(p) for p in parts])
    assert told == f"5 of 5 missing names are there with {words}"


def test_near_names_are_found():
    assert likely_names(["model.haed.weight"], ["model.head.weight", "model.x"]) == (
        "near to 'model.haed.weight': 'model.head.weight'"
    )
    assert likely_names(["a"], ["quite.another"]) == ""
    assert likely_names([], ["a"]) == ""


def test_one_warning_with_counts_and_the_first_few():
    found = Differences()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of(found, "step 1")
    for i in range(10):
        found.note("missing", f"m{i}")
    found.note("dtype", "x", "float16 [1]", "float32 [1]")

    def load():
        warn_of(found, "step 1")

    said = "step 1 but for 11 differences: 1 has another dtype: x .*m2, and 7 more$"
    with pytest.warns(RuntimeWarning, match=said) as told:
        load()
    assert [w.filename for w in told] == [__file__], "where load() was called"


def test_differences_read_as_a_sentence():
    found = Differences()
    assert str(found) == "no differences"
    found.note("missing", "a")
    assert str(found) == "1 is not in the checkpoint: a"
    found.note("missing", "b")
    found.note("shape", "c", "[2]", "[3]")
    assert str(found) == "1 has another shape: c ([2] here, [3] in the checkpoint); 2 are not in the checkpoint: a, b"

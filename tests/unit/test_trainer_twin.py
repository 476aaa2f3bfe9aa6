import copy
import random
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import optim
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.trainer.capture import Capture
from holdfast.trainer.twin import forecast

pytestmark = pytest.mark.torch

CASES: list[tuple[Any, dict[str, Any]]] = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "fused": True}),
    (optim.Adam, {}),
    (optim.Adam, {"fused": True}),
    (optim.Adam, {"foreach": True, "maximize": True}),
    (optim.AdamW, {"amsgrad": True}),
    (optim.AdamW, {"lr": torch.tensor(0.01)}),
    (optim.Adagrad, {}),
    (optim.Adadelta, {}),
    (optim.RMSprop, {}),
    (optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (optim.NAdam, {}),
    (optim.RAdam, {}),
    (optim.Adamax, {}),
    (optim.ASGD, {}),
    (optim.Rprop, {}),
    (optim.SparseAdam, {}),
]
CASES += [(getattr(optim, name), {}) for name in ("Adafactor", "Muon") if hasattr(optim, name)]


def parameters():
    shapes = [(3, 4), (4, 4), (3, 4)]
    made = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    made.append(torch.nn.Parameter(torch.randn(2, 2), requires_grad=False))
    return made


def step(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                grad = torch.randn_like(parameter)
                parameter.grad = grad.to_sparse() if isinstance(optimizer, optim.SparseAdam) else grad
    optimizer.step()


def form(entries):
    return [(k, tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else (k, type(v)) for k, v in entries.items()]


def test_every_optimizer_of_torch_is_foretold():
    for kind, options in CASES:
        made = parameters()
        groups = [{"params": made[:1]}, {"params": made[1:]}]
        optimizer = kind(groups, **options)
        foretold = forecast(optimizer)
        assert foretold is not None, kind
        before = {p: form(entries) for p, entries in optimizer.state.items()}
        step(optimizer)
        for parameter in made:
            expected = before.get(parameter) or form(foretold.get(parameter, {}))
            assert expected == form(optimizer.state.get(parameter, {})), (kind, options)


def test_nothing_is_left_to_foretell_after_a_step():
    made = parameters()
    optimizer = optim.AdamW(made)
    step(optimizer)
    assert forecast(optimizer) == {}


def test_counts_stand_where_the_optimizer_will_put_them():
    device = {}
    cases: dict[str, Any] = {"plain": {}, "capturable": {"capturable": True}, "fused": {"fused": True}}
    for name, options in cases.items():
        made = parameters()
        foretold = forecast(optim.Adam(made, **options))
        assert foretold is not None
        device[name] = foretold[made[0]]["step"].device.type
    assert device == {"plain": "cpu", "capturable": "meta", "fused": "meta"}


def test_dtypes_follow_the_parameters():
    made = [torch.nn.Parameter(torch.randn(3, dtype=d)) for d in (torch.float64, torch.bfloat16, torch.complex64)]
    optimizer = optim.Adam([*made, torch.nn.Parameter(torch.randn(3))], differentiable=True, foreach=False)
    foretold = forecast(optimizer)
    assert foretold is not None
    assert [foretold[p]["exp_avg"].dtype for p in made] == [torch.float64, torch.bfloat16, torch.complex64]


class Lion(optim.Optimizer):
    """One of a user's own, without surprises."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                        state["noise"] = random.random() + torch.rand(()).item()
                    p.sub_(state["momentum"].lerp_(p.grad, 0.1).sign(), alpha=group["lr"])


class Hoarder(Lion):
    """Keeps live tensors where a twin could change them."""

    def __init__(self, params):
        super().__init__(params)
        self.averages = [torch.zeros_like(p) for p in self.param_groups[0]["params"]]


class Fails(Lion):
    def step(self, closure=None):
        raise RuntimeError("no")


def test_custom_optimizers_are_foretold_only_when_that_is_safe():
    foretold = forecast(Lion(parameters()))
    assert foretold is not None
    assert form(next(iter(foretold.values())))[0] == ("momentum", (3, 4), torch.float32)
    assert forecast(Hoarder(parameters())) is None
    assert forecast(Fails(parameters())) is None
    assert forecast(optim.LBFGS(parameters())) is None


def test_a_forecast_touches_nothing():
    made = parameters()
    optimizer = Lion(made)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    optimizer.register_step_post_hook(lambda *_: calls.append(2))
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)  # puts a step of its own on the optimizer
    everywhere = register_optimizer_step_pre_hook(lambda *_: calls.append(3))
    before = [p.clone() for p in made], dict(optimizer.__dict__), copy.copy(optimizer.param_groups[0])
    dice = random.getstate(), torch.get_rng_state()
    try:
        assert forecast(optimizer)
    finally:
        everywhere.remove()
    assert not calls
    assert not optimizer.state
    assert dice[0] == random.getstate()
    assert torch.equal(dice[1], torch.get_rng_state())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before[0], made, strict=True))
    assert optimizer.__dict__ == before[1]
    assert optimizer.param_groups[0] == before[2]
    assert scheduler.last_epoch == 0


def losses(foretell):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = optim.AdamW(model.parameters())
    if foretell:
        Capture().forecast({"model": model, "optimizer": optimizer})
    found = []
    for _ in range(4):
        loss = model(torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_losses_are_the_same_bit_for_bit():
    assert losses(foretell=True) == losses(foretell=False)


def test_the_structure_of_the_first_save_is_foretold():
    for kind, options in CASES:
        if kind is not optim.SparseAdam:
            model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
            optimizer = kind(model.parameters(), **options)
            state = {"model": model, "optimizer": optimizer}
            capture = Capture()
            capture.refresh(state)
            foretold = capture.forecast(state)
            step(optimizer)
            assert capture.refresh(state).structure.digest == foretold.digest, (kind, options)

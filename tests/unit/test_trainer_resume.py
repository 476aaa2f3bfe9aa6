"""Training that was saved and restored into fresh objects goes on bit by bit as if it never stopped."""

import copy
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from tests import everything
from tests.images import fill, images_of
from torch import optim
from torch.optim import lr_scheduler as lrs

import holdfast
from holdfast.trainer.capture import Capture
from holdfast.trainer.twin import forecast

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small models gain nothing from threads, and on a busy machine these spin for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEPS, SAVED_AFTER = 8, 5


def sequence(optimizer):
    parts = [lrs.LinearLR(optimizer, total_iters=3), lrs.CosineAnnealingLR(optimizer, T_max=5)]
    return lrs.SequentialLR(optimizer, parts, milestones=[3])


def nested(optimizer):
    chained = lrs.ChainedScheduler([lrs.LinearLR(optimizer, total_iters=2), lrs.MultiStepLR(optimizer, [3])], optimizer)
    return lrs.SequentialLR(optimizer, [chained, lrs.CosineAnnealingWarmRestarts(optimizer, 2)], milestones=[4])


class Decay:
    """A callable that has a state: torch keeps its attributes."""

    def __init__(self, base):
        self.base = base
        self.calls = 0

    def __call__(self, n):
        self.calls += 1
        return self.base ** (n + self.calls / 10)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 2, 6]),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda n: 0.9**n),
    "LambdaLR with a state": lambda o: lrs.LambdaLR(o, [Decay(0.9), Decay(0.8)]),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, [lambda n: 0.9, Decay(0.8)]),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 6),
    "ConstantLR": lambda o: lrs.ConstantLR(o, total_iters=6),
    "LinearLR": lambda o: lrs.LinearLR(o, total_iters=6),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 4),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "OneCycleLR of three phases": lambda o: lrs.OneCycleLR(
        o, [0.1, 0.2], total_steps=STEPS + 1, three_phase=True, anneal_strategy="linear"
    ),
    "CyclicLR": lambda o: lrs.CyclicLR(
        o, 0.001, 0.1, step_size_up=3, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "CyclicLR with a function": lambda o: lrs.CyclicLR(o, 0.001, 0.1, 3, scale_fn=Decay(0.9), cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "SequentialLR": sequence,
    "SequentialLR of a chain": nested,
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], o),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, cooldown=1),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, 0.05, anneal_epochs=6),
    "SWALR linear": lambda o: optim.swa_utils.SWALR(o, 0.05, anneal_epochs=6, anneal_strategy="linear"),
}


class Net(torch.nn.Module):
    """Embedding tied to the head, batch norm, dropout."""

    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.drop = torch.nn.Dropout(0.3)
        self.mid = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 11)
        self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.drop(self.mid(self.norm(self.emb(x)))))


def build(seed, optimizer=optim.AdamW, scheduler=SCHEDULERS["MultiStepLR"], wrap=lambda net: net, **options):
    torch.manual_seed(seed)
    net = wrap(Net())
    opt = optimizer(net.parameters(), **options)
    state = {"model": net, "optimizer": opt, "progress": {"epoch": 0, "seen": []}, "rng": holdfast.per_rank(None)}
    if scheduler is not None:
        state["scheduler"] = scheduler(opt)
    return state


def closure(state, x):
    loss = torch.nn.functional.cross_entropy(state["model"](x), (x + 1) % 11)
    state["optimizer"].zero_grad()
    loss.backward()
    return loss


def train(state, steps):
    """One number per step that depends on everything so far."""
    found = []
    for _ in range(steps):
        x = torch.randint(0, 11, (16,))
        loss = state["optimizer"].step(partial(closure, state, x)).detach()
        if "scheduler" in state:
            plateau = isinstance(state["scheduler"], lrs.ReduceLROnPlateau)
            state["scheduler"].step(*[loss.item()] * plateau)
        state["progress"]["epoch"] += 1
        state["progress"]["seen"].append(x[0].item())
        found.append(loss.item())
    return found


def resume(make):
    """Losses after the save: of the run that went on, and of the one restored into fresh objects."""
    state = make(0)
    train(state, SAVED_AFTER)
    state["rng"] = holdfast.per_rank(torch.get_rng_state())
    images = images_of(state)
    uninterrupted = train(state, STEPS - SAVED_AFTER)
    fresh = make(1)
    fill(fresh, images)
    torch.set_rng_state(fresh["rng"].value)
    restored = train(fresh, STEPS - SAVED_AFTER)
    assert fresh["progress"] == state["progress"]
    assert same_tensors(state["model"], fresh["model"])
    assert same_tensors(state["optimizer"], fresh["optimizer"])
    assert plain(fresh["optimizer"]) == plain(state["optimizer"])
    return uninterrupted, restored


def test_every_scheduler_of_torch_is_tried():
    public = {n for n, k in vars(lrs).items() if isinstance(k, type) and issubclass(k, lrs.LRScheduler)}
    assert public - {"LRScheduler", "_LRScheduler"} <= {name.split()[0] for name in SCHEDULERS}


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch's own, as it makes a sequence of a chain
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_scheduler_goes_on(scheduler):
    def make(seed):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 11))
        optimizer = optim.SGD([{"params": part.parameters()} for part in (net[0], net[2])], lr=0.02, momentum=0.9)
        state = {"model": net, "optimizer": optimizer, "progress": {"epoch": 0, "seen": []}}
        return state | {"rng": holdfast.per_rank(None), "scheduler": scheduler(optimizer)}

    uninterrupted, restored = resume(make)
    assert restored == uninterrupted


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"lr": 0.01}, {"momentum": 0.9, "nesterov": True, "lr": 0.01}, {"momentum": 0.9, "fused": True}],
    "Adam": [
        {"fused": True},
        {"amsgrad": True},
        {"lr": torch.tensor(0.01), "foreach": False},
    ],
    "AdamW": [{"amsgrad": True, "foreach": True}, {"fused": True, "amsgrad": True}, {"maximize": True}],
    "Adagrad": [{}, {"foreach": True, "lr_decay": 0.1}, {"fused": True}],
    "Adadelta": [{}, {"foreach": True, "weight_decay": 0.1}],
    "Adafactor": [{}, {"foreach": True, "lr": 0.1}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True, "foreach": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True, "foreach": True}],
    "RAdam": [{}, {"foreach": True}],
    "Adamax": [{}, {"foreach": True}],
    "ASGD": [{"t0": 2}, {"foreach": True, "t0": 2}],
    "Rprop": [{}, {"foreach": True}],
    "LBFGS": [{"lr": 0.1, "max_iter": 3}, {"history_size": 3, "line_search_fn": "strong_wolfe"}],
    "SparseAdam": [{}, {"maximize": True}],
    "Muon": [{}, {"nesterov": False}],
}
"""Options with which each optimizer of torch is tried. One that is not here gets none, so a new one is tried, too."""


def all_optimizers():
    for name, kind in vars(optim).items():
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer:
            for options in VARIANTS.get(name, [{}]):
                yield pytest.param(kind, options, id=f"{name} {options}")


def made(seed, kind, options):
    """A training that this kind of optimizer can do."""
    torch.manual_seed(seed)
    sparse = kind is optim.SparseAdam
    net: torch.nn.Module = Net()
    if sparse:
        net = torch.nn.Sequential(torch.nn.Embedding(11, 11, sparse=True))
    elif kind.__name__ == "Muon":  # matrices only
        net = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11, bias=False))
    state: dict[str, Any] = {"model": net, "rng": holdfast.per_rank(None), "progress": {"epoch": 0, "seen": []}}
    # A fresh tensor for each: a learning rate that is one is part of the state.
    options = {k: v + seed if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    half = (
        [p for n, p in net.named_parameters() if not n.startswith("mid")],
        [p for n, p in net.named_parameters() if n.startswith("mid")],
    )
    groups: Any = [{"params": part} for part in half if part]
    state["optimizer"] = kind(net.parameters() if kind is optim.LBFGS else groups, **options)
    return state


def tensors_of(x):
    """Everything a state holds, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, torch.nn.Module):
        return list(x.state_dict().values())
    if isinstance(x, optim.Optimizer):
        return tensors_of([[x.state[p] for p in g["params"] if p in x.state] for g in x.param_groups])
    inner = [x[key] for key in sorted(x)] if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return [t for item in inner for t in tensors_of(item)]


def same_tensors(one, other):
    a, b = tensors_of(one), tensors_of(other)
    assert len(a) == len(b)
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "options"), [*all_optimizers()])
def test_every_optimizer_goes_on(kind, options):
    made_by = partial(made, kind=kind, options=options)
    state = made_by(0)
    train(state, SAVED_AFTER)
    state["rng"] = holdfast.per_rank(torch.get_rng_state())
    images = images_of(state)
    uninterrupted = train(state, STEPS - SAVED_AFTER)
    fresh = made_by(1)
    fill(fresh, images)
    torch.set_rng_state(fresh["rng"].value)
    assert train(fresh, STEPS - SAVED_AFTER) == uninterrupted
    assert same_tensors(state["model"], fresh["model"])
    assert same_tensors(state["optimizer"], fresh["optimizer"])
    assert plain(fresh["optimizer"]) == plain(state["optimizer"])


def plain(optimizer):
    """What of its state is no tensor, and its settings."""
    state = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g["params"]]
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [[(k, entries[k]) for k in sorted(entries) if not tensors_of(entries[k])] for entries in (*state, *settings)]


@pytest.mark.parametrize(("kind", "options"), [*all_optimizers()])
def test_the_layout_of_every_optimizer_is_foretold(kind, options):
    state = made(0, kind, options)
    foretold = forecast(state["optimizer"])
    assert (foretold is None) == (kind is optim.LBFGS), "only LBFGS, which keeps one growing state, is not"
    if foretold is not None:
        capture = Capture()
        before = capture.forecast(state)
        train(state, 1)
        after = capture.refresh(state).structure
        assert after.digest == before.digest
        train(state, 2)
        assert capture.refresh(state).structure is after


def test_low_precision_parameters_keep_exact_optimizer_state():
    def make(seed):
        state = build(seed, wrap=lambda net: net.bfloat16())
        for parameter in state["model"].parameters():
            # torch's own load would round this to the parameter's dtype.
            state["optimizer"].state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros(parameter.shape),
                "exp_avg_sq": torch.rand(parameter.shape),
            }
        return state

    state, fresh = make(0), make(1)
    fill(fresh, images_of(state))
    for a, b in zip(state["model"].parameters(), fresh["model"].parameters(), strict=True):
        assert torch.equal(state["optimizer"].state[a]["exp_avg_sq"], fresh["optimizer"].state[b]["exp_avg_sq"])


def test_a_checkpoint_with_wrappers_loads_without_and_back():
    plain = build(0)
    train(plain, 2)
    wrapped = build(1, wrap=torch.nn.DataParallel)
    fill(wrapped, images_of(plain))
    again = fill(build(2), images_of(wrapped))
    for a, b in zip(plain["model"].parameters(), again["model"].parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    one = train(plain, 2)
    torch.manual_seed(5)
    assert train(again, 2) == one


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_ddp_saves_and_loads_under_plain_names():
    ddp = torch.nn.parallel.DistributedDataParallel
    state = build(0, wrap=ddp)
    train(state, 2)
    images = images_of(state)
    names = {e.piece.fqn for e in images[0].header.layout.entries}
    assert "model.emb.weight" in names
    assert "optimizer.state.emb.weight.exp_avg" in names
    assert images[0].header.layout.aliases == (("model.head.weight", "model.emb.weight"),)
    live, single = fill(build(1, wrap=ddp), images), fill(build(2), images)
    assert torch.equal(live["model"].module.mid.weight, state["model"].module.mid.weight)
    assert torch.equal(single["model"].mid.weight, state["model"].module.mid.weight)


def test_an_ema_copy_and_a_scaler_go_on():
    def make(seed):
        state = build(seed)
        state["ema"] = optim.swa_utils.AveragedModel(state["model"])
        state["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
        return state

    state = make(3)
    state["ema"].update_parameters(state["model"])
    fresh = fill(make(1), images_of(state))
    assert fresh["ema"].n_averaged == 1
    assert torch.equal(fresh["ema"].module.mid.weight, state["model"].mid.weight)
    assert fresh["scaler"].get_scale() == 8.0


def test_old_and_new_parametrizations_load():
    def make(seed):
        torch.manual_seed(seed)
        one = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
        two = torch.nn.utils.spectral_norm(torch.nn.Linear(3, 3))  # hooks of its own
        return {"model": torch.nn.Sequential(one, two, torch.nn.LSTM(3, 2))}

    state, fresh = make(0), make(1)
    before = copy.deepcopy(state["model"].state_dict())
    fill(fresh, images_of(state))
    after = fresh["model"].state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_training_of_everything_goes_on():
    everything.teach()
    one = everything.Everything(0)
    for _ in range(5):
        one.step()
    one.before_save()
    images = images_of(one.state)
    uninterrupted = [one.step() for _ in range(4)]
    other = everything.Everything(1)
    fill(other.state, images)
    other.after_load()
    assert [other.step() for _ in range(4)] == uninterrupted
    assert other.picture() == one.picture()

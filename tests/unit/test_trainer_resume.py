"""Training that was saved and restored into fresh objects goes on bit by bit as if it never stopped."""

import copy

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from tests.images import fill, images_of
from torch import optim
from torch.optim import lr_scheduler as lrs

import holdfast

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


SCHEDULERS = {
    "StepLR": lambda o: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 2, 6]),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda n: 0.9),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 6),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.001, 0.1, step_size_up=3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3),
    "SequentialLR": sequence,
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], o),
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


def train(state, steps):
    """One number per step that depends on everything so far."""
    found = []
    for _ in range(steps):
        x = torch.randint(0, 11, (16,))
        loss = torch.nn.functional.cross_entropy(state["model"](x), (x + 1) % 11)
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        if "scheduler" in state:
            state["scheduler"].step()
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
    assert [g["lr"] for g in fresh["optimizer"].param_groups] == [g["lr"] for g in state["optimizer"].param_groups]
    return uninterrupted, restored


def test_every_scheduler_goes_on():
    for name, scheduler in SCHEDULERS.items():
        uninterrupted, restored = resume(lambda seed, s=scheduler: build(seed, scheduler=s, lr=0.01))
        assert restored == uninterrupted, name


def test_a_plateau_is_remembered():
    def make(seed):
        state = build(seed, scheduler=None)
        state["plateau"] = lrs.ReduceLROnPlateau(state["optimizer"], patience=1)
        return state

    state = make(0)
    for loss in (1.0, 2.0):
        state["plateau"].step(loss)
    fresh = fill(make(1), images_of(state))
    for one in (state, fresh):
        one["plateau"].step(3.0)
    assert fresh["optimizer"].param_groups[0]["lr"] == state["optimizer"].param_groups[0]["lr"] == 1e-4


OPTIMIZERS = [
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "lr": 0.01}),
    (optim.Adam, {"fused": True}),
    (optim.AdamW, {"amsgrad": True, "foreach": True}),
    (optim.Adagrad, {}),
    (optim.Adadelta, {}),
    (optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (optim.NAdam, {}),
    (optim.RAdam, {}),
    (optim.Adamax, {}),
    (optim.ASGD, {}),
    (optim.Rprop, {}),
] + [(getattr(optim, name), {}) for name in ("Adafactor",) if hasattr(optim, name)]


def test_every_optimizer_goes_on():
    for kind, options in OPTIMIZERS:
        uninterrupted, restored = resume(lambda seed, k=kind, o=options: build(seed, k, None, **o))
        assert restored == uninterrupted, kind


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

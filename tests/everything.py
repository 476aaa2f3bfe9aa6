"""A training whose state holds one of every kind of thing, and whose every step depends on all of it."""

import copy
import dataclasses
import random
from typing import Any, cast

import numpy as np
import torch
from tests.subclasses import Momentum8bit
from torch.optim import lr_scheduler as lrs
from torch.optim import swa_utils

import holdfast

HALF_BYTE = getattr(torch, "uint4", torch.uint8)


@dataclasses.dataclass
class Curriculum:
    """A type of the user's own, with a tensor inside."""

    stage: str
    weights: torch.Tensor


def teach() -> None:
    """Register it: to be done in every process."""
    holdfast.register(
        Curriculum,
        name="test.Curriculum",
        encode=lambda c: {"stage": c.stage, "weights": c.weights},
        decode=lambda d: Curriculum(**d),
    )


class Loader:
    """A data loader that goes on in the middle of an epoch."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = []
        self.epoch = 0

    def next(self) -> int:
        if not self.order:
            self.order = torch.randperm(6, generator=self.generator).tolist()
            self.epoch += 1
        return self.order.pop()

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": {"order": list(self.order), "rng": self.generator.get_state()}, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.epoch = list(state["sampler"]["order"]), state["epoch"]
        self.generator.set_state(state["sampler"]["rng"])


class Dice:
    """The random state of Python and numpy, as objects with a state of their own."""

    def state_dict(self) -> dict[str, Any]:
        return {"python": random.getstate(), "numpy": np.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])


class Net(torch.nn.Module):
    """Channels last, batch norm, dropout, tied weights; buffers of rare dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.phase: torch.Tensor
        self.mask: torch.Tensor
        self.codes: torch.Tensor
        self.conv = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.2)
        self.up = torch.nn.Linear(4, 4)
        self.down = torch.nn.Linear(4, 4, bias=False)
        self.down.weight = self.up.weight
        self.register_buffer("scale", torch.rand(4).to(torch.float8_e4m3fn))
        self.register_buffer("phase", torch.polar(torch.ones(4), torch.rand(4)))
        self.register_buffer("mask", (torch.rand(4, 4) > 0.5).float().to_sparse())
        self.register_buffer("codes", torch.randint(0, 16, (4,), dtype=torch.uint8).view(HALF_BYTE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        x = self.down(self.up(x)) * self.scale.float() + self.phase.real * self.codes.view(torch.uint8)
        return torch.sparse.mm(self.mask, x.t()).square().mean()


class Everything:
    """The training; `state` is what is saved."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.net, self.table, self.small = Net(), torch.nn.Embedding(8, 4, sparse=True), torch.nn.Linear(4, 4)
        self.probe = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.adam = torch.optim.AdamW(
            [{"params": self.net.conv.parameters()}, {"params": self.net.up.parameters(), "lr": 0.01}], amsgrad=True
        )
        self.others = {
            "sparse": torch.optim.SparseAdam(self.table.parameters()),
            "eight": Momentum8bit(self.small.parameters(), lr=0.01),
            "newton": torch.optim.LBFGS([self.probe], lr=0.1, max_iter=2),
        }
        parts: list[Any] = [lrs.LinearLR(self.adam, total_iters=3), lrs.OneCycleLR(self.adam, 0.1, total_steps=20)]
        self.schedule = lrs.SequentialLR(self.adam, parts, milestones=[3])
        self.plateau = lrs.ReduceLROnPlateau(self.others["eight"], patience=0)
        self.average = swa_utils.AveragedModel(self.net.up, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        self.numpy = np.random.default_rng(seed)
        self.state: dict[str, Any] = {
            "net": self.net,
            "rest": {"table": self.table, "small": self.small, "probe": self.probe},
            "adam": self.adam,
            "others": self.others,
            "schedules": [self.schedule, self.plateau],
            "average": self.average,
            "ema": {name: p.detach().clone() for name, p in self.small.named_parameters()},
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0 ** (3 + seed), growth_interval=2),
            "loader": Loader(seed),
            "dice": Dice(),
            "torch": {"now": torch.get_rng_state(), "own": torch.Generator().manual_seed(seed)},
            "numpy": self.numpy.bit_generator.state,
            "curriculum": Curriculum("begin", torch.zeros(4)),
            "progress": {"step": 0, "seen": [], "best": float("inf"), 1: {"x", 2}, "big": 2**70 + seed},
        }

    def before_save(self) -> None:
        """What has no object of its own is put into the state."""
        self.state["torch"]["now"] = torch.get_rng_state()
        self.state["numpy"] = self.numpy.bit_generator.state

    def after_load(self) -> None:
        """And taken out of it."""
        torch.set_rng_state(self.state["torch"]["now"])
        self.numpy.bit_generator.state = self.state["numpy"]

    def step(self) -> float:
        """One step of everything; a number that depends on it all."""
        state, progress = self.state, self.state["progress"]
        i = state["loader"].next()
        noise = random.random() + np.random.rand() + self.numpy.random()
        x = torch.randn(4, 3, 5, 5) + torch.rand((), generator=state["torch"]["own"]) + noise
        rows = self.table(torch.tensor([i]))
        loss = self.net(x) + self.small(rows).square().mean() + self.curriculum_loss()
        for optimizer in (self.adam, *self.others.values()):
            optimizer.zero_grad()
        state["scaler"].scale(loss).backward()
        state["scaler"].step(self.adam)
        self.others["sparse"].step()
        self.others["eight"].step()
        state["scaler"].update()
        probe = float(cast("Any", self.others["newton"].step(self.closure)).detach())
        self.average.update_parameters(self.net.up)
        for name, p in self.small.named_parameters():
            state["ema"][name].lerp_(p.detach(), 0.1)
        self.schedule.step()
        self.plateau.step(loss.item())
        progress["step"] += 1
        progress["seen"].append(i)
        progress["best"] = min(progress["best"], loss.item())
        state["curriculum"] = Curriculum(f"step {progress['step']}", self.small.bias.detach().clone())
        return loss.item() + probe + sum(e.sum().item() for e in state["ema"].values())

    def curriculum_loss(self) -> torch.Tensor:
        return (self.small.bias * self.state["curriculum"].weights).sum()

    def closure(self) -> Any:
        self.others["newton"].zero_grad()
        loss = (self.probe - 1).square().sum() + self.probe.prod()
        loss.backward()
        return loss

    def picture(self) -> dict[str, Any]:
        """Everything, as values that can be compared."""
        self.before_save()
        found = {key: x.state_dict() if hasattr(x, "state_dict") else x for key, x in self.state.items()}
        found["others"] = {key: o.state_dict() for key, o in self.others.items()}
        found["rest"] = [self.table.state_dict(), self.small.state_dict(), self.probe]
        found["schedules"] = [s.state_dict() for s in (self.schedule, self.plateau)]
        found["torch"] = [self.state["torch"]["now"], self.state["torch"]["own"].get_state()]
        found["curriculum"] = dataclasses.asdict(self.state["curriculum"])
        return copy.deepcopy(plain(found))


def plain(x: Any) -> Any:  # noqa: PLR0911  (one per kind of thing)
    """Tensors as their bytes and form, so that `==` compares bit by bit."""
    if isinstance(x, torch.Tensor):
        if hasattr(x, "tensor_attrs"):
            return [type(x).__name__, *(plain(getattr(x, name)) for name in x.tensor_attrs)]
        if x.is_sparse:
            return [plain(x._indices()), plain(x._values())]
        raw = x.detach().contiguous().reshape(-1).view(torch.uint8)
        return (str(x.dtype), tuple(x.shape), x.stride(), bytes(raw.numpy()))
    if isinstance(x, np.ndarray):
        return (str(x.dtype), x.shape, x.tobytes())
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(plain(value) for value in x)
    return x

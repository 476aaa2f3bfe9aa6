"""What forked ranks do with sharded models: FSDP2, HSDP, tensor parallelism, DTensors as they are."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import Linear, Module, Sequential

import holdfast
from holdfast.errors import HoldfastError
from holdfast.trainer import dtensor

Tell = Callable[[Any], None]
State = dict[str, Any]


class Tied(Module):
    """A small language model whose embedding is its head, of a vocabulary that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))
        self.head = Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(3))
        self.seen: torch.Tensor

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        self.seen += 1
        out: torch.Tensor = self.head(x)
        return out


class Block(Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(6)
        self.up = Linear(6, 700)
        self.down = Linear(700, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


class Feed(Module):
    """What tensor parallelism cuts: columns of the first, rows of the second."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = Linear(6, hidden)
        self.down = Linear(hidden, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.up(x).relu())
        return out


class AppState:
    """A model and its optimizer as the tutorial of torch DCP has them: one object, which asks torch for its state."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.model = Sequential(Linear(6, 7), Linear(7, 6))
        for part in (*self.model, self.model):
            fully_shard(part, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def state_dict(self) -> State:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: State) -> None:
        parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(self.model, self.optimizer, **parts)

    def step(self) -> float:
        loss = self.model(torch.randn(4, 6)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


# Models --------------------------------------------------------------------------------------------------------------
def tied(mesh: DeviceMesh, **options: Any) -> Module:
    model = Tied()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
        fully_shard(model.blocks[i], mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def feed(mesh: DeviceMesh, hidden: int) -> Feed:
    return parallelize_module(Feed(hidden), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})  # type: ignore[return-value]


def on_two(seed: int) -> State:
    """FSDP2 in several ways, one of them with empty shards, and DTensors that belong to no module."""
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", (2,))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    kept = tied(mesh, reshard_after_forward=False, mp_policy=half)
    wrapped = torch.compile(tied(mesh), backend="eager")
    compiled = tied(mesh)
    compiled.compile(backend="eager")
    offloaded = Sequential(Linear(6, 1), Linear(1, 6))
    fully_shard(offloaded, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    models = {"kept": kept, "wrapped": wrapped, "compiled": compiled, "offloaded": offloaded}
    return with_optimizers(models) | {"loose": loose(mesh, seed), "step": -1, "app": AppState(mesh)}


def on_four(seed: int) -> State:
    """HSDP, FSDP2 over tensor parallelism, and tensor parallelism whose tensors do not know of data parallelism."""
    torch.manual_seed(seed)
    replicated = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    both = feed(mesh["tp"], 10)
    fully_shard(both, mesh=mesh["dp"])
    models = {"hsdp": tied(replicated), "both": both, "tp": feed(mesh["tp"], 100_000)}
    return with_optimizers(models) | {"loose": loose(mesh, seed), "step": -1}


def with_optimizers(models: dict[str, Any]) -> State:
    kinds: list[tuple[Any, State]] = [
        (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
        (torch.optim.NAdam, {"lr": 0.01}),
        (Rows, {"lr": 0.01}),
    ]
    state: State = dict(models)
    for (name, model), (kind, options) in zip(models.items(), kinds, strict=False):
        state[f"{name}_optim"] = kind(model.parameters(), **options)
    return state


class Rows(torch.optim.Optimizer):
    """Keeps a tensor of another shape than its parameter has, as factored optimizers do: torch replicates it."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["rows"] = p.new_zeros((*p.shape[:-1], 2))
                    state["rows"].add_(group["lr"])
                    p.sub_(p.grad * group["lr"])


def loose(mesh: DeviceMesh, seed: int) -> State:
    """Tensors of all shapes, sharded along their last dimension, and one along both."""
    placements = [Replicate(), Shard(0)][-mesh.ndim :]
    made: State = {
        name: distribute_tensor(
            torch.full(shape, float(seed)), mesh, [placements[0], Shard(len(shape) - 1)][-mesh.ndim :]
        )
        for name, shape in {"odd": (3, 5), "one": (1,), "none": (4, 0)}.items()
    }
    made["scalar"] = distribute_tensor(torch.tensor(float(seed)), mesh, [Replicate()] * mesh.ndim)
    if mesh.ndim == 2:
        made["both"] = distribute_tensor(torch.full((5, 7), float(seed)), mesh, [Shard(1), Shard(0)])
        made["same"] = distribute_tensor(torch.full((10,), float(seed)), mesh, [Shard(0), Shard(0)])
    return made


# Training ------------------------------------------------------------------------------------------------------------
def step_of(state: State, step: int) -> list[float]:
    """One step of every model; their losses."""
    losses = []
    for name, model in state.items():
        if not isinstance(model, Module):
            continue
        # Tensor parallelism wants the same on all ranks of a row, and every rank of a column is to see its own.
        torch.manual_seed(1000 * step + (0 if name in ("both", "tp") else dist.get_rank()))
        loss = model(torch.randint(11, (4,)) if hasattr(model, "embedding") else torch.randn(4, 6)).square().mean()
        loss.backward()
        state[f"{name}_optim"].step()
        state[f"{name}_optim"].zero_grad()
        with torch.no_grad():  # leaves gathered parameters behind where they are not sharded again after it
            model(torch.randint(11, (4,)) if hasattr(model, "embedding") else torch.randn(4, 6))
        losses.append(float(loss.detach()))
    if "app" in state:
        losses.append(state["app"].step())
    for tensor in state["loose"].values():
        with torch.no_grad():
            tensor.mul_(1.5).add_(step)
    state["step"] = step
    return losses


def digest(state: State) -> dict[str, str]:
    """Of the bytes of this rank of every tensor."""
    found = {}
    for name, tensor in tensors(state):
        local = dtensor.local_of(tensor).detach().contiguous()
        found[name] = hashlib.sha256(local.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def tensors(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    for name, x in state.items():
        if isinstance(x, AppState):
            yield from tensors({f"{name}.model": x.model, f"{name}.optimizer": x.optimizer})
        elif isinstance(x, Module):
            yield from ((f"{name}.{key}", t) for key, t in x.state_dict().items())
        elif isinstance(x, torch.optim.Optimizer):
            for i, entries in enumerate(x.state.values()):
                yield from ((f"{name}.{i}.{key}", t) for key, t in entries.items())
        elif isinstance(x, dict):
            yield from ((f"{name}.{key}", t) for key, t in x.items())


def interrupted(tell: Tell, url: str, build: Callable[[int], State], *, save_at: int, steps: int) -> None:
    """Save up to a step, train on without saving, tell what happened, and stay until killed."""
    state = build(0)
    ckpt = holdfast.Checkpointer(url)
    start = ckpt.load(state)
    forecast = ckpt._plan._template
    lost: list[Any] = []
    saved: Any = None
    for step in range(0 if start is None else start + 1, steps):
        losses = step_of(state, step)
        if step > save_at:
            lost.append(losses)
            continue
        if "kept" in state:
            assert not isinstance(state["kept"].blocks[0].up.weight, DTensor), "gathered, and so to be put back"
        with CommDebugMode() as sent:
            save = ckpt.save(step, state)
        assert save is not None
        assert (sent.get_total_counts() > 0) is (step == 0), "only the first save of an attempt asks other ranks"
        assert ckpt._plan._template is forecast
        ckpt._ranks.talk = no_agreement  # type: ignore[method-assign]
        if step == save_at:
            save.wait("memory", timeout_s=40)
            saved = digest(state)
    tell((start, lost, saved, digest(state)))
    time.sleep(1000)


def no_agreement() -> Any:
    raise AssertionError("a save in steady state asks nobody")


def resumed(tell: Tell, url: str, build: Callable[[int], State], *, steps: int, whole: str) -> Any:
    """Load into fresh objects made otherwise, train on; what was loaded and where it ended.

    Tensors below `whole`, and those of no module, are put together by torch.
    """
    state = build(5)
    with holdfast.Checkpointer(url, keep_last=3) as ckpt:
        start = ckpt.load(state)
        assert start is not None
        layout = ckpt._plan._template
        loaded = digest(state)
        found = []
        for step in range(start + 1, steps):
            found.append(step_of(state, step))
            ckpt.save(step, state)
        # The forecast of a load is what is saved: nothing was laid out anew.
        assert ckpt._plan._template is layout
    return start, found, loaded, digest(state), together(state, whole)


def together(state: State, model: str) -> State:
    """What torch puts together of a model, its optimizer and the tensors of no module."""
    wanted = (f"{model}.", f"{model}_optim.", "loose.")
    return {
        name.replace("_checkpoint_wrapped_module.", ""): whole_of(tensor)
        for name, tensor in tensors(state)
        if name.startswith(wanted)
    }


def whole_of(tensor: torch.Tensor) -> Any:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().numpy()


def on_another_mesh(tell: Tell, url: str) -> State:
    """What two ranks find of `both` that four saved by another mesh; everything else is theirs to miss."""
    torch.manual_seed(9)
    mesh = init_device_mesh("cpu", (2,))
    model = Feed(10)
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    state: State = {"both": model, "both_optim": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)}
    state["loose"] = loose(mesh, 9)
    with warnings.catch_warnings(), holdfast.Checkpointer(url) as ckpt:
        warnings.simplefilter("ignore", RuntimeWarning)
        assert ckpt.load(state, strict=False) == 2
        assert ckpt.last_load is not None
        assert {d.kind for d in ckpt.last_load.differences} == {"unexpected"}
    found = together(state, "both")
    # And without an agent, each rank by itself.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert holdfast.load(url, state, only=["both", "both_optim"]) == 2
    assert all((whole_of(p) == found[f"both.{name}"]).all() for name, p in model.named_parameters())
    return found


# Structures that change ----------------------------------------------------------------------------------------------
def changing(tell: Tell, url: str) -> tuple[int | None, dict[str, str], dict[str, str]]:
    """Save what no forecast knew, then tensors that came later; digests before and after loading them anew."""
    state = grown(2)
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(state)
        for step in range(2):
            # The second layer never gets a gradient, so it has no optimizer state.
            state["model"][0](torch.randn(2, 6)).sum().backward()
            state["optim"].step()
            ckpt.save(step, state)
        state |= grown(3, model=state["model"], optim=state["optim"])
        ckpt.save(2, state)
        before = digest(state)
    fresh = grown(3)
    with holdfast.Checkpointer(url) as ckpt:
        start = ckpt.load(fresh)
    return start, before, digest(fresh)


def with_frozen_shards(tell: Tell, url: str) -> tuple[int | None, dict[str, str], dict[str, str]]:
    """Most of the parameters are no optimizer's; one write into them, and a load of all of it."""
    state = adapted()
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(state)
        for step in range(4):
            state["model"](torch.randn(2, 6)).square().sum().backward()
            state["optim"].step()
            if step == 2:
                dtensor.local_of(state["model"][0].weight).data.add_(1)
            ckpt.save(step, state)
        before = digest(state)
    fresh = adapted()
    with holdfast.Checkpointer(url) as ckpt:
        start = ckpt.load(fresh)
    return start, before, digest(fresh)


def adapted() -> State:
    mesh = init_device_mesh("cpu", (2,))
    model = Sequential(Linear(6, 100_000), Linear(100_000, 6))
    model[0].requires_grad_(False)
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    return {"model": model, "optim": torch.optim.AdamW(model[1].parameters(), lr=0.01)}


def grown(tensors: int, **keep: Any) -> State:
    mesh = init_device_mesh("cpu", (2,))
    if not keep:
        model = Sequential(Linear(6, 7), Linear(7, 6))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model[1], mesh=mesh)
        keep = {"model": model, "optim": torch.optim.AdamW(model.parameters())}
    more = {f"t{i}": distribute_tensor(torch.randn(5, i + 1), mesh, [Shard(i % 2)]) for i in range(tensors)}
    return {**keep, "more": more}


# What is refused -----------------------------------------------------------------------------------------------------
def refused(tell: Tell, url: str) -> dict[str, tuple[str, str, str]]:
    """The error that each of these states gets, on this rank."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    alone = [dist.new_group([r]) for r in range(2)][rank]
    uneven = partial(DTensor.from_local, run_check=False, shape=torch.Size((7, 2)), stride=(2, 1))
    states: dict[str, Callable[[], State]] = {
        "partial": lambda: {"net": {"w": DTensor.from_local(torch.ones(2), mesh, [Partial()])}},
        "own": lambda: {"mine": holdfast.per_rank({"w": distribute_tensor(torch.ones(4), mesh, [Shard(0)])})},
        "uneven": lambda: {"w": uneven(torch.zeros(3 + rank, 2), mesh, [Shard(0)])},
        "shape": lambda: {"w": distribute_tensor(torch.zeros(4 + 2 * rank), mesh, [Shard(0)], src_data_rank=None)},
        "fsdp1": lambda: {"model": FullyShardedDataParallel(Linear(2, 2), device_id=torch.device("cpu"))},
        "bytes": lambda: {"net": torch.nn.ParameterDict({"w": same_in_name_only(mesh, rank)})},
    }
    found = {}
    with holdfast.Checkpointer(url) as ckpt:
        for name, build in states.items():
            found[name] = error_of(lambda build=build: ckpt.prepare(build()))  # type: ignore[misc]
    with holdfast.Checkpointer(f"{url}-{rank}", group=alone) as ckpt:
        found["group"] = error_of(lambda: ckpt.prepare({"w": distribute_tensor(torch.zeros(4), mesh, [Shard(0)])}))
    return found


def same_in_name_only(mesh: DeviceMesh, rank: int) -> DTensor:
    return DTensor.from_local(torch.full((3,), float(rank)), mesh, [Replicate()], run_check=False)


def error_of(call: Callable[[], object]) -> tuple[str, str, str]:
    try:
        call()
    except HoldfastError as e:
        return e.kind, e.message, e.hint
    return "", "", ""

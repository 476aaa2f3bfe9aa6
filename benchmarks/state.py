"""The state every variant saves and loads: a bf16 transformer and an optimizer with fp32 master copies.

14 bytes per parameter in four tensors each: 2.06 GB in 592 tensors at full size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from awscrt import checksums
from torch import nn

from benchmarks.shm import raw

_PATTERN_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of the transformer."""

    layers: int
    width: int
    vocabulary: int
    context: int = 1024


SIZES = {
    "full": Size(layers=12, width=848, vocabulary=50_304),
    "quick": Size(layers=12, width=96, vocabulary=4_096, context=256),
}


class Block(nn.Module):
    """The parameters of one layer. Never run: only its tensors matter here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class Transformer(nn.Module):
    """GPT-2 in shape, with the head tied away."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)


class MasterAdamW(torch.optim.Optimizer):
    """AdamW for bf16 parameters: an fp32 master copy and fp32 moments of each, as mixed precision has them."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 0})

    def allocate(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """The three fp32 tensors of a parameter, made at first use."""
        kept: dict[str, torch.Tensor] = self.state[p]
        if not kept:
            kept |= {key: torch.zeros_like(p, dtype=torch.float32) for key in ("master", "exp_avg", "exp_avg_sq")}
            kept["master"].copy_(p.detach())  # no history: these are plain values
        return kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """In place. Why: torch's own would round the fp32 copies to the parameters' bf16."""
        params = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]  # numbers, or torch's names
        for p, name in zip(params, names, strict=True):
            for key, live in self.allocate(p).items():
                if live is not state_dict["state"][name][key]:
                    live.copy_(state_dict["state"][name][key])
        for group, given in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {key: value for key, value in given.items() if key != "params"}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One AdamW update on the master copies, rounded into the parameters."""
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.float(), group)

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        kept, (beta_1, beta_2) = self.allocate(p), group["betas"]
        kept["exp_avg"].lerp_(grad, 1 - beta_1)
        kept["exp_avg_sq"].lerp_(grad.square(), 1 - beta_2)
        corrected = (kept["exp_avg_sq"] / (1 - beta_2 ** group["step"])).sqrt_().add_(group["eps"])
        kept["master"].mul_(1 - group["lr"] * group["weight_decay"])
        kept["master"].addcdiv_(kept["exp_avg"], corrected, value=-group["lr"] / (1 - beta_1 ** group["step"]))
        p.copy_(kept["master"])


def build(size: Size, *, seed: int) -> dict[str, Any]:
    """`{"model": ..., "optimizer": ...}` with every tensor allocated, faulted and filled."""
    with torch.device("meta"):
        model = Transformer(size)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    optimizer = MasterAdamW(model.parameters())
    pattern = torch.randn(_PATTERN_VALUES, generator=torch.Generator().manual_seed(seed))
    for index, p in enumerate(model.parameters()):
        for offset, t in enumerate((p.data, *optimizer.allocate(p).values())):
            _fill(t, pattern.roll(4 * index + offset))
    return {"model": model, "optimizer": optimizer}


def _fill(t: torch.Tensor, pattern: torch.Tensor) -> None:
    """Tile the pattern: random values for 2 GB would cost seconds, and no copy looks at values."""
    flat = t.view(-1)
    whole = flat.numel() // pattern.numel() * pattern.numel()
    flat[:whole].view(-1, pattern.numel()).copy_(pattern.expand(whole // pattern.numel(), -1))
    flat[whole:].copy_(pattern[: flat.numel() - whole])


def tensors(state: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Every tensor of the state, in a fixed order."""
    for p in state["model"].parameters():
        yield p.data
        yield from (t for t in state["optimizer"].state[p].values() if isinstance(t, torch.Tensor))


def state_bytes(state: dict[str, Any]) -> int:
    """What its tensors hold together."""
    return sum(t.nbytes for t in tensors(state))


def fingerprint(state: dict[str, Any]) -> int:
    """CRC64NVME of all tensors one after the other: any wrongly loaded byte changes it."""
    crc = 0
    for t in tensors(state):
        crc = int(checksums.crc64nvme(raw(t).numpy().data, crc))
    return crc

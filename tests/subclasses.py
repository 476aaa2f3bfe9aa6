"""A tensor subclass and an optimizer that keeps its state in it: of the same build as torchao's 8-bit ones."""

from typing import Any, cast

import torch

aten: Any = torch.ops.aten


class Codes(torch.Tensor):
    """Eight bits per element, a scale per block, a table: of the same build as torchao's OptimState8bit."""

    tensor_attrs = ("codes", "scale", "qmap")

    @staticmethod
    def __new__(cls, codes, scale, qmap, signed):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, device=codes.device, dtype=torch.float32)

    def __init__(self, codes, scale, qmap, signed):
        self.codes, self.scale, self.qmap, self.signed = codes, scale, qmap, signed

    def __tensor_flatten__(self):
        return list(self.tensor_attrs), [self.signed]

    @classmethod
    def __tensor_unflatten__(cls, inner, context, outer_size=None, outer_stride=None):
        make: Any = cls
        return make(*(inner[name] for name in cls.tensor_attrs), *context)

    @classmethod
    def zeros(cls, shape, signed=True, device=None):
        codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        scale = torch.zeros(codes.numel() // 4, device=device)
        return cls(codes, scale, torch.linspace(-1, 1, 256, device=device), signed)

    def dequantize(self):
        return (self.qmap[self.codes.long()].view(-1, 4) * self.scale[:, None]).view(self.codes.shape)

    def quantize_(self, x):
        blocks = x.reshape(-1, 4)
        self.scale.copy_(blocks.abs().amax(1).clamp(min=1e-12))
        far = (blocks / self.scale[:, None]).reshape(-1, 1) - self.qmap
        self.codes.copy_(far.abs().argmin(1).view(self.codes.shape))
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types, args=(), kwargs=None):  # type: ignore[override]
        if func is aten.detach.default:
            return args[0]
        if func in (aten._to_copy.default, aten.clone.default):
            x, make = args[0], cast("Any", cls)
            return make(*(getattr(x, name).clone() for name in cls.tensor_attrs), x.signed)
        raise NotImplementedError(func)


class Momentum8bit(torch.optim.Optimizer):
    """SGD whose momentum is kept in eight bits, but for small parameters."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["momentum"] = Codes.zeros(p.shape, device=p.device) if p.numel() >= 8 else torch.zeros_like(p)
                state["step"] += 1
                if p.is_meta:
                    continue
                momentum = state["momentum"]
                now = (momentum.dequantize() if isinstance(momentum, Codes) else momentum) * 0.9 + p.grad
                momentum.quantize_(now) if isinstance(momentum, Codes) else momentum.copy_(now)
                p.sub_(now, alpha=group["lr"])

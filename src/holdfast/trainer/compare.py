"""The one comparison of replicas: what is split among ranks must be the same bytes on all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from holdfast.format.checksum import crc64nvme
from holdfast.trainer.capture import Captured


def fingerprints(captured: Captured, *, besides: Collection[str] = ()) -> dict[str, int]:
    """CRC64NVME of the bytes of every tensor that may be split among its holders, `besides` left out."""
    wanted = (fqn for fqn, spec in captured.structure.shared.items() if spec.splittable and fqn not in besides)
    return {fqn: _checksum(captured.tensors[fqn]) for fqn in wanted}


def first_difference(per_rank: Sequence[Mapping[str, int]]) -> str | None:
    """The first tensor whose fingerprint differs between two ranks that hold it."""
    seen: dict[str, int] = {}
    for rank in per_rank:
        for fqn, crc in rank.items():
            if seen.setdefault(fqn, crc) != crc:
                return fqn
    return None


def _checksum(tensor: torch.Tensor) -> int:
    host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return crc64nvme(host.reshape(-1).view(torch.uint8).numpy().data)

"""The comparisons of ranks: what is split among them must be the same bytes, unmarked plain values should be alike."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from holdfast.errors import ReplicaMismatchError, UnsupportedValueError
from holdfast.format.checksum import crc64nvme
from holdfast.format.layout import entry_name
from holdfast.model.image import Piece
from holdfast.trainer import values
from holdfast.trainer.capture import Captured
from holdfast.trainer.ranks import Talk
from holdfast.trainer.stage import rectangle
from holdfast.trainer.values import copyable


def compare_replicas(captured: Captured, pieces: Sequence[Piece], before: Collection[str], talk: Talk) -> set[str]:
    """Compare the bytes of the pieces that this rank holds together with others. Collective.

    Args:
        before: names of entries that were compared before.

    Returns: the names of those that were compared now.
    Raises: ReplicaMismatchError, on all ranks, naming the tensor whose bytes differ.
    """
    seen = talk.each(lambda: fingerprints(captured, pieces, besides=before))
    different = first_difference(seen)
    if different is not None:
        raise ReplicaMismatchError(
            f"ranks hold different bytes of {different!r}, which should be a replica",
            hint="broadcast the state from rank 0 before training (DDP does), mark what differs with "
            "holdfast.per_rank(...), or give ranks that train different models a group of their own",
        )
    return set(seen[talk.rank])


def compare_plain(tree: Mapping[str, Any], told: Sequence[Mapping[str, str]], talk: Talk) -> str:
    """What is saved of unmarked plain values is rank 0's: a warning where that is not what another rank has.

    Collective.

    Args:
        told: the `plain_digests` of every rank.

    Returns: empty where none differ, or none of this rank.
    """
    item = first_unlike(told)
    if item is None:
        return ""
    found = first_unlike(talk.gather(leaf_digests(item[0], tree.get(item[0]))))
    if found is None:  # only the order in a dict
        return ""
    path, ranks = found
    if talk.rank not in (0, *ranks):
        return ""
    return (
        f"the plain value {path!r} of rank {', '.join(map(str, ranks))} differs from rank 0's, which alone is saved"
        "\n  hint: mark what belongs to each rank with holdfast.per_rank(...), or make it alike on all"
    )


def fingerprints(captured: Captured, pieces: Iterable[Piece], *, besides: Collection[str] = ()) -> dict[str, int]:
    """CRC64NVME of the bytes of those pieces that are there already, by name of their entry, `besides` left out."""
    found: dict[str, int] = {}
    for piece in pieces:
        name = entry_name(piece)
        if piece.fqn in captured.tensors and name not in besides:
            boxes = captured.structure.boxes_of(piece.fqn)
            found[name] = _checksum(rectangle(captured.tensors[piece.fqn], piece, boxes))
    return found


def first_difference(per_rank: Sequence[Mapping[str, int]]) -> str | None:
    """The first tensor whose fingerprint differs between two ranks that hold it."""
    seen: dict[str, int] = {}
    for rank in per_rank:
        for fqn, crc in rank.items():
            if seen.setdefault(fqn, crc) != crc:
                return fqn
    return None


def plain_digests(tree: Mapping[str, Any]) -> dict[str, str]:
    """A digest per item of the plain values that are rank 0's. A value that cannot be saved is like no other."""
    return {path: _digest(value) for path, value in tree.items()}


def leaf_digests(path: str, value: Any) -> dict[str, str]:
    """The same, of everything in the value at `path`."""
    return {where: _digest(leaf) for where, leaf in _leaves(path, value)}


def first_unlike(per_rank: Sequence[Mapping[str, str]]) -> tuple[str, list[int]] | None:
    """The first path at which another rank differs from rank 0, and which ranks do."""
    for path in dict.fromkeys(path for of_rank in per_rank for path in of_rank):
        unlike = [r for r, of_rank in enumerate(per_rank) if of_rank.get(path) != per_rank[0].get(path)]
        if unlike:
            return path, unlike
    return None


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    for key, item in pairs:
        yield from _leaves(f"{path}.{key}", item)
    if not pairs:
        yield path, value


def _digest(value: Any) -> str:
    try:
        return hashlib.blake2b(values.encode(value), digest_size=16).hexdigest()
    except UnsupportedValueError:
        return ""


def _checksum(tensor: torch.Tensor) -> int:
    host = copyable(tensor.detach()).resolve_conj().resolve_neg().cpu().contiguous()
    return crc64nvme(host.reshape(-1).view(torch.uint8).numpy().data)

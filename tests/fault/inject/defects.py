"""Defects planted into the processes under test, each one a line that somebody could get wrong.

The campaign has to find every one of them, or its silence means nothing.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from typing import Any

from tests.fault.inject.faults import Patch

Function = Callable[..., Any]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of a check."""


def _files_not_synced(patch: Patch) -> None:
    def only_directories(fsync: Function) -> Function:
        return lambda fd: fsync(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else None

    patch("os:fsync", only_directories)


def _directories_not_synced(patch: Patch) -> None:
    def only_files(fsync: Function) -> Function:
        return lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)

    patch("os:fsync", only_files)


def _adopted_images_sealed_anew(patch: Patch) -> None:
    """A new agent computes checksums instead of comparing them: a flipped bit becomes the truth."""

    def seal(check: Function) -> Function:
        def instead(image: Any, expected: Any, headers: Any) -> Any:
            from holdfast.agent.images import seal_image

            return seal_image(image, expected, headers)

        return instead

    patch("holdfast.agent.executor:check_image", seal)


def _loads_not_checked(patch: Patch) -> None:
    """Trainers believe what stands in a slot."""
    for module in ("load", "fill"):
        patch(f"holdfast.trainer.{module}:check_block", lambda check: _nothing)


def _fetches_not_checked(patch: Patch) -> None:
    """What comes from a tier is believed, on the way and in its slot, by agent and trainer."""
    patch("holdfast.format.blocks:BlockTable.check", lambda check: _nothing)
    _loads_not_checked(patch)


def _verify_not_checked(patch: Patch) -> None:
    patch("holdfast.format.blocks:BlockTable.check", lambda check: _nothing)


def _commit_before_the_last_receipt(patch: Patch) -> None:
    """One image there is all there."""
    patch("holdfast.store.commit:_require_images", lambda check: _nothing)
    patch(
        "holdfast.lifecycle.steps:StepRecord.holds_all",
        lambda real: lambda record, images: bool(images) if images is not record.known else real(record, images),
    )


def _no_tombstone(patch: Patch) -> None:
    def but_tombstones(put: Function) -> Function:
        def instead(tier: Any, key: str, *args: Any, **kwargs: Any) -> None:
            if not key.startswith("tombstones/"):
                put(tier, key, *args, **kwargs)

        return instead

    patch("holdfast.tiers.posix.tier:PosixTier.put", but_tombstones)


def _freed_while_in_flush(patch: Patch) -> None:
    """A running flush does not keep its slot."""

    def idle(busy: Any) -> Any:
        return property(lambda occupant: busy.fget(occupant) and occupant.state.value != "held")

    patch("holdfast.lifecycle.slots:Occupant.busy", idle)


def _attempt_not_claimed(patch: Patch) -> None:
    """A restart goes on under the attempt of the run before it."""

    def reuse(claim: Function) -> Function:
        from holdfast.agent.claiming import Claimed

        def instead(shelf: Any, *args: Any) -> Any:
            lineage, highest = shelf.lineage()
            if not highest:
                return claim(shelf, *args)
            shelf.owner = highest
            return Claimed(highest, lineage)

        return instead

    patch("holdfast.agent.claiming:Claiming.claim", reuse)


def _staged_before_it_is_copied(patch: Patch) -> None:
    """The slot is handed over, header and all, while another thread still copies the tensors."""

    def later(fill: Function) -> Function:
        def instead(*args: Any, **kwargs: Any) -> None:
            from holdfast.trainer import filling as module

            copy = module.copy
            module.copy = lambda *tensors, **how: threading.Timer(0.02, copy, tensors, how).start()
            try:
                fill(*args, **kwargs)
            finally:
                module.copy = copy

        return instead

    patch("holdfast.trainer.filling:ImageFiller.fill", later)


def _lineage_not_asked(patch: Patch) -> None:
    patch("holdfast.model.identity:Lineage.__contains__", lambda real: lambda lineage, checkpoint: True)


def _recycled_before_the_removal_is_durable(patch: Patch) -> None:
    """A deleted image's file is given away, and its directory was not synced."""
    deleting = threading.local()

    def marked(delete: Function) -> Function:
        def instead(tier: Any, key: str) -> None:
            deleting.image = key.startswith("images/")
            try:
                delete(tier, key)
            finally:
                deleting.image = False

        return instead

    patch("holdfast.tiers.posix.tier:PosixTier.delete", marked)
    patch(
        "holdfast.tiers.posix.directories:Directories.sync",
        lambda sync: lambda *args: None if getattr(deleting, "image", False) else sync(*args),
    )


DEFECTS: dict[str, Callable[[Patch], None]] = {
    "files are not synced": _files_not_synced,
    "directories are not synced": _directories_not_synced,
    "adopted images are sealed anew": _adopted_images_sealed_anew,
    "loads are not checked": _loads_not_checked,
    "fetches are not checked": _fetches_not_checked,
    "verify checks nothing": _verify_not_checked,
    "commit before the last receipt": _commit_before_the_last_receipt,
    "no tombstone": _no_tombstone,
    "freed while in flush": _freed_while_in_flush,
    "attempt not claimed": _attempt_not_claimed,
    "staged before it is copied": _staged_before_it_is_copied,
    "lineage not asked": _lineage_not_asked,
    "recycled before the removal is durable": _recycled_before_the_removal_is_durable,
}

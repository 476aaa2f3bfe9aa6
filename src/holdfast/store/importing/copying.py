"""Copies a source onto a tier, as a checkpoint of an attempt of its own. One pass over the source; memory is bounded.

In this order, so that whatever dies leaves no checkpoint, or a whole one: the attempt is claimed, on top of the newest
checkpoint; images are uploaded; the manifest appears. Images that were left are swept once another one is newer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from holdfast.errors import AlreadyExistsError, HoldfastError, StepExistsError, UsageError
from holdfast.format import names
from holdfast.format import notes as notes_codec
from holdfast.format.blocks import BlockTable
from holdfast.format.checksum import BLOCK_BYTES, block_count, crc64nvme
from holdfast.format.header import parse_header
from holdfast.format.image import table_of, write_notes, write_plain
from holdfast.model.identity import Attempt, CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.model.notes import Notes
from holdfast.store.attempts import IMPORTER, claim, read_attempts
from holdfast.store.blocks import Progress, aligned_buffer, no_progress
from holdfast.store.catalog import read_catalog
from holdfast.store.commit import commit
from holdfast.store.importing.dcp import KIND as DCP
from holdfast.store.importing.files import open_files
from holdfast.store.importing.images import ImagePlan
from holdfast.store.importing.reading import SourceBytes
from holdfast.store.importing.source import Source, Stored
from holdfast.store.verify import verify_image
from holdfast.tiers.contract import ABANDONED_S, Tier, Upload

UPLOADER = "0.import"
"""What the owner of an import's uploads begins with."""
PART_BYTES = 4 * BLOCK_BYTES
_PARTS_AT_ONCE = 4
_ZEROS = memoryview(bytes(PART_BYTES))


def claim_step(tier: Tier, *, run: str, step: int) -> Attempt:
    """Claim an attempt that stands on the newest checkpoint of the run, for one step above that.

    Raises: StepExistsError, UsageError: the step is not above it; as `store.attempts.claim`.
    """
    names.manifest_key(CheckpointId(1, step))  # a number that no key has is refused before anything is claimed
    attempts, catalog = read_attempts([tier]), read_catalog(tier)
    if not attempts.highest and catalog.committed:
        raise UsageError(
            "checkpoints are there, and no claim of an attempt: this is a copy of a tier that is no home",
            hint="name the home of the run, or an empty directory",
            tier=tier.name,
        )
    newest = catalog.newest(attempts.lineage)
    if newest is not None and step <= newest.id.step:
        kind = StepExistsError if step == newest.id.step else UsageError
        raise kind(
            f"step {step} is not above the newest one, {newest.id}",
            hint=f"say --step {newest.id.step + 1} or more, or name another home",
            step=step,
        )
    parent = None if newest is None else newest.id
    coordinator = f"{IMPORTER}{secrets.token_hex(16)}"
    return claim(tier, run=run, parent=parent, coordinator=coordinator, seen=catalog.highest_attempt)


def copy_source(
    tier: Tier,
    source: Source,
    plans: Sequence[ImagePlan],
    checkpoint: CheckpointId,
    *,
    saved_at_s: int,
    progress: Progress = no_progress,
) -> Manifest:
    """Upload every image and commit the checkpoint, in the name of its attempt, which is ours.

    Atomicity: the manifest's put. Durability: as the tier's. After an error nothing of it stays, as far as the tier
    lets it be removed.

    Raises: CorruptError: bytes of the source are not those that were summed; TierError; SupersededError.
    """
    tier.sweep(owner_prefix=UPLOADER, untouched_s=ABANDONED_S)  # of imports that were killed
    notes = notes_codec.encode(Notes(saved_at_s))
    done: list[tuple[ImageHeader, ImageRecord]] = []
    try:
        with open_files(follow=source.kind != DCP) as files, _pool() as pool:
            source_bytes = SourceBytes(files)
            for plan in plans:
                writer = _ImageWriter(tier, plan, checkpoint, pool, progress)
                done.append(writer.write(source_bytes, notes if plan.number == 0 else b""))
            source_bytes.finish()
    except BaseException:
        with contextlib.suppress(HoldfastError):
            for plan in plans:
                tier.delete(names.image_key(ImageId(checkpoint.attempt, checkpoint.step, 0, plan.number)))
        raise
    return commit(
        tier,
        tier,
        owner=checkpoint.attempt,
        headers=[header for header, _ in done],
        records=[record for _, record in done],
        plain=source.plain,
        notes=notes,
    )


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="holdfast-import")
    try:
        yield pool
    finally:
        pool.shutdown()


class _ImageWriter:
    """One image on its way: filled part by part in this thread, checksummed and written by the pool."""

    def __init__(
        self, tier: Tier, plan: ImagePlan, checkpoint: CheckpointId, pool: ThreadPoolExecutor, progress: Progress
    ) -> None:
        self._tier, self._plan, self._pool, self._progress = tier, plan, pool, progress
        self._layout = plan.template.layout
        self._id = ImageId(checkpoint.attempt, checkpoint.step, 0, plan.number)
        self._head = bytearray(len(plan.template.header))
        plan.template.stamp_header(self._head, checkpoint.attempt, checkpoint.step)
        self._words = [0] * block_count(self._layout.table_start)

    def write(self, source: SourceBytes, notes: bytes) -> tuple[ImageHeader, ImageRecord]:
        """Upload it. Raises: CorruptError; TierError; nothing appears on the tier then."""
        upload = self._tier.upload(names.image_key(self._id), self._layout.size_bytes)
        try:
            self._write_parts(upload, _Filling(self._plan, self._head, source, notes))
            table = memoryview(bytearray(table_of(self._layout, self._words)))
            upload.write(self._layout.table_start, table)
            crc = BlockTable(table, self._layout).whole_crc64nvme
            record = ImageRecord(self._id, self._layout.size_bytes, crc)
            self._publish(upload, record)
        except BaseException:
            upload.abort()
            raise
        self._progress(len(table))
        return parse_header(self._head, self._layout.size_bytes), record

    def _write_parts(self, upload: Upload, filling: _Filling) -> None:
        """A part is filled while others are written; its buffer is used again once it is."""
        buffers = [aligned_buffer(PART_BYTES) for _ in range(_PARTS_AT_ONCE)]
        pending: deque[Future[None]] = deque()
        try:
            for n, begin in enumerate(range(0, self._layout.table_start, PART_BYTES)):
                if len(pending) == len(buffers):
                    pending.popleft().result()
                part = buffers[n % len(buffers)][: min(PART_BYTES, self._layout.table_start - begin)]
                filling.fill(begin, part)
                pending.append(self._pool.submit(self._write_part, upload, begin, part))
            while pending:
                pending.popleft().result()
        finally:
            wait(pending)

    def _write_part(self, upload: Upload, begin: int, part: memoryview) -> None:
        for at in range(0, len(part), BLOCK_BYTES):
            self._words[(begin + at) // BLOCK_BYTES] = crc64nvme(part[at : at + BLOCK_BYTES])
        upload.write(begin, part)
        self._progress(len(part))

    def _publish(self, upload: Upload, record: ImageRecord) -> None:
        """A lost answer to an earlier try shows as a key that is taken: what stands there is read back."""
        try:
            upload.publish(if_absent=True)
        except AlreadyExistsError:
            error = verify_image(self._tier, record.id, record=record).error
            if error is not None:
                raise error from None


class _Filling:
    """The bytes of an image in front of its table, in order: header, entries, plain values, zeros between them."""

    def __init__(self, plan: ImagePlan, head: bytearray, source: SourceBytes, notes: bytes) -> None:
        self._source = source
        layout = plan.template.layout
        self._runs: deque[tuple[int, int, memoryview | Stored]] = deque()
        self._runs.append((0, len(head), memoryview(head)))
        for entry, stored in zip(layout.entries, plan.stored, strict=True):
            if entry.stop > entry.start:
                self._runs.append((entry.start, entry.stop, stored))
        room = bytearray(layout.plain_capacity_bytes)
        alone = dataclasses.replace(layout, plain_start=0)
        write_plain(room, alone, plan.plain)
        write_notes(room, alone, notes)
        self._runs.append((layout.plain_start, layout.plain_start + len(room), memoryview(room)))

    def fill(self, begin: int, part: memoryview) -> None:
        """The bytes from `begin` on. Raises: as reading the source does."""
        done, end = begin, begin + len(part)
        while self._runs and self._runs[0][0] < end:
            start, stop, what = self._runs[0]
            first, last = max(start, begin), min(stop, end)
            part[done - begin : first - begin] = _ZEROS[: first - done]
            into = part[first - begin : last - begin]
            if isinstance(what, memoryview):
                into[:] = what[first - start : last - start]
            else:
                self._source.read_into(what, first - start, into)
            done = last
            if stop > end:
                break
            self._runs.popleft()
        part[done - begin :] = _ZEROS[: end - done]

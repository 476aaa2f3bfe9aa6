"""Prune, sweep and roll-forward: a plan first, a crash anywhere, and no step ever comes back."""

import contextlib
from dataclasses import replace

import pytest
from tests.unit.store_fixtures import (
    begin,
    commit_images,
    entry,
    flip,
    keys,
    make,
    make_image,
    make_sharing,
    put_image,
    save,
    spoil,
    upload,
)

from holdfast.errors import (
    CorruptError,
    FormatVersionError,
    NotFoundError,
    SupersededError,
    TierUnavailableError,
    UsageError,
)
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.format.image import seal, write_notes
from holdfast.format.notes import encode as encode_notes
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.notes import Notes
from holdfast.model.place import Keep
from holdfast.policy.retention import Reason
from holdfast.store.attempts import read_attempts
from holdfast.store.catalog import read_catalog
from holdfast.store.prune import execute_prune, plan_delete, plan_prune
from holdfast.store.quarantine import quarantine, quarantined
from holdfast.store.rollforward import candidates, roll_forward
from holdfast.store.sweep import execute_sweep, plan_sweep
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers import Fault, Faults, LoseAnswer, Raise


class CrashError(Exception):
    """The process is gone."""


@pytest.fixture
def tier():
    tier = MemoryTier(HeapSlots(), name="home")
    begin(tier)
    return tier


def lineage(tier):
    return read_attempts([tier]).lineage


def plan(tier, keep_last=1, **options):
    return plan_prune(read_catalog(tier), lineage(tier), keep=Keep(keep_last), **options)


def prune(tier, keep_last=1, owner=1, **options):
    execute_prune(tier, plan(tier, keep_last, **options), authority=tier, owner=owner)


def loadable(tier):
    return [(e.id.attempt, e.id.step) for e in read_catalog(tier) if e.loadable]


def of(tier, step):
    return [k for k in keys(tier) if f"{step:012d}" in k]


# The plan -------------------------------------------------------------------------------------------------------------
def test_a_plan_says_what_goes_why_and_how_much_and_does_nothing(tier):
    saved = [save(tier, 1, step) for step in (10, 20, 30)]
    before = keys(tier)
    planned = plan(tier, 1)
    assert [(d.id.step, d.reason) for d in planned.deletions] == [(10, Reason.OLD), (20, Reason.OLD)]
    assert [(v.id.step, v.reason) for v in planned.kept] == [(30, Reason.NEWEST)]
    assert planned.size_bytes == sum(r.size_bytes for c in saved[:2] for r in c.records)
    assert planned.tier == "home"
    assert keys(tier) == before


def test_prune_removes_all_of_a_checkpoint_and_nothing_else(tier):
    for step in (10, 20, 30):
        save(tier, 1, step)
    tier.put("images/00000001/000000000010/mine", memoryview(b"foreign"))
    prune(tier, 2)
    assert loadable(tier) == [(1, 20), (1, 30)]
    assert of(tier, 10) == ["images/00000001/000000000010/mine"]
    before = keys(tier)
    prune(tier, 2)
    assert keys(tier) == before


def test_the_order_of_the_lines(tier):
    for step in (10, 20):
        save(tier, 1, step)
    log = []

    class Log(Faults):
        def put(self, key, buffer, *, if_absent=False):
            log.append(("put", key))
            super().put(key, buffer, if_absent=if_absent)

        def delete(self, key):
            log.append(("delete", key))
            super().delete(key)

    execute_prune(Log(tier), plan(tier), authority=tier, owner=1)
    images = [names.image_key(ImageId(1, 10, rank)) for rank in (0, 1)]
    essential = [entry for entry in log if not entry[1].startswith("quarantine/")]
    assert essential == [
        ("put", "tombstones/00000001-000000000010"),
        ("delete", "manifests/00000001-000000000010"),
        *(("delete", key) for key in images),
        ("delete", "tombstones/00000001-000000000010"),
    ]


def test_a_crash_after_any_line_is_finished_by_the_next_plan(tier):
    total = 1
    for n in range(20):
        fresh = MemoryTier(HeapSlots())
        begin(fresh)
        for step in (10, 20, 30):
            save(fresh, 1, step)
        faults = Faults(fresh, Fault("put|delete", LoseAnswer(CrashError()), after=n))
        try:
            execute_prune(faults, plan(fresh), authority=fresh, owner=1)
        except CrashError:
            total += 1
        assert loadable(fresh)[-1] == (1, 30)
        for attempt, step in loadable(fresh):
            assert len([k for k in of(fresh, step) if k.startswith("images/")]) == 2, (attempt, step)
        again = plan(fresh)
        execute_prune(fresh, again, authority=fresh, owner=1)
        assert keys(fresh) == ["attempts/00000001", *of(fresh, 30)]
    assert total > 10


def test_a_tombstone_stays_until_something_newer_is_committed(tier):
    save(tier, 1, 10)
    newest = save(tier, 1, 20)
    tier.put(names.tombstone_key(newest.id), memoryview(b""))
    execute_prune(tier, plan(tier), authority=tier, owner=1)
    assert of(tier, 20) == [names.tombstone_key(newest.id)]
    assert loadable(tier) == [(1, 10)]
    assert plan(tier).deletions == ()
    upload(tier, newest)
    with pytest.raises(NotFoundError):
        commit_images(tier, newest)
    prune(tier)
    assert of(tier, 20) == [names.tombstone_key(newest.id)]
    save(tier, 1, 30)
    prune(tier)
    assert of(tier, 20) == []


def test_the_newest_loadable_is_never_deleted(tier):
    save(tier, 1, 10)
    broken = save(tier, 1, 20)
    tier.delete(broken.images[0].key)
    prune(tier, 1)
    assert loadable(tier) == [(1, 10)]
    with pytest.raises(UsageError, match="never deleted"):
        plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 10)])


def test_protected_checkpoints_stay(tier):
    for step in (10, 20, 30):
        save(tier, 1, step)
    prune(tier, 1, protected=[CheckpointId(1, 10)])
    assert loadable(tier) == [(1, 10), (1, 30)]


def test_a_damaged_checkpoint_goes_when_all_that_is_kept_is_newer(tier):
    for step in (10, 20, 30, 40):
        save(tier, 1, step)
    spoil(tier, names.manifest_key(CheckpointId(1, 20)), b"damaged")
    tier.delete(names.image_key(ImageId(1, 30, 0)))
    planned = plan(tier, 2)
    assert {d.id.step: d.reason for d in planned.deletions} == {}
    save(tier, 1, 50)
    planned = plan(tier, 2)
    assert {d.id.step: d.reason for d in planned.deletions} == {
        10: Reason.OLD,
        20: Reason.DAMAGED,
        30: Reason.DAMAGED,
    }
    prune(tier, 2)
    assert loadable(tier) == [(1, 40), (1, 50)]


def test_what_a_tier_fails_to_read_is_not_damaged_and_stays(tier):
    """A rule may keep it once it can be read."""
    for step in (10, 20, 30, 40):
        save(tier, 1, step)
    sick = Faults(tier, Fault("read_into", Raise(), key=names.manifest_key(CheckpointId(1, 20)), times=None))
    assert isinstance(entry(sick, CheckpointId(1, 20)).problem, TierUnavailableError)
    keep = Keep(1, every_steps=20)
    planned = plan_prune(read_catalog(sick), lineage(tier), keep=keep)
    assert {d.id.step: d.reason for d in planned.deletions} == {30: Reason.OLD}
    planned = plan_prune(read_catalog(tier), lineage(tier), keep=keep)
    assert {d.id.step: d.reason for d in planned.deletions} == {10: Reason.OLD, 30: Reason.OLD}


def test_what_a_newer_holdfast_wrote_is_not_damaged_and_stays(tier):
    for step in (10, 20, 30, 40):
        save(tier, 1, step)
    key = names.manifest_key(CheckpointId(1, 20))
    spoil(tier, key, b"holdfast-manifest 99 0000000000000000 7\n")
    assert isinstance(entry(tier, CheckpointId(1, 20)).problem, FormatVersionError)
    before = of(tier, 20)
    planned = plan(tier)
    assert {d.id.step: d.reason for d in planned.deletions} == {30: Reason.OLD}
    assert [b[0].step for b in planned.blocked] == [10], "it may name images of this one"
    prune(tier)
    assert of(tier, 20) == before
    assert loadable(tier) == [(1, 10), (1, 40)]


def test_abandoned_checkpoints_stay_until_the_new_branch_stands_alone(tier):
    for step in (50, 100):
        save(tier, 1, step)
    begin(tier, CheckpointId(1, 50))
    save(tier, 2, 60)
    prune(tier, 2, owner=2)
    assert loadable(tier) == [(1, 50), (1, 100), (2, 60)]
    save(tier, 2, 70)
    prune(tier, 2, owner=2)
    assert loadable(tier) == [(2, 60), (2, 70)]


def test_a_superseded_owner_prunes_nothing(tier):
    for step in (10, 20):
        save(tier, 1, step)
    planned = plan(tier)
    begin(tier, CheckpointId(1, 10))
    before = keys(tier)
    with pytest.raises(SupersededError):
        execute_prune(tier, planned, authority=tier, owner=1)
    assert keys(tier) == before


def test_explicit_deletion(tier):
    for step in (10, 20, 30):
        save(tier, 1, step)
    planned = plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 20)])
    assert [(d.id.step, d.reason) for d in planned.deletions] == [(20, Reason.ASKED)]
    execute_prune(tier, planned, authority=tier, owner=1)
    assert loadable(tier) == [(1, 10), (1, 30)]
    with pytest.raises(NotFoundError):
        plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 20)])


def test_a_person_may_delete_the_newest_while_another_loads(tier):
    for step in (10, 20):
        save(tier, 1, step)
    execute_prune(tier, plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 20)]), authority=tier, owner=1)
    assert loadable(tier) == [(1, 10)]
    with pytest.raises(UsageError, match="last that can be loaded"):
        plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 10)])


def test_progress_is_told_per_checkpoint(tier):
    for step in (10, 20, 30):
        save(tier, 1, step)
    done = []
    execute_prune(tier, plan(tier), authority=tier, owner=1, done=lambda d: done.append(d.id.step))
    assert done == [10, 20]


# Shared images --------------------------------------------------------------------------------------------------------
def share(tier, first, later):
    """A checkpoint at `first` with a frozen image, and one at `later` that relies on it."""
    frozen = make_image(ImageId(1, first, 0, 1), world_size=1, image_count=2)
    own = make_image(ImageId(1, first, 0), world_size=1, image_count=2)
    base = replace(make(1, first, world_size=1), images=[own, frozen])
    upload(tier, base)
    commit_images(tier, base)
    image = make_image(ImageId(1, later, 0), world_size=1, image_count=2, relies_on=(frozen.record.id,))
    put_image(tier, image)
    commit_images(tier, replace(make(1, later, world_size=1), images=[image, frozen]))
    return frozen


def test_an_image_that_a_kept_manifest_names_stays(tier):
    frozen = share(tier, 10, 20)
    prune(tier)
    assert loadable(tier) == [(1, 20)]
    assert [k for k in of(tier, 10) if k.startswith("images/")] == [frozen.key]
    assert plan_sweep(read_catalog(tier), in_flight=()).images == ()
    save(tier, 1, 30)
    prune(tier)
    assert loadable(tier) == [(1, 30)]
    assert of(tier, 10) == []


@pytest.mark.parametrize("crash_after", range(16))
def test_what_goes_next_is_whole_until_its_own_deletion_begins(tier, crash_after):
    """Steps that share an image are deleted by one plan, which ends anywhere."""
    first = make_sharing(1, 10, None)
    steps = [first, make_sharing(1, 20, first.images[:2]), make_sharing(1, 30, first.images[:2]), make(1, 40)]
    for checkpoint in steps:
        upload(tier, checkpoint)
        commit_images(tier, checkpoint)
    faults = Faults(tier, Fault("put|delete", LoseAnswer(CrashError()), after=crash_after))
    with contextlib.suppress(CrashError):
        execute_prune(faults, plan(tier), authority=tier, owner=1)
    assert all(entry.loadable for entry in read_catalog(tier).committed)
    prune(tier)
    execute_sweep(tier, plan_sweep(read_catalog(tier), in_flight=()), authority=tier, owner=1)
    assert {i.key for i in steps[-1].images} == {k for k in keys(tier) if k.startswith("images/")}


def test_a_manifest_committed_after_the_plan_keeps_its_images(tier):
    frozen = make_image(ImageId(1, 10, 0, 1), world_size=1, image_count=2)
    own = make_image(ImageId(1, 10, 0), world_size=1, image_count=2)
    base = replace(make(1, 10, world_size=1), images=[own, frozen])
    upload(tier, base)
    commit_images(tier, base)
    save(tier, 1, 20)
    planned = plan(tier)
    image = make_image(ImageId(1, 30, 0), world_size=1, image_count=2, relies_on=(frozen.record.id,))
    put_image(tier, image)
    commit_images(tier, replace(make(1, 30, world_size=1), images=[image, frozen]))
    execute_prune(tier, planned, authority=tier, owner=1)
    assert loadable(tier) == [(1, 20), (1, 30)]


def test_a_manifest_that_cannot_be_read_might_name_older_images(tier):
    share(tier, 10, 20)
    save(tier, 1, 30)
    save(tier, 1, 40)
    spoil(tier, names.manifest_key(CheckpointId(1, 20)), b"damaged")
    planned = plan(tier, 3)
    assert [d.id.step for d in planned.deletions] == []
    asked = plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 10)])
    assert asked.deletions == ()
    assert [b[0].step for b in asked.blocked] == [10]
    both = plan_delete(read_catalog(tier), lineage(tier), [CheckpointId(1, 10), CheckpointId(1, 20)])
    assert [d.id.step for d in both.deletions] == [10, 20]


# Sweep ----------------------------------------------------------------------------------------------------------------
def test_sweep_takes_what_no_manifest_and_no_flight_names(tier):
    for step in (10, 20, 50):
        upload(tier, make(1, step))
    save(tier, 1, 30)
    catalog = read_catalog(tier)
    planned = plan_sweep(catalog, in_flight=[CheckpointId(1, 20)])
    assert [(i.step, i.rank) for i in planned.images] == [(10, 0), (10, 1)]
    assert planned.size_bytes == sum(r.size_bytes for r in make(1, 10).records)
    assert execute_sweep(tier, planned, authority=tier, owner=1) == 2
    assert of(tier, 10) == []
    assert len(of(tier, 20)) == len(of(tier, 50)) == 2
    assert loadable(tier) == [(1, 30)]


def test_sweep_forgets_quarantine_of_what_is_gone(tier):
    save(tier, 1, 10)
    quarantine(tier, ImageId(1, 5, 0), "long gone")
    quarantine(tier, ImageId(1, 10, 0), "still here")
    execute_sweep(tier, plan_sweep(read_catalog(tier), in_flight=()), authority=tier, owner=1)
    assert quarantined(tier) == {ImageId(1, 10, 0)}


def test_without_anything_committed_nothing_is_swept(tier):
    upload(tier, make(1, 10))
    assert plan_sweep(read_catalog(tier), in_flight=()).images == ()


def test_a_superseded_owner_sweeps_nothing(tier):
    upload(tier, make(1, 10))
    save(tier, 1, 20)
    planned = plan_sweep(read_catalog(tier), in_flight=())
    begin(tier, CheckpointId(1, 20))
    with pytest.raises(SupersededError):
        execute_sweep(tier, planned, authority=tier, owner=1)
    assert len(of(tier, 10)) == 2


# Roll-forward ---------------------------------------------------------------------------------------------------------
def roll(tier, owner=1):
    return [roll_forward(tier, tier, e, owner=owner) for e in candidates(read_catalog(tier), lineage(tier))]


def test_a_whole_step_is_committed_as_its_owner_would_have(tier):
    checkpoint = make(1, 10)
    upload(tier, checkpoint)
    rolled = roll(tier)
    assert loadable(tier) == [(1, 10)]
    other = MemoryTier(HeapSlots())
    begin(other)
    upload(other, checkpoint)
    assert rolled[0].manifest == commit_images(other, checkpoint)
    assert roll(tier) == []


def test_what_a_save_says_of_itself_is_rolled_forward_with_it(tier):
    """Plain values of several blocks, and notes behind them."""
    said, plain = Notes(1767225600, (("val_loss", 1.25),)), b'"%s"' % (b"x" * (2 * BLOCK_BYTES))
    image = make_image(ImageId(1, 10, 0), world_size=1, plain=plain)
    write_notes(image.data, image.header.layout, encode_notes(said))
    crc = seal(image.data, image.header.layout)
    put_image(tier, image)
    (rolled,) = roll(tier)
    assert rolled.manifest is not None
    assert rolled.manifest.notes == said
    assert rolled.manifest.plain is None, "they are too long to stand inline"
    assert rolled.manifest.images == (replace(image.record, crc64nvme=crc),)


def test_the_next_attempt_rolls_forward_what_it_stands_on(tier):
    for step in (10, 20):
        upload(tier, make(1, step))
    begin(tier, CheckpointId(1, 10))
    assert [(r.id.step, r.manifest is not None) for r in roll(tier, owner=2)] == [(10, True)]
    assert loadable(tier) == [(1, 10)]


def test_an_incomplete_step_is_told_from_headers_alone(tier):
    upload(tier, make(1, 10, world_size=3))
    tier.delete(names.image_key(ImageId(1, 10, 1)))
    faults = Faults(tier)
    rolled = roll_forward(faults, tier, entry(tier, CheckpointId(1, 10)), owner=1)
    assert isinstance(rolled.problem, CorruptError)
    assert "rank 1 of 3" in rolled.problem.message
    assert faults.calls["read_into"] == 4  # length and text of two headers
    assert loadable(tier) == []


def test_a_bad_image_is_quarantined_and_never_committed(tier):
    checkpoint = make(1, 10)
    upload(tier, checkpoint)
    flip(tier, checkpoint.images[1].key, 8 * 4200)
    (rolled,) = roll(tier)
    assert isinstance(rolled.problem, CorruptError)
    assert quarantined(tier) == {ImageId(1, 10, 1)}
    assert loadable(tier) == []


def test_shared_images_are_proven_too(tier):
    frozen = share(tier, 10, 20)
    tier.delete(names.manifest_key(CheckpointId(1, 20)))
    assert [r.manifest is not None for r in roll(tier)] == [True]
    assert loadable(tier) == [(1, 10), (1, 20)]
    tier.delete(names.manifest_key(CheckpointId(1, 20)))
    tier.delete(frozen.key)
    assert [r.manifest for r in roll(tier)] == [None]


def test_a_tombstoned_step_is_not_rolled_forward(tier):
    upload(tier, make(1, 10))
    tier.put(names.tombstone_key(CheckpointId(1, 10)), memoryview(b""))
    assert candidates(read_catalog(tier), lineage(tier)) == []


def test_a_tier_that_fails_is_an_error_not_a_verdict(tier):
    upload(tier, make(1, 10))
    found = entry(tier, CheckpointId(1, 10))
    with pytest.raises(CrashError):
        roll_forward(Faults(tier, Fault("put", Raise(CrashError()))), tier, found, owner=1)
    assert loadable(tier) == []

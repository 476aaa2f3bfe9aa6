"""The store against a plain dictionary, killed anywhere: what is committed stays loadable bit for bit, what is pruned
never comes back."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.store_fixtures import Checkpoint, Image, begin, commit_images, keys, make, make_sharing, upload

from holdfast.errors import NotFoundError
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.place import Keep
from holdfast.store.attempts import read_attempts
from holdfast.store.catalog import is_tombstoned, read_catalog
from holdfast.store.fetch import fetch_image
from holdfast.store.prune import PrunePlan, execute_prune, plan_delete, plan_prune
from holdfast.store.rollforward import candidates, roll_forward
from holdfast.store.sweep import execute_sweep, plan_sweep
from holdfast.tiers.contract import Tier, read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Fault, Faults, LoseAnswer, Raise


class CrashError(BaseException):
    """The process is gone."""


# None: no crash. Else the crash comes at the n-th change of the tier, before or after it is made.
crashes = st.none() | st.tuples(st.integers(0, 12), st.booleans())


class StoreMachine(RuleBasedStateMachine):
    def open(self) -> Tier:
        return MemoryTier(HeapSlots())

    @initialize()
    def start(self):
        self.tier = self.open()
        self.attempt = begin(self.tier)
        self.step = 0
        self.flushed: dict[CheckpointId, Checkpoint] = {}
        self.committed: dict[CheckpointId, Checkpoint] = {}
        self.gone: dict[CheckpointId, Checkpoint] = {}
        self.shared: list[Image] | None = None
        """What the next step may rely on."""

    def faulty(self, crash) -> Faults:
        if crash is None:
            return Faults(self.tier)
        after, done = crash
        action = LoseAnswer(CrashError()) if done else Raise(CrashError())
        return Faults(self.tier, Fault("put|delete|publish", action, after=after))

    @property
    def lineage(self):
        return read_attempts([self.tier]).lineage

    @rule(crash=crashes, kind=st.sampled_from(["alone", "shares anew", "shares"]))
    def flush(self, crash, kind):
        self.step += 10
        if kind == "alone":
            checkpoint = make(self.attempt, self.step, seed=self.attempt)
        else:
            shared = self.shared if kind == "shares" else None
            checkpoint = make_sharing(self.attempt, self.step, shared, seed=self.attempt)
            self.shared = checkpoint.images[:2]
        try:
            upload(self.faulty(crash), checkpoint)
        except CrashError:
            self.tier.sweep()
        if {i.key for i in checkpoint.images} <= set(keys(self.tier)):
            self.flushed[checkpoint.id] = checkpoint

    @property
    def under_way(self) -> set[ImageId]:
        """Images that steps still to be committed name, or may."""
        shared = self.shared or []
        return {i.record.id for c in self.flushed.values() for i in c.images} | {i.record.id for i in shared}

    @precondition(lambda self: any(c in self.lineage for c in self.flushed))
    @rule(crash=crashes, data=st.data())
    def commit(self, crash, data):
        chosen = data.draw(st.sampled_from([c for c in self.flushed if c in self.lineage]))
        checkpoint = self.flushed[chosen]
        try:
            commit_images(self.faulty(crash), checkpoint, owner=self.attempt, authority=self.tier)
        except CrashError:
            self.tier.sweep()
            if not list(self.tier.list(names.manifest_key(chosen))):
                return
        del self.flushed[chosen]
        self.committed[chosen] = checkpoint

    @rule(crash=crashes, keep_last=st.integers(1, 3), keep_every=st.sampled_from([None, 20, 50]))
    def prune(self, crash, keep_last, keep_every):
        catalog, lineage = read_catalog(self.tier), self.lineage
        plan = plan_prune(catalog, lineage, keep=Keep(keep_last, keep_every))
        newest = catalog.newest(lineage)
        assert newest is None or newest.id not in {d.id for d in plan.deletions}
        self.execute(plan, crash)

    def execute(self, plan: PrunePlan, crash):
        assert {d.id for d in plan.deletions} <= {*self.committed, *self.gone}
        try:
            execute_prune(self.faulty(crash), plan, authority=self.tier, owner=self.attempt, spare=self.under_way)
        except CrashError:
            self.tier.sweep()
        for deletion in plan.deletions:
            begun = is_tombstoned(self.tier, deletion.id) or not list(self.tier.list(names.manifest_key(deletion.id)))
            if begun and deletion.id in self.committed:
                self.gone[deletion.id] = self.committed.pop(deletion.id)
            assert crash is not None or begun

    @precondition(lambda self: len([c for c in self.committed if c in self.lineage]) > 1)
    @rule(crash=crashes, data=st.data())
    def delete(self, crash, data):
        """A person names one, maybe the newest."""
        chosen = data.draw(st.sampled_from(sorted(c for c in self.committed if c in self.lineage)))
        plan = plan_delete(read_catalog(self.tier), self.lineage, [chosen])
        self.execute(plan, crash)

    @rule()
    def restart(self):
        """A new owner's first deeds, at the same attempt: roll forward, finish deletions, sweep."""
        for entry in candidates(read_catalog(self.tier), self.lineage):
            rolled = roll_forward(self.tier, self.tier, entry, owner=self.attempt)
            assert (rolled.manifest is not None) == (entry.id in self.flushed)
            if rolled.manifest is not None:
                self.committed[entry.id] = self.flushed.pop(entry.id)
        plan = plan_prune(read_catalog(self.tier), self.lineage, keep=Keep())
        assert {d.id for d in plan.deletions} <= set(self.gone)
        execute_prune(self.tier, plan, authority=self.tier, owner=self.attempt, spare=self.under_way)
        in_flight = [*self.flushed, *(i.checkpoint for i in self.under_way)]
        swept = plan_sweep(read_catalog(self.tier), in_flight=in_flight)
        execute_sweep(self.tier, swept, authority=self.tier, owner=self.attempt)
        found = read_catalog(self.tier)
        for entry in found:
            assert not entry.tombstoned or entry.images.keys() <= found.named() | self.under_way

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def late_flush(self, data):
        """An agent that knew nothing of the deletion writes the images once more."""
        late = self.gone[data.draw(st.sampled_from(sorted(self.gone)))]
        kept = read_catalog(self.tier).named() | self.under_way
        for image in late.images:
            if image.record.id not in kept and image.record.id.checkpoint == late.id:
                self.tier.delete(image.key)
        if any(i.record.id in kept and i.record.id.checkpoint == late.id for i in late.images):
            return  # it would be put twice
        upload(self.tier, late)
        if is_tombstoned(self.tier, late.id) and late.id in self.lineage:
            try:
                commit_images(self.tier, late, owner=self.attempt)
            except NotFoundError:
                return
            raise AssertionError("a tombstoned step was committed")

    @precondition(lambda self: any(c in self.lineage for c in self.committed))
    @rule(data=st.data())
    def go_back(self, data):
        parent = data.draw(st.sampled_from(sorted(c for c in self.committed if c in self.lineage)))
        self.attempt = begin(self.tier, parent)
        self.step = parent.step
        self.shared = None

    @invariant()
    def committed_ones_are_loadable_and_deleted_ones_are_not(self):
        if not hasattr(self, "tier"):
            return
        entries = {e.id: e for e in read_catalog(self.tier)}
        for checkpoint in self.committed.values():
            assert entries[checkpoint.id].loadable
            for image in checkpoint.images:
                assert read_all(self.tier, image.key) == image.data
        for deleted in self.gone:
            assert deleted not in entries or not entries[deleted].committed

    def teardown(self):
        if not hasattr(self, "tier"):
            return
        with ThreadPoolExecutor(2, thread_name_prefix="test") as pool:
            for image in (i for c in self.committed.values() for i in c.images):
                buffer = memoryview(bytearray(image.record.size_bytes))
                assert fetch_image(self.tier, image.record, buffer, pool) == image.header
                assert buffer == image.data
        self.tier.close()


class PosixMachine(StoreMachine):
    def open(self) -> Tier:
        self.directory = tempfile.TemporaryDirectory()
        return PosixTier(self.directory.name, owner="1.a", fsync=lambda fd: None)

    def teardown(self):
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


TestStoreInMemory = StoreMachine.TestCase
TestStoreInMemory.settings = settings(stateful_step_count=30)
TestStoreOnPosix = PosixMachine.TestCase
TestStoreOnPosix.settings = settings(max_examples=8, stateful_step_count=20)

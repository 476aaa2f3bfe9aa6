"""Files of deleted images that become those of new ones: only what nobody can read any more is written over."""

import errno
import mmap
import os
import subprocess
import sys
import time

import pytest

from holdfast.errors import NotFoundError, TierFullError
from holdfast.model.place import Scope
from holdfast.tiers import open_tier
from holdfast.tiers.contract import read_all
from holdfast.tiers.posix import PosixTier, disk
from holdfast.tiers.posix.recycle import RECYCLE_FROM_BYTES, Kept, Pool

N = 1 << 20


class Fsync:
    """Calls `before` with the path of what is synced; fails where told."""

    def __init__(self):
        self.before = lambda path: None

    def __call__(self, fd):
        self.before(os.readlink(f"/proc/self/fd/{fd}"))
        os.fsync(fd)


@pytest.fixture
def fsync():
    return Fsync()


@pytest.fixture
def tier(tmp_path, fsync):
    tier = PosixTier(str(tmp_path / "t"), owner="1.a", scope=Scope.NODE, recycle_from_bytes=4096, fsync=fsync)
    yield tier
    tier.close()


def image(step, rank=0):
    return f"images/00000001/{step:012d}/{rank:05d}-0.safetensors"


def filled(value, n_bytes=N):
    view = memoryview(mmap.mmap(-1, n_bytes))
    view[:] = bytes([value]) * n_bytes
    return view


def save(tier, key, value, n_bytes=N):
    upload = tier.upload(key, n_bytes)
    try:
        upload.write(0, filled(value, n_bytes))
        upload.publish()
    finally:
        upload.abort()
    return inode(tier, key)


def inode(tier, key):
    return os.stat(os.path.join(tier.root, key)).st_ino


def old(tier):
    return [name for name in os.listdir(os.path.join(tier.root, ".tmp")) if "-old-" in name]


def test_the_next_image_is_written_over_the_deleted_one_without_asking_for_room(tier, monkeypatch):
    first = save(tier, image(1), 1)
    tier.delete(image(1))
    assert tier.recyclable == (1, N)
    assert list(tier.list("")) == []

    def refuses(*args):
        raise AssertionError("room was asked for")

    monkeypatch.setattr(disk._libc, "fallocate", refuses)
    assert save(tier, image(2), 2) == first
    assert tier.recyclable == (0, 0)
    assert read_all(tier, image(2)) == bytes([2]) * N


@pytest.mark.parametrize("n_bytes", [N - 4096, N + 4096, N // 2, 2 * N])
def test_the_length_is_that_of_the_new_image(tier, n_bytes):
    first = save(tier, image(1), 1)
    tier.delete(image(1))
    assert save(tier, image(2), 2, n_bytes) == first
    assert read_all(tier, image(2)) == bytes([2]) * n_bytes


@pytest.mark.parametrize("n_bytes", [4096, N // 4, 8 * N, 10])
def test_what_does_not_fit_is_made_anew_and_the_file_waits(tier, n_bytes):
    save(tier, image(1), 1)
    tier.delete(image(1))
    save(tier, image(2), 2, n_bytes)
    assert tier.recyclable == (1, N)


def test_no_more_than_one_steps_files_wait(tier):
    for step in (1, 2):
        for rank in range(3):
            save(tier, image(step, rank), step)
    for step in (1, 2):
        for rank in range(3):
            tier.delete(image(step, rank))
    assert tier.recyclable == (3, 3 * N)
    assert len(old(tier)) == 3


def test_nothing_is_written_over_before_the_removal_of_its_name_is_durable(tier, fsync):
    save(tier, image(1), 1)
    seen = []

    def before(path):
        if path.endswith("000000000001"):
            seen.append(tier.recyclable)
            upload = tier.upload(image(2), N)  # of another thread, at the worst moment
            upload.write(0, filled(2))
            upload.abort()

    fsync.before = before
    tier.delete(image(1))
    assert seen == [(0, 0)]
    assert tier.recyclable == (1, N)


def test_a_removal_that_cannot_be_made_durable_keeps_nothing(tier, fsync):
    save(tier, image(1), 1)

    def fails(path):
        raise OSError(errno.EIO, "injected")

    fsync.before = fails
    with pytest.raises(Exception, match="EIO"):
        tier.delete(image(1))
    assert (tier.recyclable, old(tier)) == ((0, 0), [])
    fsync.before = lambda path: None
    tier.delete(image(1))
    with pytest.raises(NotFoundError):
        tier.size(image(1))


READER = """
import mmap, sys
file = open(sys.argv[1], "rb")
data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if sys.argv[2] == "mapped" else file
if sys.argv[2] == "mapped":
    file.close()
print("open", flush=True)
sys.stdin.readline()
data.seek(0)
print(set(data.read()), flush=True)
"""


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_reader_in_another_process_keeps_its_bytes(tier, how):
    """Any program: it needs to know nothing of Holdfast."""
    first = save(tier, image(1), 1)
    path = os.path.join(tier.root, image(1))
    command = [sys.executable, "-c", READER, path, how]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        tier.delete(image(1))
        assert save(tier, image(2), 2) != first
        said, _ = reader.communicate("\n", timeout=30)
    assert said == "{1}\n"
    assert tier.recyclable == (0, 0)
    assert old(tier) == []


def test_a_linked_copy_keeps_its_bytes(tier, tmp_path):
    for link_first in (True, False):
        copy = tmp_path / f"copy-{link_first}"
        save(tier, image(1), 1)
        if link_first:
            os.link(os.path.join(tier.root, image(1)), copy)
        tier.delete(image(1))
        if not link_first:
            [name] = old(tier)
            os.link(os.path.join(tier.root, ".tmp", name), copy)
        save(tier, image(2), 2)
        assert set(copy.read_bytes()) == {1}
        tier.delete(image(2))


def test_a_reader_that_opens_as_the_name_goes_is_told_so(tier, monkeypatch):
    """Between its look at the name and its first byte the file is deleted, recycled and written over."""
    save(tier, image(1), 1)
    real = os.open

    def slow(path, flags, *args):
        fd = real(path, flags, *args)
        if str(path).endswith(image(1)):
            monkeypatch.setattr(os, "open", real)
            os.close(fd)  # as if it were opened only after the kernel had looked who has it
            tier.delete(image(1))
            save(tier, image(2), 2)
            return real(os.path.join(tier.root, image(2)), flags, *args)
        return fd

    monkeypatch.setattr(os, "open", slow)
    with pytest.raises(NotFoundError):
        tier.read_into(image(1), 0, memoryview(bytearray(100)))


def test_where_the_kernel_knows_no_leases_nothing_is_recycled(tier, monkeypatch):
    first = save(tier, image(1), 1)
    tier.delete(image(1))

    def refuses(*args):
        raise OSError(errno.EINVAL, "no leases here")

    monkeypatch.setattr("holdfast.tiers.posix.recycle.fcntl.fcntl", refuses)
    held = os.open(os.path.join(tier.root, ".tmp", old(tier)[0]), os.O_RDONLY)  # else its inode is used again
    assert save(tier, image(2), 2) != first
    os.close(held)


def test_a_full_disk_lets_go_of_what_waits(tmp_path):
    disk_of_3m = tmp_path / "small"
    disk_of_3m.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3200k", "t", str(disk_of_3m)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    tier = PosixTier(str(disk_of_3m / "t"), recycle_from_bytes=4096)
    try:
        save(tier, image(1), 1)
        tier.delete(image(1))
        save(tier, image(2), 2, 5 * N // 2)  # too long for the file that waits, too much beside it
        assert tier.recyclable == (0, 0)
        assert read_all(tier, image(2)) == bytes([2]) * (5 * N // 2)
        with pytest.raises(TierFullError):
            save(tier, image(3), 3)
        assert old(tier) == []
    finally:
        tier.close()
        subprocess.run(["umount", str(disk_of_3m)], check=True)


def test_a_full_disk_amid_writing_lets_go_of_what_waits(tier, monkeypatch):
    save(tier, image(1), 1)
    tier.delete(image(1))
    upload = tier.upload(image(2), 4 * N)
    real, fails = os.pwrite, [1, 1]

    def full(*args):
        if fails:
            fails.pop()
            raise OSError(errno.ENOSPC, "injected")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TierFullError):
        upload.write(0, filled(2, 4 * N))
    assert tier.recyclable == (0, 0)
    upload.write(0, filled(2, 4 * N))
    upload.publish()


def test_the_files_of_a_dead_agent_are_swept_and_those_of_this_one_stay(tier):
    for step, dead in ((1, True), (2, False)):
        owner = PosixTier(tier.root, owner="1.dead", recycle_from_bytes=4096) if dead else tier
        save(owner, image(step), step)
        owner.delete(image(step))
    assert len(old(tier)) == 2
    assert tier.sweep(owner_prefix="1.") == 1
    assert [name.startswith("1.a-") for name in old(tier)] == [True]
    assert tier.recyclable == (1, N)


def test_an_upload_with_an_old_file_is_not_swept_for_its_age(tier):
    save(tier, image(1), 1)
    os.utime(os.path.join(tier.root, image(1)), (1, 1))
    tier.delete(image(1))
    upload = tier.upload(image(2), N)
    assert PosixTier(tier.root, owner="2.b").sweep(untouched_s=3600.0) == 0
    upload.write(0, filled(2))
    upload.publish()


def test_a_file_swept_meanwhile_is_made_anew(tier):
    save(tier, image(1), 1)
    os.utime(os.path.join(tier.root, image(1)), (1, 1))
    tier.delete(image(1))
    assert PosixTier(tier.root, owner="2.b").sweep(untouched_s=3600.0) == 1
    save(tier, image(2), 2)
    assert read_all(tier, image(2)) == bytes([2]) * N


def test_close_gives_the_room_back(tier, tmp_path):
    save(tier, image(1), 1)
    tier.delete(image(1))
    tier.close()
    assert old(tier) == []
    pool = Pool(str(tmp_path), "1.a")
    pool.close()
    left = tmp_path / "left"
    left.write_bytes(b"x")
    pool.keep(Kept(str(left), 1), "a deletion that was under way")
    assert not left.exists()


def test_a_disk_of_the_nodes_own_recycles_and_no_other(tmp_path):
    """And a reader of it does not: it deletes nothing, and has no successor to sweep for it."""
    for scope, create, recycles in ((Scope.NODE, True, True), (Scope.SHARED, True, False), (None, True, False)):
        tier = open_tier(str(tmp_path / "t"), name="nvme", owner="1.a", scope=scope, create=create)
        assert isinstance(tier, PosixTier)
        save(tier, image(1), 1, RECYCLE_FROM_BYTES)
        tier.delete(image(1))
        assert tier.recyclable == ((1, RECYCLE_FROM_BYTES) if recycles else (0, 0))
        tier.close()


def test_it_takes_no_longer_to_look_who_has_a_file(tier):
    """A lease is granted or refused at once: training's agent waits for no reader."""
    save(tier, image(1), 1)
    with open(os.path.join(tier.root, image(1)), "rb"):
        tier.delete(image(1))
        began = time.monotonic()
        save(tier, image(2), 2)
        assert time.monotonic() - began < 10  # lease-break-time is 45 s

"""The posix tier where it is more than its contract: what reaches the disk, and what the system may refuse."""

import errno
import mmap
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from holdfast.errors import (
    AlreadyExistsError,
    ConfigError,
    HoldfastError,
    NotFoundError,
    TierError,
    TierFullError,
    TierPermissionError,
    TierUnavailableError,
)
from holdfast.model.place import FailureDomain, Scope
from holdfast.tiers import open_tier, weakness_of
from holdfast.tiers.contract import read_all
from holdfast.tiers.posix import PosixTier, disk
from holdfast.tiers.posix.directories import Directories
from holdfast.tiers.posix.mounts import Mount

KEY = "images/00000001/000000000100/00000-0.safetensors"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Fsync:
    """Counts what is synced, in order, by path; fails or skips where told."""

    def __init__(self):
        self.synced: list[str] = []
        self.fails: set[int] = set()

    def __call__(self, fd):
        self.synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        if len(self.synced) in self.fails:
            raise OSError(errno.EIO, "injected")
        os.fsync(fd)


@pytest.fixture
def fsync():
    return Fsync()


@pytest.fixture
def tier(tmp_path, fsync):
    tier = PosixTier(str(tmp_path / "t"), owner="1.a", fsync=fsync)
    fsync.synced.clear()
    yield tier
    tier.close()


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MiB; `small_disk(options)` remounts it."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "holdfast-test", str(path)], check=True)
    yield path, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)
    subprocess.run(["umount", str(path)], check=True)


def aligned(n_bytes, seed=0):
    view = memoryview(mmap.mmap(-1, n_bytes))
    view[:] = random.Random(seed).randbytes(n_bytes)
    return view


def temporaries(tier):
    return os.listdir(os.path.join(tier.root, ".tmp"))


def everything(root):
    return sorted(os.path.join(d, f) for d, _, files in os.walk(root) for f in files)


# Durability -----------------------------------------------------------------------------------------------------------
def test_file_then_name_then_every_new_directory_is_synced(tier, fsync):
    tier.put("a/b/c", memoryview(b"x"))
    root = tier.root
    assert "/.tmp/1.a-" in fsync.synced[0]
    assert fsync.synced[1:] == [f"{root}/a/b", f"{root}/a", root]
    fsync.synced.clear()
    tier.put("a/b/d", memoryview(b"x"))
    assert len(fsync.synced) == 2  # the file and its directory: what is above was synced already
    assert fsync.synced[1] == f"{root}/a/b"


def test_a_directory_made_anew_by_another_process_is_synced_again(tier, fsync):
    tier.put("a/b/c", memoryview(b"x"))
    os.unlink(f"{tier.root}/a/b/c")
    os.rmdir(f"{tier.root}/a/b")
    os.mkdir(f"{tier.root}/keep-the-inode-busy")
    os.mkdir(f"{tier.root}/a/b")
    fsync.synced.clear()
    tier.put("a/b/c", memoryview(b"x"))
    assert f"{tier.root}/a" in fsync.synced


def test_settle_syncs_what_another_process_renamed(tier, fsync):
    os.makedirs(f"{tier.root}/images/1/2")
    for name in ("a", "b"):
        with open(f"{tier.root}/images/1/2/{name}", "wb") as f:
            f.write(b"x")
    fsync.synced.clear()
    tier.settle("images/1/2/")
    assert fsync.synced == [f"{tier.root}/images/1/2", f"{tier.root}/images/1", f"{tier.root}/images", tier.root]
    tier.put("top", memoryview(b"x"))
    fsync.synced.clear()
    tier.settle("to")
    assert fsync.synced == [tier.root]


def test_exists_is_said_only_once_it_lasts(tier, fsync):
    fsync.fails = {2}
    with pytest.raises(TierUnavailableError):
        tier.put("a/b", memoryview(b"x"), if_absent=True)
    fsync.synced.clear()
    fsync.fails = {2}
    with pytest.raises(TierUnavailableError):
        tier.put("a/b", memoryview(b"x"), if_absent=True)
    with pytest.raises(AlreadyExistsError):
        tier.put("a/b", memoryview(b"x"), if_absent=True)
    assert fsync.synced[-1] == tier.root
    assert temporaries(tier) == []


def test_delete_syncs_the_directory_also_when_the_file_is_gone(tier, fsync):
    tier.put("a/b", memoryview(b"x"))
    tier.put("a/c", memoryview(b"x"))
    fsync.synced.clear()
    tier.delete("a/b")
    tier.delete("a/b")
    assert fsync.synced == [f"{tier.root}/a"] * 2


def test_delete_removes_directories_that_became_empty(tier):
    tier.put("a/b/c", memoryview(b"x"))
    tier.put("a/d", memoryview(b"x"))
    tier.delete("a/b/c")
    assert sorted(os.listdir(f"{tier.root}/a")) == ["d"]
    tier.delete("a/d")
    assert os.listdir(tier.root) == [".tmp"]


def test_a_failed_fsync_of_the_file_is_never_tried_again(tier, fsync):
    upload = tier.upload(KEY, 4096)
    upload.write(0, aligned(4096))
    fsync.fails = {1}
    with pytest.raises(TierUnavailableError) as e:
        upload.publish()
    assert (e.value.tier, e.value.key) == ("posix", KEY)
    with pytest.raises(TierError, match="failed fsync") as again:
        upload.publish()
    assert not again.value.retryable
    assert everything(tier.root) == []


def test_publish_goes_on_where_a_failed_sync_of_the_directory_stood(tier, fsync):
    upload = tier.upload(KEY, 5)
    upload.write(0, memoryview(b"bytes"))
    fsync.fails = {2}
    with pytest.raises(TierUnavailableError):
        upload.publish()
    upload.publish()
    upload.publish()
    assert fsync.synced[1] == fsync.synced[2] == os.path.dirname(f"{tier.root}/{KEY}")
    assert read_all(tier, KEY) == b"bytes"


def test_an_abort_during_fsync_wins_and_closes_nothing_under_it(tmp_path):
    began, go_on = threading.Event(), threading.Event()

    def slow(fd):
        if "1.a-" in os.readlink(f"/proc/self/fd/{fd}") and not began.is_set():
            began.set()
            assert go_on.wait(30)
        os.fsync(fd)

    tier = PosixTier(str(tmp_path / "t"), owner="1.a", fsync=slow)
    upload = tier.upload(KEY, 5)
    upload.write(0, memoryview(b"bytes"))
    errors = []

    def publish():
        try:
            upload.publish()
        except TierError as e:
            errors.append(e)

    thread = threading.Thread(target=publish)
    thread.start()
    assert began.wait(30)
    upload.abort()
    go_on.set()
    thread.join()
    assert "aborted" in errors[0].message
    assert everything(tier.root) == []


# Past the page cache --------------------------------------------------------------------------------------------------
def test_aligned_bytes_go_past_the_page_cache(tier):
    assert tier.direct
    data = aligned(1 << 20)
    upload = tier.upload(KEY, len(data) + 100)
    upload.write(0, data)
    assert upload._file.is_direct
    upload.write(len(data), data[:100])
    upload.publish()
    out = aligned(1 << 20, 1)
    tier.read_into(KEY, 0, out)
    assert out == data
    assert read_all(tier, KEY) == bytes(data) + bytes(data[:100])


def test_what_the_page_cache_holds_is_read_from_there_only_if_that_will_do(tier, monkeypatch):
    data, page = aligned(1 << 20), 4096
    tier.put(KEY, data)
    preadv, asked = os.preadv, []

    def noted(fd, parts, at, flags=0):
        moved = preadv(fd, parts, at, flags)
        asked.append((at, moved, bool(flags)))
        return moved

    with open(os.path.join(tier.root, KEY), "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more is read than is asked for
        os.pread(f.fileno(), 64 * page, 0)
        try:
            preadv(f.fileno(), [bytearray(page)], 0, os.RWF_NOWAIT)
        except OSError as e:
            pytest.skip(f"this file system cannot tell what is cached: {e}")
        monkeypatch.setattr(os, "preadv", noted)
        for cached in (False, True):
            asked.clear()
            out = aligned(len(data), 1)
            tier.read_into(KEY, 0, out, cached=cached)
            assert out == data
            if not cached:
                assert [flags for *_, flags in asked] == [False]
    in_cache = sum(moved for _, moved, flags in asked if flags)
    assert 64 * page <= in_cache <= len(data)
    assert in_cache + sum(moved for _, moved, flags in asked if not flags) == len(data)


def test_a_file_system_that_cannot_tell_what_is_cached_is_read_all_the_same(tier, monkeypatch):
    data = aligned(1 << 16)
    tier.put(KEY, data)
    preadv = os.preadv

    def refusing(fd, parts, at, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return preadv(fd, parts, at)

    monkeypatch.setattr(os, "preadv", refusing)
    out = aligned(len(data), 1)
    tier.read_into(KEY, 0, out, cached=True)
    assert out == data


def test_a_file_system_that_refuses_at_the_write_gets_buffered_ones(tier, monkeypatch):
    real = os.pwrite
    refused: list[int] = []

    def pwrite(fd, data, offset):
        if fd == upload._file._direct_fd:
            refused.append(offset)
            raise OSError(errno.EINVAL, "injected")
        return real(fd, data, offset)

    upload = tier.upload(KEY, 1 << 16)
    monkeypatch.setattr(os, "pwrite", pwrite)
    data = aligned(1 << 16)
    upload.write(0, data[:8192])
    upload.write(8192, data[8192:])
    upload.publish()
    assert refused == [0]
    assert read_all(tier, KEY) == data


@pytest.mark.parametrize("direct", [True, False])
def test_short_writes_and_reads_are_gone_on_with(tmp_path, monkeypatch, direct):
    tier = PosixTier(str(tmp_path / "t"), direct=direct)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:4099], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:5000]], at))
    if direct:  # a direct write has to stay aligned
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: 4096 if len(data) > 4096 else 7], at))
        monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:8192]], at))
    data = aligned(40_000 - 40_000 % 7 if not direct else 40_960)
    tier.put(KEY, data)
    out = aligned(len(data), 1)
    tier.read_into(KEY, 0, out)
    assert out == data


# What the system refuses ----------------------------------------------------------------------------------------------
@root_only
@pytest.mark.parametrize("direct", [True, False])
def test_a_full_disk_is_known_before_the_first_byte_and_leaves_nothing(small_disk, direct):
    tier = PosixTier(str(small_disk[0] / "t"), direct=direct)
    with pytest.raises(TierFullError) as e:
        tier.upload(KEY, 2 << 20)
    assert (e.value.tier, e.value.key) == ("posix", KEY)
    assert "keep_last" in e.value.hint
    with pytest.raises(TierFullError):
        tier.put("small", memoryview(bytes(2 << 20)))
    assert everything(tier.root) == []
    tier.put("small", memoryview(bytes(1 << 18)))
    assert [i.key for i in tier.list("")] == ["small"]


@root_only
def test_a_disk_that_cannot_promise_room_is_full_at_the_write(small_disk, monkeypatch):
    monkeypatch.setattr("holdfast.tiers.posix.upload.reserve", os.ftruncate)
    tier = PosixTier(str(small_disk[0] / "t"))
    upload = tier.upload(KEY, 2 << 20)
    with pytest.raises(TierFullError):
        upload.write(0, aligned(2 << 20))
    upload.abort()
    assert everything(tier.root) == []


@root_only
def test_a_read_only_disk_is_told_at_the_start_and_can_be_read(small_disk):
    path, remount = small_disk
    PosixTier(str(path / "t")).put("a", memoryview(b"x"))
    remount("ro")
    with pytest.raises(TierPermissionError) as e:
        open_tier(str(path / "t"), name="home", owner="1.a")
    assert e.value.tier == "home"
    assert "read-only" in e.value.hint
    with pytest.raises(TierPermissionError):
        PosixTier(str(path / "new"))
    reader = PosixTier(str(path / "t"), create=False)
    assert read_all(reader, "a") == b"x"
    for call in (lambda: reader.put("b", memoryview(b"")), lambda: reader.delete("a")):
        with pytest.raises(TierPermissionError):
            call()
    remount("rw")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_told_at_the_start(tmp_path):
    (tmp_path / "t").mkdir(mode=0o500)
    with pytest.raises(TierPermissionError):
        PosixTier(str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, TierFullError), (errno.EDQUOT, TierFullError),
        (errno.EROFS, TierPermissionError), (errno.EACCES, TierPermissionError), (errno.EPERM, TierPermissionError),
        (errno.EIO, TierUnavailableError), (errno.ESTALE, TierUnavailableError),
        (errno.ETIMEDOUT, TierUnavailableError), (errno.EMFILE, TierUnavailableError),
        (errno.ENXIO, TierError), (errno.ENAMETOOLONG, TierError),
    ],
)  # fmt: skip
def test_what_the_system_says_becomes_an_error_of_ours(tier, monkeypatch, number, kind):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    upload = tier.upload(KEY, 4096)
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(HoldfastError) as e:
        upload.write(0, aligned(4096))
    assert type(e.value) is kind
    assert (e.value.tier, e.value.key) == ("posix", KEY)
    assert errno.errorcode[number] in e.value.message
    assert isinstance(e.value.__cause__, OSError)
    upload.abort()
    assert temporaries(tier) == []


def test_too_long_a_name_is_an_error_of_ours_and_leaves_nothing(tier):
    with pytest.raises(TierError):
        tier.put("x" * 300, memoryview(b"x"))
    assert everything(tier.root) == []


def test_a_file_where_a_directory_is_needed(tier):
    tier.put("a", memoryview(b"x"))
    with pytest.raises(HoldfastError):
        tier.put("a/b", memoryview(b"x"))
    assert everything(tier.root) == [f"{tier.root}/a"]


def test_a_swept_upload_says_so(tier, tmp_path):
    upload = tier.upload(KEY, 1)
    upload.write(0, memoryview(b"x"))
    assert PosixTier(str(tmp_path / "t"), owner="2.b").sweep() == 1
    with pytest.raises(TierError, match="swept"):
        upload.publish()


# Without renameat2 ----------------------------------------------------------------------------------------------------
@pytest.fixture
def no_renameat2(monkeypatch):
    calls = []

    def renameat2(source, target, flags):
        calls.append(target)
        raise OSError(errno.EINVAL, "injected")

    monkeypatch.setattr(disk, "renameat2", renameat2)
    return calls


def test_links_do_where_rename_replaces(tier, no_renameat2):
    tier.put("a/b", memoryview(b"first"), if_absent=True)
    with pytest.raises(AlreadyExistsError):
        tier.put("a/b", memoryview(b"second"), if_absent=True)
    assert len(no_renameat2) == 2
    assert read_all(tier, "a/b") == b"first"
    assert temporaries(tier) == []
    assert os.stat(f"{tier.root}/a/b").st_nlink == 1


def test_a_link_whose_answer_was_lost_counts(tier, no_renameat2, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "the repetition of a request that worked")

    monkeypatch.setattr(os, "link", link)
    tier.put("a/b", memoryview(b"mine"), if_absent=True)
    assert read_all(tier, "a/b") == b"mine"


def test_a_directory_that_vanishes_under_publish_is_made_again(tier, monkeypatch):
    real = disk.rename_without_replacing
    gone: list[str] = []

    def rename(source, target):
        if len(gone) < 3:
            gone.append(target)
            os.rmdir(os.path.dirname(target))
        real(source, target)

    monkeypatch.setattr("holdfast.tiers.posix.tier.rename_without_replacing", rename)
    tier.put("a/b", memoryview(b"x"), if_absent=True)
    assert len(gone) == 3
    assert read_all(tier, "a/b") == b"x"


# Opening --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file://{}/plain", "plain"),
        ("file://localhost{}/plain", "plain"),
        ("file://{}/with%20space", "with space"),
        ("file://{}/with space", "with space"),
        ("file://{}/gr%C3%B6%C3%9Fe", "größe"),
        ("file://{}/日本", "日本"),
        ("file://{}/a%23b?c", "a#b?c"),
        ("file://{}/trailing/", "trailing"),
        ("{}/plain%20", "plain%20"),
        ("{}/a b", "a b"),
    ],
)
def test_urls_and_paths(tmp_path, url, path):
    tier = open_tier(url.format(tmp_path), name="home", owner="1.a")
    tier.put("a", memoryview(b"x"))
    assert (tmp_path / path / "a").read_bytes() == b"x"
    assert tier.name == "home"


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x", "file://host/x", "file:relative://", "", "file://"])
def test_urls_that_name_no_place_here(url):
    with pytest.raises(ConfigError) as e:
        open_tier(url, name="home", owner="1.a")
    assert e.value.hint


def test_s3_is_not_built_yet():
    with pytest.raises(ConfigError, match="not built yet") as e:
        open_tier("s3://bucket/run", name="s3", owner="1.a")
    assert "file://" in e.value.hint


def test_the_last_component_is_made_a_missing_parent_is_an_error(tmp_path):
    PosixTier(str(tmp_path / "new"))
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ConfigError, match="parent") as e:
        PosixTier(str(tmp_path / "missing" / "new"))
    assert "mkdir" in e.value.hint
    assert not (tmp_path / "missing").exists()


def test_a_file_is_no_tier(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(ConfigError, match="not a directory"):
        PosixTier(str(tmp_path / "f"))


def test_a_reader_makes_nothing(tmp_path):
    with pytest.raises(NotFoundError):
        open_tier(str(tmp_path / "new"), name="home", owner="1.a", create=False)
    assert os.listdir(tmp_path) == []


def test_scope_decides_what_it_survives(tmp_path):
    shared = open_tier(str(tmp_path / "t"), name="t", owner="1.a").capabilities
    node = open_tier(str(tmp_path / "t"), name="t", owner="1.a", scope=Scope.NODE).capabilities
    assert (shared.scope, shared.survives) == (Scope.SHARED, FailureDomain.NODE)
    assert (node.scope, node.survives) == (Scope.NODE, FailureDomain.PROCESS)


# Foreign files --------------------------------------------------------------------------------------------------------
def test_foreign_files_do_not_disturb(tier, tmp_path):
    tier.put("images/1", memoryview(b"x"))
    root = tmp_path / "t"
    (root / "images" / "link").symlink_to("/nowhere")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"not-text-\xff")).write_bytes(b"x")
    (root / "README").write_bytes(b"hello")
    assert [i.key for i in tier.list("")] == ["README", "images/1"]
    assert tier.sweep() == 0


def test_an_owner_is_part_of_a_file_name(tmp_path):
    for owner in ("", "a/b"):
        with pytest.raises(ConfigError):
            PosixTier(str(tmp_path / "t"), owner=owner)


# Scope ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "scope", "refused"),
    [
        ("ext4", Scope.NODE, False),
        ("ext4", Scope.SHARED, False),
        ("overlay", Scope.NODE, False),
        ("virtiofs", Scope.NODE, False),
        ("tmpfs", Scope.SHARED, False),
        ("lustre", Scope.SHARED, False),
        ("nfs4", Scope.NODE, True),
        ("fuse.sshfs", Scope.NODE, True),
        ("fuse.mergerfs", Scope.NODE, False),
    ],
)
def test_a_scope_is_refused_only_where_it_is_surely_wrong(tmp_path, monkeypatch, kind, scope, refused):
    monkeypatch.setattr("holdfast.tiers.posix.tier.mount_of", lambda path: Mount("/", "/", kind, "x"))
    if refused:
        with pytest.raises(ConfigError, match=kind) as caught:
            open_tier(str(tmp_path / "t"), name="near", owner="1.a", scope=scope)
        assert "shared" in caught.value.hint
        assert caught.value.tier == "near"
        assert not (tmp_path / "t").exists()
        open_tier(str(tmp_path), name="near", owner="1.a", scope=scope, create=False)  # commands may look
    else:
        open_tier(str(tmp_path / "t"), name="near", owner="1.a", scope=scope)


def test_what_is_in_memory_survives_no_node(tmp_path, monkeypatch):
    where = Mount("/", "/", "tmpfs", "x")
    monkeypatch.setattr("holdfast.tiers.posix.tier.mount_of", lambda path: where)
    monkeypatch.setattr("holdfast.tiers.mount_of", lambda path: where)
    assert open_tier(str(tmp_path / "t"), name="t", owner="1.a").capabilities.survives is FailureDomain.PROCESS
    assert "tmpfs" in weakness_of(f"file://{tmp_path}/t")
    monkeypatch.undo()
    assert weakness_of("memory:") == ""


def test_a_directory_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """Another process removed it, being empty, right after it was seen."""
    real, seen = os.mkdir, []

    def mkdir(path):
        seen.append(path)
        if len(seen) == 1:
            raise FileExistsError(path)
        real(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    Directories(str(tmp_path), os.fsync).make(str(tmp_path / "a"))
    assert (tmp_path / "a").is_dir()
    assert len(seen) == 2


@pytest.mark.parametrize("dangling", [False, True])
def test_what_is_no_directory_is_said(tmp_path, dangling):
    path = tmp_path / "a"
    path.symlink_to(tmp_path / "nowhere") if dangling else path.touch()
    with pytest.raises(NotADirectoryError, match="a file stands where a directory is needed"):
        Directories(str(tmp_path), os.fsync).make(str(path))


# The root -------------------------------------------------------------------------------------------------------------
def _removed(root):
    shutil.rmtree(root)


def _another(root):
    (root.parent / "other").mkdir()
    root.rename(root.parent / "away")
    (root.parent / "other").rename(root)


def _a_file(root):
    root.rename(root.parent / "away")
    root.write_text("in the way")


@pytest.mark.parametrize("lose", [_removed, _another, _a_file])
@pytest.mark.parametrize("key", [KEY, "top"])
def test_a_root_that_has_gone_is_never_made_again(tier, lose, key):
    tier.put("before", memoryview(b"x"))
    if lose is _another and tier.mount.type.startswith(("fuse", "overlay")):
        pytest.skip("inodes tell nothing there")
    root, under_way = Path(tier.root), tier.upload("later", 1)
    under_way.write(0, memoryview(b"x"))
    lose(root)
    with pytest.raises(TierError, match="removed or unmounted") as caught:
        tier.put(key, memoryview(b"x"))
    with pytest.raises(TierError, match="removed or unmounted"):
        under_way.publish()
    under_way.abort()
    assert caught.value.kind == "tier"
    assert "restart the job" in caught.value.hint
    assert not root.is_dir() or not [*root.iterdir()]


def test_a_root_that_comes_back_is_gone_on_with(tier):
    root = Path(tier.root)
    root.rename(root.parent / "away")
    with pytest.raises(TierError, match="removed or unmounted"):
        tier.put(KEY, memoryview(b"x"))
    (root.parent / "away").rename(root)
    tier.put(KEY, memoryview(b"x"))
    assert read_all(tier, KEY) == b"x"


@pytest.mark.parametrize(
    ("kind", "source", "stands"),
    [
        ("nfs4", "server:/export", True),
        ("fuse.sshfs", "server:/export", True),
        ("nfs4", "another:/export", False),
        ("ext4", "server:/export", False),
    ],
)
def test_a_network_file_system_that_is_mounted_again_may_be_another_device(tmp_path, monkeypatch, kind, source, stands):
    def mounted(source):
        monkeypatch.setattr("holdfast.tiers.posix.tier.mount_of", lambda path: Mount("/", "/", kind, source))

    mounted("server:/export")
    tier = PosixTier(str(tmp_path / "t"))
    device, inode = tier._identity
    tier._identity = device + 1, inode
    mounted(source)
    assert tier.stands() is stands
    mounted("/dev/sda")
    assert tier.stands() is stands, "looked at once"
    if stands:
        tier.put(KEY, memoryview(b"x"))
    tier._identity = device, inode + 1
    mounted("server:/export")
    assert not tier.stands(), "another directory"


@pytest.mark.parametrize("lose", [_removed, _another, _a_file])
@pytest.mark.parametrize("prefix", ["", "images/", KEY])
def test_a_root_that_has_gone_is_not_one_without_objects(tier, lose, prefix):
    tier.put(KEY, memoryview(b"x"))
    if lose is _another and tier.mount.type.startswith(("fuse", "overlay")):
        pytest.skip("inodes tell nothing there")
    assert [i.key for i in tier.list(prefix)] == [KEY]
    lose(Path(tier.root))
    with pytest.raises(TierError, match="removed or unmounted"):
        list(tier.list(prefix))


@pytest.mark.parametrize("lose", [_removed, _another, _a_file])
def test_a_root_that_goes_while_it_is_listed_is_not_one_with_fewer_objects(tier, lose):
    for key in ("a/1", "b/1"):
        tier.put(key, memoryview(b"x"))
    if lose is _another and tier.mount.type.startswith(("fuse", "overlay")):
        pytest.skip("inodes tell nothing there")
    listing = tier.list("")
    assert next(listing).key == "a/1"
    lose(Path(tier.root))
    with pytest.raises(TierError, match="removed or unmounted"):
        list(listing)

"""What doctor concludes from what it reads: mounts, memory limits, surroundings, room."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.cli.health import space
from holdfast.cli.health.chosen import chosen_in_vain
from holdfast.cli.health.finding import Level
from holdfast.cli.health.leftovers import stale_files
from holdfast.cli.health.limits import memory_limits, tightest
from holdfast.cli.health.surroundings import Surroundings, what_ends_with_us
from holdfast.config import Config
from holdfast.errors import TierPermissionError
from holdfast.tiers.posix.mounts import Mount, existing, mount_of

MOUNTS = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 0:27 / /dev/shm rw - tmpfs tmpfs rw,size=1g
31 27 0:28 /slurm/7/shm /mnt/with\\040blank rw shared:1 - tmpfs tmpfs rw
"""
SHM = Mount("/dev/shm", "/", "tmpfs", "tmpfs")
HOST = Surroundings(
    environ={}, cgroup="0::/user.slice", first_process="systemd", marker_files=(), logind=None, lingers=False, uid=1000,
    shm=SHM,
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "root"),
    [("/home/me", "ext4", "/"), ("/dev/shm", "tmpfs", "/"), ("/dev/shm/x", "tmpfs", "/"), ("/dev/shmx", "ext4", "/")],
)
def test_mount_of(path, kind, root):
    mount = mount_of(Path(path), MOUNTS)
    assert (mount.type, mount.root) == (kind, root)


def test_a_mount_point_with_a_blank():
    assert mount_of(Path("/mnt/with blank/x"), MOUNTS).root == "/slurm/7/shm"


def test_existing_is_the_nearest_directory_above(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path


def test_limits_of_cgroups_v2_are_those_of_all_above(tmp_path):
    inner = tmp_path / "fs" / "a" / "b"
    inner.mkdir(parents=True)
    for directory, limit, used in ((inner, "max", "5"), (inner.parent, "1000", "400")):
        (directory / "memory.max").write_text(limit + "\n")
        (directory / "memory.current").write_text(used + "\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    limits = memory_limits(tmp_path / "fs", tmp_path / "cgroup")
    assert [(x.limit_bytes, x.left_bytes) for x in limits] == [(1000, 600)]


def test_a_limit_of_cgroups_v1_near_infinity_is_none(tmp_path):
    (tmp_path / "fs" / "memory" / "a").mkdir(parents=True)
    for directory, limit in (("", 9223372036854771712), ("a", 700)):
        (tmp_path / "fs" / "memory" / directory / "memory.limit_in_bytes").write_text(str(limit))
        (tmp_path / "fs" / "memory" / directory / "memory.usage_in_bytes").write_text("100")
    (tmp_path / "cgroup").write_text("4:cpu,memory:/a\n2:cpuset:/\n")
    tight = tightest(memory_limits(tmp_path / "fs", tmp_path / "cgroup"))
    assert tight is not None
    assert tight.left_bytes == 600


def test_no_cgroup_no_limit(tmp_path):
    assert memory_limits(tmp_path, tmp_path / "none") == []
    assert tightest([]) is None


def test_a_plain_host_ends_with_nothing():
    assert [(f.check, f.level) for f in what_ends_with_us(HOST)] == [("lifetime", Level.OK)]


@pytest.mark.parametrize(
    "change",
    [
        {"marker_files": ("/.dockerenv",)},
        {"environ": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}},
        {"cgroup": "0::/kubepods.slice/cri-containerd-0.scope"},
        {"first_process": "python"},
    ],
)
def test_a_container_takes_the_arena_along(change):
    assert [(f.check, f.level) for f in what_ends_with_us(replace(HOST, **change))] == [("container", Level.WARN)]


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0"}, Level.WARN),
        ({"shm": Mount("/dev/shm", "/job/7/shm", "ext4", "")}, Level.WARN),
        ({}, Level.OK),
    ],
)
def test_a_slurm_step_takes_the_agent_along_by_its_cgroup(change, level):
    around = replace(HOST, environ={"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, **change)
    assert [(f.check, f.level) for f in what_ends_with_us(around)] == [("slurm", level)]


@pytest.mark.parametrize(
    ("logind", "change", "warned"),
    [
        ("", {}, True),
        ("#RemoveIPC=no\n", {}, True),
        ("RemoveIPC=no\n", {}, False),
        ("", {"lingers": True}, False),
        ("", {"uid": 0}, False),
    ],
)
def test_a_logout_removes_the_files_of_ordinary_users(logind, change, warned):
    found = what_ends_with_us(replace(HOST, logind=logind, **change))
    assert any(f.check == "login" for f in found) is warned


def _room(tmp_path: Path, state_bytes: int | None, budget: int):
    config = Config.from_url(f"{tmp_path}/run7")
    settings = replace(config, arena_dir=str(tmp_path), arena_budget_bytes=budget).resolve({})
    return next(f for f in space.arena_room(settings, state_bytes, 0) if f.check == "arena-room")


def test_room_is_the_tightest_of_all_limits(tmp_path):
    assert "room for a state of 256 KiB" in _room(tmp_path, None, 1 << 20).message


def test_a_state_needs_its_size_times_the_slots(tmp_path):
    assert _room(tmp_path, 256 << 10, 1 << 20).level is Level.OK
    tight = _room(tmp_path, 257 << 10, 1 << 20)
    assert tight.level is Level.BAD
    assert "4 slots" in tight.message
    assert "keep_last" in tight.todo


@pytest.mark.parametrize(("served", "stale"), [(True, ["1.dead-0"]), (False, ["1.dead-0", "2.alive-old-1"])])
def test_what_a_living_agent_keeps_for_new_images_is_no_leftover(tmp_path, served, stale):
    folder = tmp_path / ".tmp"
    (folder / "a directory").mkdir(parents=True)
    for name in ("1.dead-0", "2.alive-old-1", "2.alive-3"):
        (folder / name).write_bytes(bytes(5000))
        if not name.endswith("3"):
            os.utime(folder / name, (time.time() - 7200,) * 2)
    [found] = stale_files(tmp_path, served=served)
    assert found.count == len(stale)
    found.remove()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {"1.dead-0", "2.alive-old-1", "2.alive-3", "a directory"} - {*stale}
    )


def test_leftovers_that_may_not_be_removed_are_an_error_of_the_tier(tmp_path, monkeypatch):
    path = tmp_path / ".tmp" / "1.dead-0"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (0, 0))
    [found] = stale_files(tmp_path, served=False)

    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(TierPermissionError, match="Permission denied"):
        found.remove()


def test_a_misspelt_variable_is_named_with_the_nearest():
    environ = {"HOLDFAST_IDLES": "3", "HOLDFAST_IDLE_S": "3", "HOLDFAST_RUN": "a", "HOLDFAST_TEST_SEED": "1", "X": ""}
    [found] = chosen_in_vain(Config.from_url("/data/run7").resolve({}), environ, cores=2)
    assert (found.check, found.level) == ("environment", Level.WARN)
    assert "HOLDFAST_IDLES" in found.message
    assert found.todo.startswith("HOLDFAST_IDLE_S ")


@pytest.mark.parametrize(
    ("setting", "lacking"), [("outside", 0), ("all", 0), ("0-3", 0), ("3", 0), ("2-5", 2), ("0-999", 996), ("4", 1)]
)
def test_cores_that_are_not_there_are_told(setting, lacking):
    settings = replace(Config.from_url("/data/run7").resolve({}), agent_cores=setting)
    found = [*chosen_in_vain(settings, {}, cores=4)]
    assert [f.check for f in found] == (["agent-cores"] if lacking else [])
    assert not found or f"lists {lacking} core" in found[0].message

"""Which file system a path stands on, as the kernel tells it."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

MEMORY_TYPES = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
NETWORK_TYPES = frozenset(
    {
        "nfs", "nfs4", "lustre", "ceph", "gpfs", "beegfs", "beegfs_nodev", "wekafs", "cifs", "smb3", "glusterfs", "afs",
        "pvfs2", "orangefs", "ocfs2", "gfs2", "panfs", "daos", "quobyte",
    }
)  # fmt: skip
"""What several nodes see as one. Others may be shared, too (9p, virtiofs): only what is surely so stands here."""
_FUSE_NETWORK = re.compile(
    r"fuse\.(sshfs|glusterfs|ceph|s3fs|gcsfuse|goofys|rclone|juicefs|mfs|lizardfs|saunafs|seaweedfs|blobfuse|dfuse)"
)
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """`root` is what of the file system is mounted: not "/" means that it is a part of it (a bind mount)."""

    point: str
    root: str
    type: str
    source: str

    @property
    def in_memory(self) -> bool:
        """Whether what is written there is gone when the node is, or merely restarts."""
        return self.type in MEMORY_TYPES

    @property
    def on_network(self) -> bool:
        """Whether other nodes see the same bytes, for sure."""
        mountpoint_s3 = self.type == "fuse" and self.source == "mountpoint-s3"
        return self.type in NETWORK_TYPES or bool(_FUSE_NETWORK.match(self.type)) or mountpoint_s3


def mount_of(path: Path, mountinfo: str | None = None) -> Mount:
    """The mount `path` is reached through; the last mounted where several are on one point."""
    with contextlib.suppress(OSError):
        os.stat(os.path.join(path, "."))  # first, for it may be mounted on demand
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    real = os.path.realpath(path)
    found = Mount("/", "/", "unknown", "")
    for mount in map(_parse, text.splitlines()):
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(found.point):
            found = mount
    return found


def _parse(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    root, point = left.split()[3:5]
    kind, source = [*right.split(), "", ""][:2]
    return Mount(_unescaped(point), _unescaped(root), kind, _unescaped(source))


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), text)


def existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(p for p in (path, *path.parents) if p.is_dir())

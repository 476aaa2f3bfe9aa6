"""Small and read-only file systems for tests of what is full or may not be written."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


class Mounts:
    """Tmpfs mounts below one directory; `close` takes them all away."""

    def __init__(self) -> None:
        # A short path: a socket may stand below it.
        self._root = Path(tempfile.mkdtemp(prefix="hf-", dir="/tmp"))
        self._made: list[Path] = []

    def tmpfs(self, size: str) -> Path:
        """A new file system of that size."""
        path = self._root / str(len(self._made))
        path.mkdir(parents=True)
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=False)
        if made.returncode != 0:
            pytest.skip("mounting a tmpfs is not allowed here")
        self._made.append(path)
        return path

    def fill(self, path: Path) -> Path:
        """Nothing more fits there; the file that takes the room."""
        filler = path / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(1 << 16))
        os.close(fd)
        return filler

    def read_only(self, path: Path) -> None:
        """From now on nothing can be written there."""
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)

    def writable(self, path: Path) -> None:
        """As it was."""
        subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)

    def close(self) -> None:
        for path in reversed(self._made):
            # Lazily: an agent that is on its way out may still hold a file.
            subprocess.run(["umount", "-l", str(path)], check=True)
        shutil.rmtree(self._root)

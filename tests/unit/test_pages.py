"""Pages: words, and processes named for good."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import AgentError, CapacityError, ConfigError, HoldfastError
from holdfast.wire.mapped import MappedFile, populate
from holdfast.wire.pages import PAGE_BYTES, RunPage, SlotPage, TrainerPage
from holdfast.wire.processes import process_alive, process_start


@pytest.mark.parametrize("kind", [SlotPage, TrainerPage, RunPage])
def test_every_word_has_a_place_of_its_own_and_keeps_64_bits(kind: type[SlotPage]) -> None:
    page = kind(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    words = {n: w for n, w in vars(kind).items() if type(w).__name__ == "_Word"}
    assert len({w.index for w in words.values()}) == len(words)
    assert min(w.index for w in words.values()) >= 2
    for i, name in enumerate(words):
        setattr(page, name, 2**63 + i)
    assert [getattr(page, n) for n in words] == [2**63 + i for i in range(len(words))]
    assert page.valid


def test_optional_words_read_minus_one_for_none() -> None:
    page = SlotPage(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    assert page.step == -1
    page.step = 0
    assert page.step == 0


def test_two_mappings_of_a_file_see_each_other(tmp_path: Path) -> None:
    a = MappedFile(tmp_path / "f", PAGE_BYTES * 4)
    b = MappedFile(tmp_path / "f")
    populate(a.buffer)
    a.buffer[5000] = 7
    populate(b.buffer)
    assert b.buffer[5000] == 7
    a.close()
    b.close()
    b.close()


def test_a_missing_arena_file_says_that_the_agent_ended(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="is gone"):
        MappedFile(tmp_path / "nothing")


FAILURES = [
    ("os.open", errno.EMFILE, CapacityError, "ulimit -n"),
    ("os.open", errno.EACCES, ConfigError, "HOLDFAST_ARENA_DIR"),
    ("os.ftruncate", errno.EFBIG, CapacityError, "ulimit -f"),
    ("os.posix_fallocate", errno.ENOSPC, CapacityError, "HOLDFAST_ARENA_DIR"),
    ("mmap.mmap", errno.ENOMEM, CapacityError, "ulimit -v"),
]


@pytest.mark.parametrize(("call", "number", "kind", "hint"), FAILURES)
def test_what_the_kernel_refuses_is_an_error_of_ours_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[HoldfastError], hint: str
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"holdfast.wire.mapped.{call}", refuse)
        with pytest.raises(kind, match=os.strerror(number)) as caught:
            MappedFile(tmp_path / "f", PAGE_BYTES * 4)
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    MappedFile(tmp_path / "f", PAGE_BYTES * 4).close()
    with monkeypatch.context() as patch:
        patch.setattr(f"holdfast.wire.mapped.{call}", refuse)
        with pytest.raises(kind):
            MappedFile(tmp_path / "f", PAGE_BYTES * 4)
    assert (tmp_path / "f").exists(), "it was there before"


def test_a_process_is_alive_by_pid_and_start_and_a_zombie_is_not() -> None:
    assert process_alive(os.getpid(), process_start(os.getpid()))
    assert not process_alive(os.getpid(), process_start(os.getpid()) + 1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:  # it ends when that does
        start = process_start(child.pid)
        assert process_alive(child.pid, start)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process_alive(child.pid, start)
    assert process_start(child.pid) == 0

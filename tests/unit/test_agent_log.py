"""The agent's log lies in memory: it does not grow for ever, and the newest of it is there."""

import subprocess
import sys

import pytest

from holdfast.wire.spawn import LOG, log_tail

LIMIT_BYTES = 20_000
PROGRAM = f"""
import logging, sys
from pathlib import Path
from holdfast.agent import log
log._LOG_BYTES = {LIMIT_BYTES}
log.begin_log()
log.bound_log(Path(sys.argv[1]))
for n in range(2000):
    logging.getLogger("holdfast.agent").error("error number %d", n)
print("Fatal Python error", file=sys.stderr)
"""


def say(arena, stderr):
    subprocess.run([sys.executable, "-c", PROGRAM, str(arena)], stderr=stderr, check=True)


def test_the_log_in_the_arena_keeps_the_newest(tmp_path):
    for _ in range(2):  # an agent, and the next one of that arena
        with (tmp_path / LOG).open("ab") as log:
            say(tmp_path, log)
        files = sorted(tmp_path.iterdir())
        assert [f.name for f in files] == [LOG, f"{LOG}.1"]
        assert all(0 < f.stat().st_size < LIMIT_BYTES + 1000 for f in files)
        newest = files[0].read_text()
        assert newest.endswith("ERROR error number 1999\nFatal Python error\n"), "also what Python says at the end"
        assert log_tail(tmp_path, 19) == "Fatal Python error\n"


def test_an_agent_in_the_foreground_says_all_where_it_was_started(tmp_path):
    (tmp_path / LOG).write_text("of an agent before\n")
    with (tmp_path / "terminal").open("wb") as terminal:
        say(tmp_path, terminal)
    assert len((tmp_path / "terminal").read_text().splitlines()) == 2001
    assert (tmp_path / LOG).read_text() == "of an agent before\n"


@pytest.mark.parametrize("n_bytes", [5, 2000])
def test_the_end_of_the_log_is_read_and_no_more(tmp_path, n_bytes):
    (tmp_path / LOG).write_text("a long story\n")
    assert log_tail(tmp_path, n_bytes) == "a long story\n"[-n_bytes:]
    assert log_tail(tmp_path / "nowhere") == "(no log: No such file or directory)"

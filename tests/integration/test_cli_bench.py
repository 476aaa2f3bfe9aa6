"""`holdfast bench` as a process: what it prints and keeps, and what it leaves when it is ended, at a living run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fault.inject.faults import COMMAND, Fault
from tests.integration.place import until

from holdfast.store.figures import read_figures
from holdfast.store.measure import BENCH

# A shell that starts a job in the background has it ignore Ctrl-C, and all that it starts, too.
HEARS_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
HAS_FAULTS = f"from tests.fault.inject import faults; faults.install({COMMAND!r})"
CODE = f"{HEARS_INTERRUPTS}; import sys; from holdfast.cli import main; sys.exit(main())"
LIMIT_S = 60.0


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "holdfast" / "tiers"


@pytest.fixture
def start():
    """Starts `holdfast bench`; what still runs when the test ends, is ended."""
    with contextlib.ExitStack() as started:

        def call(*arguments: str, first: str = "") -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", f"{first}\n{CODE}", "bench", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield call


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def await_objects(home: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not any((home / BENCH).rglob("*/small/*")):
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.01)


def test_it_prints_a_table_keeps_figures_and_removes_the_directory_it_made(place, state, start):
    code, out, err = finish(start(str(place.home), "--seconds", "1", "--space", "20 MiB"))
    assert code == 0, err
    assert out.split()[:6] == ["OBJECT", "CALLS", "WRITE", "READ", "PUBLISH", "SAMPLES"]
    assert "put_if_absent" in out
    figures = read_figures(state, f"file://{place.home}")
    assert figures is not None
    assert figures.bandwidth
    assert figures.facts.cores == os.cpu_count()
    assert str(state) in err
    assert not place.home.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_nothing_is_left(place, state, start, number, code):
    place.home.mkdir()
    process = start(str(place.home), "--seconds", "60", "--space", "40 MiB")
    await_objects(place.home)
    process.send_signal(number)
    found, out, err = finish(process)
    assert (found, out) == (code, ""), err
    assert files(place.home) == []
    assert not state.exists()


def test_a_signal_as_an_upload_begins_leaves_nothing_either(place, state, start, inject):
    """Its file is there, and nobody knows of it yet."""
    place.home.mkdir()
    fired = inject(Fault(COMMAND, "holdfast.tiers.posix.upload:reserve", do="pause", arg="/nonexistent", nth=9))
    process = start(str(place.home), "--seconds", "60", "--space", "40 MiB", first=HAS_FAULTS)
    until(fired, "an upload to begin")
    assert any("/0.bench." in f"/{Path(f).name}" for f in files(place.home) if f.startswith(".tmp/"))
    process.terminate()
    found, out, err = finish(process)
    assert (found, out) == (143, ""), err
    assert files(place.home) == []


def test_what_kill_9_left_is_removed_by_the_next_beside_a_run_that_is_not_touched(place, state, start):
    images = place.home / "images" / "00000001" / "000000000001"
    images.mkdir(parents=True)
    (images / "00000-0.safetensors").write_bytes(b"a run's")
    before = files(place.home)
    process = start(str(place.home), "--seconds", "60")
    await_objects(place.home)
    process.kill()
    finish(process)
    assert files(place.home) != before
    code, out, err = finish(start(str(place.home), "--seconds", "1", "--space", "20 MiB", "--json"))
    assert code == 0, err
    assert "a killed measurement had left" in err
    assert files(place.home) == before
    document = json.loads(out)
    assert document["kept_in"].startswith(str(state))
    assert {b["direction"] for b in document["bandwidth"]} == {"write", "read"}


def test_more_than_is_free_is_refused_and_a_missing_parent_too(place, state, start):
    code, out, err = finish(start(str(place.home), "--space", "900 TiB", "--json"))
    assert code == 52, err
    assert json.loads(out)["kind"] == "tier-full"
    assert "--space" in json.loads(out)["hint"]
    code, _, err = finish(start(str(place.home / "not" / "there"), "--seconds", "1"))
    assert code == 3, err
    code, _, err = finish(start(str(place.home), "--seconds", "5 h"))
    assert code == 3, err
    assert not place.home.exists()

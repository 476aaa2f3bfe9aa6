"""An agent that takes long to start is not started twice, and one that died while it started is."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.integration.place import until

from holdfast.config import Config
from holdfast.wire import spawn

pytestmark = pytest.mark.started_agents


@pytest.fixture
def settings(place):
    return Config.from_url(place.url).resolve()


def begin_with(monkeypatch, tmp_path, script):
    """Agents run this before they are what they are; each of them is one line of the file returned."""
    started = tmp_path / "started"
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\necho $$ >> {started}\n{script}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(spawn, "_RESPAWN_S", 0.1)
    return started


def test_an_agent_that_starts_slowly_is_not_started_again(settings, monkeypatch, tmp_path):
    started = begin_with(monkeypatch, tmp_path, "sleep 1.5")
    began = time.monotonic()
    spawn.ensure_agent(settings)
    assert time.monotonic() - began > 1.5, "many times as long as another start is waited for"
    [pid] = started.read_text().split()
    until(lambda: not (settings.arena / spawn.STARTING).exists(), "it serves, and is not starting any more")
    assert not spawn.starts(settings.arena)
    os.kill(int(pid), 0)


def test_others_of_the_node_do_not_start_one_beside_it(settings, monkeypatch, tmp_path):
    started = begin_with(monkeypatch, tmp_path, "sleep 1")
    spawn.spawn_agent(settings)
    assert spawn.starts(settings.arena)
    spawn.ensure_agent(settings)
    assert len(started.read_text().split()) == 1


def test_an_agent_that_died_while_it_started_is_missed(settings, monkeypatch, tmp_path):
    once = tmp_path / "once"
    started = begin_with(monkeypatch, tmp_path, f"if [ ! -e {once} ]; then touch {once}; exit 1; fi")
    spawn.ensure_agent(settings)
    assert len(started.read_text().split()) == 2


def test_an_agent_on_its_way_out_is_followed_at_once(settings, monkeypatch, tmp_path):
    """It holds the lock while it ends; its successor starts meanwhile, and waits for that."""
    before = spawn.ensure_agent(settings).get("/status", dict, timeout_s=20)["pid"]
    started = begin_with(monkeypatch, tmp_path, "")
    os.kill(before, signal.SIGSTOP)
    (settings.arena / spawn.SOCKET).unlink()
    with ThreadPoolExecutor(1) as pool:
        try:
            client = pool.submit(spawn.ensure_agent, settings)
            until(started.exists, "a successor")
        finally:
            os.kill(before, signal.SIGKILL)
        assert client.result(30).get("/status", dict, timeout_s=20)["pid"] == int(started.read_text())


@pytest.mark.parametrize("noted", ["", "noise", "1", f"{os.getpid()} 1"])
def test_a_note_that_names_no_living_process_stops_nobody(tmp_path, noted):
    (tmp_path / spawn.STARTING).write_text(noted)
    assert not spawn.starts(tmp_path)

"""`holdfast status` beside agents that live, are stopped, are gone; pages in files; live on a terminal."""

import contextlib
import functools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.cli import main  # noqa: E402

pytestmark = pytest.mark.torch
PROGRAM = "import sys; sys.argv[0] = 'holdfast'; from holdfast.cli import main; sys.exit(main())"
STATE = {"x": torch.ones(10_000)}


@pytest.fixture
def run(run):
    return functools.partial(run, "status")


@contextlib.contextmanager
def training(url):
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(STATE)
        for step in (1, 2, 3):
            due(ckpt.save(step, STATE)).wait("durable", timeout_s=30)
        yield ckpt


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_status_shows_of_a_living_run(place, run, capsys, tmp_path, monkeypatch):
    with training(place.url):
        check_document(place, run)
        check_text(place, capsys)
        check_page(place, tmp_path, capsys, monkeypatch)
        check_memory(place, capsys)
        check_live(place)
        check_silence(place, run, capsys, monkeypatch)


def check_document(place, run):
    for args in ([], [place.url]):
        code, document = run(*args)
        assert code == 0
        [agent] = document["agents"]
        assert (agent["run"], agent["home"], agent["state"]) == ("run", place.url, "serving")
        assert (agent["status"]["level"], agent["status"]["headline"]) == ("ok", "All is well")
        assert agent["status"]["tiers"][0]["newest_committed"] == 3
        assert sum(s["saves"] for s in agent["history"]["stalls"]["0"]) == 3


def check_text(place, capsys):
    assert main(["status"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "run: All is well"
    assert any(line.startswith("posix up to date 3 none ") for line in lines)
    assert any(line.startswith("0 alive 3 3 ") for line in lines)
    assert any(line.startswith("slots of 0") and "[3]" in line and "[2]" in line for line in lines)


def check_page(place, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.html"
    assert main(["status", place.url, "--page", str(page)]) == 0
    assert "All is well</h1>" in page.read_text()
    assert [p.name for p in tmp_path.glob("*page*")] == ["page.html"]
    seen = tmp_path / "seen"
    monkeypatch.setattr("webbrowser.open", lambda url: bool(seen.write_text(url)))
    assert main(["status", "--open", "--page", str(page)]) == 0
    assert seen.read_text() == page.as_uri()
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    capsys.readouterr()
    assert main(["status", "--open", "--page", str(page)]) == 2
    assert "ssh -N -L" in capsys.readouterr().err
    assert main(["status", "--page", str(tmp_path / "nowhere/page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def check_memory(place, capsys):
    """What is in this node's slots is shown and compared like what is on a tier."""

    def call(*args):
        code = main([args[0], place.url, "--tier", "memory", *map(str, args[1:]), "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, document = call("show")
    assert (code, document["step"], document["images"][0]["rank"]) == (0, 3, 0)
    on_disk = main(["show", place.url, "--json"]), json.loads(capsys.readouterr().out)
    assert on_disk == (0, document)
    code, document = call("show", "--tensor", "x")
    assert (code, document["tensors"][0]["statistics"]["l2"]) == (0, 100.0)
    code, document = call("diff")
    assert [document[side]["step"] for side in ("first", "second")] == [2, 3]
    assert [(t["name"], t["changed"]) for t in document["tensors"]] == [("x", 0)]
    code, document = call("show", "--step", 1)
    assert (code, document["message"]) == (31, f"step 1 is not committed on tier memory of {place.url}")
    assert main(["show", place.url, "--tier", "nvme"]) == 31
    assert "there are memory, posix" in capsys.readouterr().err
    assert main(["show", place.url, "--tier", "posix"]) == 0
    assert capsys.readouterr().out.startswith("step 3 (attempt 1) of run")


def check_silence(place, run, capsys, monkeypatch):
    """An agent that lives and does not answer is shown as such, within the deadline."""
    monkeypatch.setattr("holdfast.cli.agents.ANSWER_S", 0.5)
    agent = processes.the_agent(place.arena_dir)
    with stopped(agent.pid):
        began = time.monotonic()
        code, document = run()
        assert time.monotonic() - began < 20
        [seen] = document["agents"]
        assert (code, seen["state"], seen["status"]) == (0, "silent", None)
        assert seen["error"]["kind"] == "deadline"
        assert main(["status", "--page", str(place.home.parent / "p")]) == 23
    assert "did not answer" in capsys.readouterr().err


def check_live(place):
    """On a terminal the view is drawn again and again; q ends it, the terminal is as it was, the last view stays."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-c", PROGRAM, "status", place.url, "--watch-s", "0.2"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        assert "\x1b[?1049h" in read_until(ours, b"q ends")
        read_until(ours, b"q ends")
        os.write(ours, b"q")
        rest = read_until(ours, b"process ")
        assert rest.rindex("\x1b[?1049l") < rest.rindex("All is well")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


def read_until(fd: int, wanted: bytes, within_s: float = 40.0) -> str:
    said, deadline = b"", time.monotonic() + within_s
    while wanted not in said:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"not within {within_s:g} s: {wanted!r} in {said[-500:]!r}"
        with contextlib.suppress(OSError):  # the other end closed
            said += os.read(fd, 65536)
    return said.decode(errors="replace")


def end_all(place):
    """Also one that was started on a slow machine and waited for the other's end."""

    def none_left():
        processes.end_agents(place.arena_dir)
        time.sleep(0.5)
        return not processes.agents(place.arena_dir)

    until(none_left, "all agents end")


def test_without_agents_there_is_nothing_to_see(place, run, capsys):
    assert run() == (0, {"agents": []})
    assert main(["status"]) == 0
    assert "no agent of this user" in capsys.readouterr().out
    code, document = run(place.url)
    assert (code, document["kind"]) == (22, "agent")


def test_two_runs_and_one_that_died_are_shown_in_a_row_each(place, run, capsys):
    other = place.home.parent / "other"
    config = holdfast.Config(
        tiers=(holdfast.TierConfig("memory:"), holdfast.TierConfig(str(other), every_steps=100)), run="other"
    )
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(STATE)
    due(ckpt.save(1, STATE)).wait("memory", timeout_s=30)
    end_all(place)
    with training(place.url):
        # Its trainer is this process and lives; only its agent is gone.
        found = {a["run"]: a for a in run()[1]["agents"]}
        assert {n: a["state"] for n, a in found.items()} == {"run": "serving", "other": "none"}
        assert found["other"]["only_here"] == [{"attempt": 1, "step": 1}]
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert "memory alone holds step 1 (attempt 1)" in out
        assert main(["status", "--page", str(place.home.parent / "p")]) == 2
        code, document = run(other)
        assert (code, document["kind"]) == (22, "agent")
        assert "its memory alone holds step 1" in document["message"]
    ckpt.close()
    until(lambda: not processes.agents(place.arena_dir), "both agents end")


def test_a_page_is_no_json_document(place, run):
    assert run("--page", Path("x"))[0] == 2

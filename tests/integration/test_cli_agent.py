"""Commands beside a living agent, and `holdfast agent` itself."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from tests.integration import processes

from holdfast.cli import main
from holdfast.cli.arenas import arena_of
from holdfast.model.identity import CheckpointId
from holdfast.store.attempts import claim
from holdfast.tiers import open_tier
from holdfast.wire.spawn import answers

PROGRAM = "import sys; from holdfast.cli import main; sys.exit(main())"
START_S = 30.0


@pytest.fixture
def home(monkeypatch) -> Iterator[Path]:
    """A home, and an arena directory beside it whose path is short enough for a socket; its agents are ended after."""
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp") as directory:
        monkeypatch.setenv("HOLDFAST_ARENA_DIR", directory)
        home = Path(directory, "run7")
        open_tier(f"file://{home}", name="posix", owner="1.test").close()
        try:
            yield home
        finally:
            processes.end_agents(Path(directory))


@contextlib.contextmanager
def foreground(*args: object) -> Iterator[subprocess.Popen[bytes]]:
    """`holdfast agent ...` in a process of its own; ended with an interrupt, as a person would."""
    with running([sys.executable, "-c", PROGRAM, "agent", *map(str, args)], subprocess.DEVNULL) as agent:
        yield agent
        agent.send_signal(signal.SIGINT)
        agent.wait(START_S)


@contextlib.contextmanager
def running(command: list[str], stderr: int | IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process; killed if it still runs at the end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(arena: Path) -> None:
    deadline = time.monotonic() + START_S
    while not answers(arena):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def agent_finding(document: dict) -> dict:
    [found] = [f for f in document["findings"] if f["check"] == "agent"]
    return found


def test_the_agent_runs_tells_its_status_and_is_stopped(home, run):
    with foreground(home) as agent:
        wait_for(arena_of(f"file://{home}"))
        code, status = run("agent", home, "--status")
        assert code == 0
        assert (status["run"], status["pid"]) == ("run7", agent.pid)
        assert run("ls", home)[1]["agent"]
        assert "serves" in agent_finding(run("doctor", home)[1])["message"]
        assert run("agent", home, "--stop")[1]["was_running"]
        assert agent.wait(START_S) == 0
    assert not run("agent", home, "--stop")[1]["was_running"]
    code, error = run("agent", home, "--status")
    assert (code, error["kind"]) == (22, "agent")
    assert "no agent runs for this run on this node" in error["message"]
    assert "HOLDFAST_ARENA_DIR" in error["hint"]


def test_an_arena_names_its_agent_as_well_as_a_url(home, run):
    with foreground(home):
        arena = arena_of(f"file://{home}")
        wait_for(arena)
        assert run("agent", "--arena", arena, "--status")[0] == 0
        assert main(["agent", "--arena", str(arena)]) == 0  # a second one goes quietly


def test_an_arena_without_settings_is_refused(home):
    assert main(["agent", "--arena", f"{home.parent}/none"]) == 22


def left(home: Path) -> list[str]:
    """What stands beside the home: arenas, where one was made."""
    return [str(p) for p in home.parent.rglob("*") if p not in (home, *home.rglob("*"))]


def test_an_agent_of_a_home_that_is_not_there_makes_nothing(home, capsys):
    assert main(["agent", f"{home}-typo"]) == 31
    assert "nothing is at" in capsys.readouterr().err
    assert main(["agent", f"{home.parent}/nope/a/run"]) == 3
    assert f"{home.parent}/nope/a does not exist" in capsys.readouterr().err
    assert left(home) == []


def test_an_agent_that_does_not_start_leaves_no_arena(home, monkeypatch):
    def fail(arena: Path) -> int:
        assert (arena / "config.json").exists()
        assert [stat.S_IMODE(p.stat().st_mode) for p in (arena, arena.parent)] == [0o700, 0o700]
        return 52

    monkeypatch.setattr("holdfast.agent.main.run", fail)
    assert main(["agent", str(home)]) == 52
    assert left(home) == []


def test_an_agent_moves_into_no_directory_that_another_user_may_have_made(home, capsys):
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    arena_of(f"file://{home}").parent.symlink_to(elsewhere)
    assert main(["agent", str(home)]) == 3
    assert "belongs to user" in capsys.readouterr().err
    assert not any(elsewhere.iterdir())


def test_an_agent_whose_home_has_gone_says_so_and_keeps_its_arena(home, run, tmp_path):
    with foreground(home) as agent:
        arena = arena_of(f"file://{home}")
        wait_for(arena)
        assert run("agent", home, "--stop")[1]["was_running"]
        assert agent.wait(START_S) == 0
    config = (arena / "config.json").read_text()
    (arena / "config.json").write_text(config.replace(str(home), f"{home}/gone/run7"))
    command = [sys.executable, "-c", PROGRAM, "agent", "--arena", str(arena)]
    with (tmp_path / "said").open("w") as out, running(command, out) as agent:
        wait_for(arena)  # it keeps what is in memory, and uses the tier when it can
        agent.terminate()
        assert agent.wait(START_S) == 0
    said = (tmp_path / "said").read_text()
    assert "tier posix is not used until it can be opened" in said
    assert f"{home}/gone" in said
    assert "Traceback" not in said
    assert arena.exists()


def test_json_of_an_agent_in_the_foreground_is_refused(home, run):
    code, error = run("agent", home)
    assert (code, error["kind"]) == (2, "usage")
    assert "--status" in error["hint"]


def test_stopping_says_that_the_memory_stays(home, capsys):
    with foreground(home):
        wait_for(arena_of(f"file://{home}"))
        assert main(["agent", str(home), "--stop"]) == 0
    told = capsys.readouterr().out
    assert "its memory stays" in told
    assert "holdfast doctor --clean --yes" in told


def test_the_status_table_tells_that_a_trainer_is_dead(home, monkeypatch, capsys):
    status = {"run": "run7", "arena_bytes": 8192, "arena_size": "8 KiB", "trainers": [{"rank": 0, "alive": False}]}
    monkeypatch.setattr("holdfast.cli.agent.answers", lambda arena: True)
    monkeypatch.setattr("holdfast.wire.client.AgentClient.get", lambda *args, **query: status)
    assert main(["agent", str(home), "--status"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rank", "alive"] in lines
    assert ["0", "no"] in lines
    assert ["arena_bytes", "8", "KiB"] in lines
    assert not any(line[:1] == ["arena_size"] for line in lines)


def test_the_agent_is_found_where_the_highest_attempt_was_claimed(home, run, monkeypatch):
    with foreground(home) as agent:
        arena = arena_of(f"file://{home}")
        wait_for(arena)
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        tier = open_tier(f"file://{home}", name="posix", owner="1.test")
        claim(tier, run="run7", parent=None, coordinator=f"{boot_id}:{arena}/agent.sock")
        tier.close()
        monkeypatch.setenv("HOLDFAST_ARENA_DIR", f"{home.parent}/elsewhere")
        assert run("ls", home)[1]["agent"]
        assert "serves" in agent_finding(run("doctor", home)[1])["message"]
        for module in ("runs", "health.agent"):
            monkeypatch.setattr(f"holdfast.cli.{module}._CALL_S", 0.5)
        agent.send_signal(signal.SIGSTOP)
        try:
            code, document = run("doctor", home)
            assert (code, agent_finding(document)["level"]) == (1, "bad")
            assert "did not answer" in agent_finding(document)["message"]
            code, document = run("ls", home)
            assert (code, document["agent"]) == (0, True)
            assert "memory: the agent did not answer" in str(document["problems"])
        finally:
            agent.send_signal(signal.SIGCONT)


def test_clearing_the_run_ends_an_agent_without_trainers(home, run):
    tier = open_tier(f"file://{home}", name="posix", owner="1.test")
    claim(tier, run="run7", parent=CheckpointId(1, 20), coordinator="")
    tier.close()
    with foreground(home) as agent:
        arena = arena_of(f"file://{home}")
        wait_for(arena)
        code, document = run("prune", home, "--everything", "--yes")
        assert code == 0
        assert document["arenas"] == [os.fspath(arena)]
        assert agent.wait(START_S) == 0
        assert not arena.exists()
        assert [p for p in home.rglob("*") if p.is_file()] == []


@pytest.mark.torch
def test_a_living_run_is_listed_pruned_and_guarded(home, run):
    torch = pytest.importorskip("torch")
    import holdfast

    state = {"w": torch.arange(4096.0), "epoch": 0}
    with holdfast.Checkpointer(f"file://{home}", every_steps=10) as checkpointer:
        assert checkpointer.load(state) is None
        for step in (10, 20, 30):
            save = checkpointer.save(step, state)
            assert save is not None
            save.wait("durable", timeout_s=60)

        steps = {s["step"]: s for s in run("ls", home)[1]["steps"]}
        assert steps.keys() == {10, 20, 30}
        assert steps[30]["newest"]
        assert "memory" in steps[30]["tiers"]

        code, document = run("prune", home, "--step", 10, "--yes")
        assert (code, document["through"]) == (0, "agent")
        assert [s["step"] for s in run("ls", home)[1]["steps"]] == [20, 30]
        assert run("prune", home, "--everything", "--yes")[0] == 21
        assert run("agent", home, "--stop")[0] == 21
        assert run("verify", home, "--all")[0] == 0

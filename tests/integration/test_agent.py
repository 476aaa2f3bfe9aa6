"""The agent seen from outside: its socket, its status, its metrics, its page, and what it does not import."""

import http.client
import os
import socket
import stat
import statistics
import threading
import time
import warnings
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

torch = pytest.importorskip("torch")

from tests.integration import processes, reference  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import HoldfastError, RunBusyError, UsageError  # noqa: E402
from holdfast.wire import messages  # noqa: E402
from holdfast.wire.spawn import SOCKET  # noqa: E402
from holdfast.wire.status import Flush, History, Stall  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.started_agents]


class Rows(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data + " "


def get(arena, path, method="GET", headers=None):
    """What a browser or Prometheus would get."""
    connection = http.client.HTTPConnection("agent", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(str(arena / SOCKET))
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


@contextmanager
def training(place):
    """Three steps saved and committed."""
    with holdfast.Checkpointer(place.url) as ckpt:
        state = {"x": torch.ones(10_000)}
        ckpt.load(state)
        for step in (1, 2, 3):
            due(ckpt.save(step, state)).wait("durable", timeout_s=30)
        yield ckpt


def test_what_the_agent_shows(place):
    with training(place):
        check_metrics(place)
        check_status(place)
        check_history(place)
        check_page(place)
        check_privacy(place)
        check_refusals(place)


def check_metrics(place):
    code, kind, text = get(place.arena, "/metrics")
    assert code == 200
    assert kind.startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(text)}
    names = {s.name for f in families.values() for s in f.samples}
    assert names == reference.column("Metrics", "metric")
    labels = {s.name: set(s.labels) for f in families.values() for s in f.samples}
    assert labels == {r["metric"]: set(r["labels"].split(", ")) - {""} for r in reference.table("Metrics")}

    def value(family, name, **labels):
        return next(s.value for s in families[family].samples if s.name == name and s.labels == labels)

    assert value("holdfast_saves", "holdfast_saves_total", rank="0") == 3
    assert value("holdfast_step", "holdfast_step", rank="0") == 3
    assert value("holdfast_committed_step", "holdfast_committed_step", tier="posix") == 3
    assert value("holdfast_flushed_bytes", "holdfast_flushed_bytes_total", tier="posix") > 120_000
    assert value("holdfast_errors", "holdfast_errors_total") == 0
    assert value("holdfast_attempt", "holdfast_attempt") == 1
    assert {s.labels["state"] for s in families["holdfast_slots"].samples} == {"free", "filling", "staged", "held"}


def check_status(place):
    status = place.status()
    assert status.keys() == reference.column("Status", "key")
    for part in ("trainers", "tiers", "slots", "steps"):
        assert status[part], part
        for row in status[part]:
            assert row.keys() == reference.column(f"Status: `{part}[]`", "key"), part
    assert status["home"] == place.url
    assert status["trainers"][0]["pid"] == os.getpid()
    assert status["trainers"][0]["attached"] is True
    assert {s["step"] for s in status["steps"] if s["memory"] == "whole"} == {2, 3}
    assert (status["attempt"], status["errors"], status["superseded_by"]) == (1, 0, 0)


def check_history(place):
    answer = place.agent().get("/history", History, timeout_s=10)
    assert {s.step for s in answer.stalls[0]} <= {1, 2, 3}
    assert sum(s.saves for s in answer.stalls[0]) == 3
    assert [(f.step, f.error) for f in answer.flushes["posix"]] == [(1, ""), (2, ""), (3, "")]
    assert all(f.seconds > 0 and f.size_bytes > 40_000 for f in answer.flushes["posix"])
    for part, kind in (("stalls", Stall), ("flushes", Flush)):
        assert reference.column(f"History: `{part}`", "key") == set(kind.__struct_fields__)


def check_page(place):
    code, kind, text = get(place.arena, "/")
    assert code == 200
    assert kind.startswith("text/html")
    page = Rows()
    page.feed(text)
    assert "script" not in page.tags
    assert {"h1", "table", "td"} <= set(page.tags)
    for word in (place.url, "posix", "All is well", "slots", "Steps", "Stalls of rank 0", "Flushes to posix"):
        assert word in page.text


def check_privacy(place):
    """Nobody else may read the arena or speak to the socket; and there is no torch in that process."""
    assert stat.S_IMODE(place.arena.stat().st_mode) == 0o700
    for path in (*place.arena.glob("slot-*"), *place.arena.glob("*.page"), place.arena / "agent.log"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((place.arena / SOCKET).stat().st_mode) == 0o600
    agent = processes.the_agent(place.arena_dir)
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "torch" not in maps
    assert "slot-00000" in maps


def check_refusals(place):
    """Bad calls are answered with an error, and the agent lives on."""
    client = place.agent()
    with pytest.raises(UsageError):
        client.get("/no-such-call", dict, timeout_s=10)
    with pytest.raises(UsageError):
        client.post("/prepare", {"nonsense": True}, messages.PrepareAnswer, timeout_s=10)
    with pytest.raises(RunBusyError):
        client.post("/stop", messages.Stop(), messages.Ok, timeout_s=10)
    status, _, text = get(place.arena, "/stop", method="POST", headers={"Origin": "http://elsewhere.example"})
    assert status == 400
    assert "from a browser" in text
    assert place.status()["errors"] == 0


def test_two_runs_on_one_node_have_agents_of_their_own(place):
    other = place.home.parent / "other"
    with holdfast.Checkpointer(place.url) as one, holdfast.Checkpointer(str(other)) as two:
        for value, ckpt in ((1, one), (2, two)):
            ckpt.load({"x": torch.zeros(10)})
            ckpt.save(value, {"x": torch.full((10,), float(value))})
        until(lambda: len(processes.agents(place.arena_dir)) == 2, "an agent for each")
    until(lambda: not processes.agents(place.arena_dir), "both agents end")
    x = torch.zeros(10)
    with holdfast.Checkpointer(str(other)) as ckpt:
        assert ckpt.load({"x": x}) == 2
    assert (x == 2).all()


@contextmanager
def deaf(socket_path):
    """Something in the agent's place that takes calls and answers none."""
    socket_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path))
        listening.listen(64)
        ours = socket_path.stat().st_ino
        yield
        if socket_path.stat().st_ino == ours:  # else it is that of the next agent by now
            socket_path.unlink()


def test_training_does_not_wait_for_an_agent_that_does_not_answer(place, monkeypatch):
    monkeypatch.setenv("HOLDFAST_SLOT_WAIT_S", "0.3")
    ckpt = holdfast.Checkpointer(place.url)
    state = {"x": torch.ones(1000)}
    ckpt.load(state)
    due(ckpt.save(1, state)).wait("durable", timeout_s=30)
    agent = processes.the_agent(place.arena_dir)
    agent.kill()
    agent.wait(30)
    with deaf(place.arena / SOCKET):
        took_s = []
        for step in range(2, 12):
            began = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # steps are dropped
                ckpt.save(step, state)
            took_s.append(time.monotonic() - began)
    assert statistics.median(took_s) < 0.2, took_s  # one of them waits, and not all of the others
    assert max(took_s) < 20, took_s
    assert ckpt.steps(), "outside of training a new agent is waited for"
    due(ckpt.save(20, state)).wait("durable", timeout_s=30)
    ckpt.close()
    assert place.committed()[-1] == (1, 20)


KILLS = 5


def test_agents_die_while_one_thread_waits_and_another_saves(place, monkeypatch):
    monkeypatch.setenv("HOLDFAST_SLOT_WAIT_S", "0.5")
    ckpt = holdfast.Checkpointer(place.url)
    state = {"x": torch.ones(1000)}
    ckpt.load(state)
    saves, over, failed = [due(ckpt.save(1, state))], threading.Event(), []

    def wait():
        """Until all is over: what is waited for may be dropped or lost, as the agent dies again and again."""
        while not over.is_set():
            try:
                saves[-1].wait("durable", timeout_s=5)
            except HoldfastError:
                time.sleep(0.01)
            except Exception as e:
                failed.append(e)
                return

    waiters = [threading.Thread(target=wait, name=f"waiter-{n}") for n in range(3)]
    for waiter in waiters:
        waiter.start()
    longest_s, step, killed = 0.0, 1, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps are dropped
        try:
            end = time.monotonic() + 60
            while killed < KILLS and time.monotonic() < end:
                step += 1
                began = time.monotonic()
                saves.append(due(ckpt.save(step, state)))
                longest_s = max(longest_s, time.monotonic() - began)
                if step % 20 == 0:
                    for agent in processes.agents(place.arena_dir):
                        agent.kill()
                        killed += 1
                time.sleep(0.005)
        finally:
            over.set()
            for waiter in waiters:
                waiter.join(30)
        assert failed == []
        assert killed >= KILLS
        assert longest_s < 10
        ckpt.steps()  # waits for an agent
        due(ckpt.save(step + 1, state)).wait("durable", timeout_s=30)
    ckpt.close()
    assert place.committed()[-1] == (1, step + 1)

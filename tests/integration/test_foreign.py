"""Checkpoints of real jobs, loaded and read by processes that have no part in the job."""

import hashlib
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.integration import jobs, processes
from tests.integration.place import Place, due, until

import holdfast
from holdfast.errors import LoadError

pytestmark = pytest.mark.torch


def listing(root):
    return sorted((str(p.relative_to(root)), p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*"))


def test_what_two_ranks_saved_is_loaded_by_one_process_and_read_by_a_fresh_one(place, forker):
    told = processes.start(forker, 2, jobs.train, place.url, steps=3).values()
    until(lambda: not processes.agents(place.arena_dir), "the job's agent has ended")
    before = listing(place.home)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 1100), torch.nn.BatchNorm1d(1100), torch.nn.ReLU(), torch.nn.Linear(1100, 290)
    )
    state = {"model": model, "optim": torch.optim.AdamW(model.parameters()), "step": -1}
    step = holdfast.load(place.url, state, only=None)
    assert (step, state["step"]) == (2, 2)
    assert jobs.digest(state) == told[0]["digest"]
    code = (
        "import hashlib, json, sys, holdfast\n"
        "w = holdfast.read(sys.argv[1], 'model.3.weight')\n"
        "mine = holdfast.read(sys.argv[1], 'mine.at', step=1)\n"
        "print(json.dumps([hashlib.sha256(w.numpy().tobytes()).hexdigest(), list(w.shape), str(w.dtype), mine]))\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code, place.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert fresh.returncode == 0, fresh.stderr
    weight = model.get_parameter("3.weight").detach()
    sha = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
    assert json.loads(fresh.stdout) == [sha, [290, 1100], "torch.float32", [10, 11]]
    assert listing(place.home) == before, "nothing is written"
    assert not processes.agents(place.arena_dir), "no agent is started"


class Adapted(torch.nn.Module):
    """The layers of a base model, with an adapter beside one of them and a head of another width."""

    def __init__(self, base):
        super().__init__()
        self.body, self.head = base.body, torch.nn.Linear(64, 7)
        self.lora_a, self.lora_b = torch.nn.Linear(64, 4, bias=False), torch.nn.Linear(4, 64, bias=False)

    def forward(self, x):
        h = self.body(x)
        return self.head(h + self.lora_b(self.lora_a(h)))


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(32, 64), torch.nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_warm_start_of_an_adapted_model_in_a_run_of_its_own(place, tmp_path):
    base = Base()
    optim = torch.optim.AdamW(base.parameters())
    base(torch.ones(2, 32)).sum().backward()
    optim.step()
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load({"model": base, "optim": optim, "step": 0})
        due(ckpt.save(100, {"model": base, "optim": optim, "step": 100})).wait("durable", timeout_s=30)
    adapted = Adapted(Base())
    other = Place(tmp_path / "adapted", place.arena_dir)
    state: dict[str, Any] = {"model": adapted, "optim": torch.optim.AdamW(adapted.parameters()), "step": 0}
    with holdfast.Checkpointer(other.url) as ckpt:
        assert ckpt.load(state) is None
        with pytest.warns(RuntimeWarning, match="2 have another shape: model.head.weight") as told:
            step = holdfast.load(place.url, state, only=("model",), strict=False)
        assert [w.filename for w in told] == [__file__]
        assert step == 100
        assert [d.path for d in step.differences.missing] == ["model.lora_a.weight", "model.lora_b.weight"]
        assert [d.path for d in step.differences.shape] == ["model.head.weight", "model.head.bias"]
        assert torch.equal(adapted.body.weight, base.body.weight)
        assert state["step"] == 0
        for n in range(2):
            state["optim"].zero_grad()
            adapted(torch.ones(2, 32)).sum().backward()
            state["optim"].step()
            ckpt.save(n, state)
    assert [step for _, step in place.committed()] == [100]
    again = Adapted(Base())
    assert holdfast.load(other.url, {"model": again}) == 1
    assert torch.equal(again.lora_b.weight, adapted.lora_b.weight)


def test_a_run_is_read_while_its_job_saves_and_prunes(place):
    """Whatever is pruned under the reader, what it gets is one step, whole."""
    n_bytes = 6 << 20
    stop = threading.Event()
    seen: list[int] = []
    wrong: list[str] = []

    def look():
        while not stop.is_set():
            live: dict[str, Any] = {"x": torch.zeros(n_bytes // 4), "y": torch.zeros(n_bytes // 4), "step": -1}
            try:
                step = holdfast.load(place.url, live, only=None)
                if step is None:  # nothing is claimed yet
                    continue
                one = holdfast.read(place.url, "step")
            except LoadError as e:  # only at the beginning
                if seen or "nothing is committed" not in e.message:
                    wrong.append(str(e))
                continue
            except Exception as e:
                wrong.append(repr(e))
                return
            if not (live["x"] == step).all() or not (live["y"] == -step).all() or live["step"] != step or one < step:
                wrong.append(f"{step}: {live}")
            seen.append(int(step))

    reader = threading.Thread(target=look)
    state: dict[str, Any] = {"x": torch.zeros(n_bytes // 4), "y": torch.zeros(n_bytes // 4), "step": 0}
    with holdfast.Checkpointer(place.url, keep_last=1) as ckpt:
        ckpt.load(state)
        reader.start()
        try:
            for step in range(1, 1000):
                state["x"].fill_(step)
                state["y"].fill_(-step)
                state["step"] = step
                due(ckpt.save(step, state)).wait("durable", timeout_s=30)
                if wrong or (step >= 12 and len(set(seen)) >= 4):
                    break
        finally:
            stop.set()
            reader.join(60)
    assert not wrong
    assert seen == sorted(seen)
    assert len(set(seen)) >= 4
    assert holdfast.read(place.url, "step") == step


def test_a_read_only_file_system_is_read(place, mounts):
    home = mounts.tmpfs("64m") / "run"
    with pytest.warns(RuntimeWarning, match="memory file system"):
        ckpt = holdfast.Checkpointer(f"file://{home}")
    with ckpt:
        ckpt.load({"x": torch.zeros(1000)})
        ckpt.save(4, {"x": torch.ones(1000)})
    mounts.read_only(home.parent)
    live = {"x": torch.zeros(1000)}
    assert holdfast.load(f"file://{home}", live, only=None) == 4
    assert live["x"].sum() == 1000
    assert holdfast.read(str(home), "x").sum() == 1000

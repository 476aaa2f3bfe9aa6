"""What forked ranks do: functions by name. The first argument, `tell`, sends the test a value."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import holdfast
from holdfast.errors import HoldfastError

Tell = Callable[[Any], None]


def training(seed: int = 0) -> dict[str, Any]:
    """A model of 7 MB with its optimizer, alike on all ranks; batch-norm statistics differ by rank."""
    torch.manual_seed(seed)
    inner = torch.nn.Sequential(
        torch.nn.Linear(256, 1100), torch.nn.BatchNorm1d(1100), torch.nn.ReLU(), torch.nn.Linear(1100, 290)
    )
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = torch.get_rng_state() if dist.get_rank() == 0 else torch.ones(5056, dtype=torch.uint8)
    return {"model": model, "optim": optimizer, "step": -1, "mine": holdfast.per_rank({"rng": rng, "at": 0})}


def step_of(state: dict[str, Any], step: int) -> None:
    torch.manual_seed(1000 * step + dist.get_rank())
    state["optim"].zero_grad()
    state["model"](torch.randn(8, 256)).square().mean().backward()
    state["optim"].step()
    state["step"] = step
    state["mine"].value["at"] = 10 * step + dist.get_rank()


def digest(state: dict[str, Any]) -> str:
    """Of parameters and optimizer state, which are alike on all ranks."""
    found = hashlib.sha256()
    tensors = [*state["model"].parameters()]
    for entries in state["optim"].state.values():
        tensors += entries.values()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(tell: Tell, url: str, *, steps: int, seed: int = 0) -> dict[str, Any]:
    """Load, train some steps with a save at each, close; what was loaded and where it ended."""
    state = training(seed)
    with holdfast.Checkpointer(url, keep_last=3) as ckpt:
        start = ckpt.load(state)
        loaded = {"start": start, "digest": digest(state), "step": state["step"], "at": state["mine"].value["at"]}
        first = 0 if start is None else start + 1
        for step in range(first, first + steps):
            step_of(state, step)
            ckpt.save(step, state)
    return {"loaded": loaded, "digest": digest(state), "at": state["mine"].value["at"]}


def adapted(tell: Tell, url: str, *, steps: int, change_at: int = -1) -> dict[str, Any]:
    """Load, train an adapter beside 3 MB of frozen bytes, close; at one step the frozen ones change on all ranks."""
    torch.manual_seed(0)
    base, adapter = torch.nn.Linear(1024, 768), torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    state = {"model": torch.nn.ModuleDict({"base": base, "adapter": adapter}), "optim": optimizer, "step": -1}
    with holdfast.Checkpointer(url) as ckpt:
        start = ckpt.load(state)
        loaded = digest(state)
        for step in range(0 if start is None else start + 1, (0 if start is None else start + 1) + steps):
            with torch.no_grad():
                adapter.weight.fill_(step)
                if step == change_at:
                    base.weight.data[-1] += 1
            saved = ckpt.save(step, state)
            assert saved is not None
            saved.wait("durable", timeout_s=60)
    return {"start": start, "loaded": loaded, "digest": digest(state)}


def until_told(
    tell: Tell, url: str, *, step_s: float, every_steps: int = 1000, ask: bool = True, steps: int = 100_000
) -> int:
    """Steps of that length until `should_stop` says so; the last step."""
    state: dict[str, Any] = {"x": torch.zeros(1000), "step": -1}
    with holdfast.Checkpointer(url, every_steps=every_steps) as ckpt:
        ckpt.load(state)
        for step in range(1, steps):
            time.sleep(step_s)
            state["x"].fill_(step)
            state["step"] = step
            ckpt.save(step, state)
            if ask and ckpt.should_stop():
                break
            if step == 3:
                tell(step)
    return step


def different(tell: Tell, url: str, *, what: str) -> tuple[str, str, str, float]:
    """Ranks whose replicas are none: the error each of them got."""
    rank = dist.get_rank()
    width = 2 + (rank if what == "shape" else 0)
    weight = torch.nn.Parameter(torch.zeros(5, width))
    state: dict[str, Any] = {"net": torch.nn.ParameterDict({"weight": weight})}
    state["optim"] = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    if what == "bytes":
        with torch.no_grad():
            weight.add_(rank)
    began = time.monotonic()
    ckpt = holdfast.Checkpointer(url)
    try:
        ckpt.prepare(state)
        weight.grad = torch.full_like(weight, 1.0 + rank)
        state["optim"].step()
        ckpt.save(8, state)
    except HoldfastError as e:
        return e.kind, e.message, e.hint, time.monotonic() - began
    finally:
        ckpt.close(discard=True)
    return "", "", "", time.monotonic() - began


def agreeing(tell: Tell, url: str, *, step: int) -> int | None:
    """The same shapes as `different`, alike on all ranks."""
    weight = torch.nn.Parameter(torch.zeros(5, 2))
    state: dict[str, Any] = {"net": torch.nn.ParameterDict({"weight": weight})}
    state["optim"] = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    with holdfast.Checkpointer(url) as ckpt:
        found = ckpt.load(state)
        weight.grad = torch.ones_like(weight)
        state["optim"].step()
        ckpt.save(step, state)
    return found


def plain_values(tell: Tell, url: str, *, differ: bool) -> tuple[list[str], list[str]]:
    """Unmarked plain values that differ by rank, or only look as if; what the first save warned of, and the second."""
    rank = dist.get_rank() if differ else 0
    names = {"a", "bc", "def"} if dist.get_rank() else {"def", "a", "bc"}
    state: dict[str, Any] = {
        "x": torch.ones(3),
        "alike": 5,
        "conf": {"nan": float("nan"), "rates": [0.5, 1.0 + rank], "late": rank, "names": names},
        "mine": holdfast.per_rank(dist.get_rank()),
        "at": rank,
        "order": {"a": 1, "b": 2} if dist.get_rank() else {"b": 2, "a": 1},
    }
    said: list[list[str]] = []
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(state)
        for step in (1, 2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                save = ckpt.save(step, state)
            said.append([str(w.message) for w in caught])
            assert save is not None
            save.wait("memory", timeout_s=30)
    return said[0], said[1]


def arena_of_its_own(tell: Tell, url: str) -> tuple[str, str, float]:
    """Rank 1 has another arena directory, as on another node: the error each rank got, and when."""
    if dist.get_rank() == 1:
        os.environ["HOLDFAST_ARENA_DIR"] += "/other"
    began = time.monotonic()
    try:
        holdfast.Checkpointer(url)
    except HoldfastError as e:
        return e.kind, e.message, time.monotonic() - began
    return "", "", time.monotonic() - began


def own_values(tell: Tell, url: str) -> None:
    rank = dist.get_rank()
    with holdfast.Checkpointer(url) as ckpt:
        state: dict[str, Any] = {
            "x": torch.ones(3),
            "mine": holdfast.per_rank({"n": rank, "t": torch.full((2,), float(rank))}),
        }
        ckpt.load(state)
        state["mine"].value["n"] = 10 + rank
        state["mine"].value["t"].fill_(10 + rank)
        ckpt.save(1, state)


def hold(tell: Tell, url: str, *, step: int, close: bool = False) -> None:
    """Save a step in memory, say so, and stay until killed."""
    state = {"x": torch.full((1000,), float(step)), "step": step}
    ckpt = holdfast.Checkpointer(url, every_steps=1)
    found = ckpt.load({"x": torch.zeros(1000), "step": 0}, strict=False)
    save = ckpt.save(step, state)
    assert save is not None
    save.wait("memory", timeout_s=30)
    tell(found)
    if close:
        ckpt.close()
    for _ in itertools.count():
        time.sleep(60)


def forgets(tell: Tell, url: str, *, step: int) -> None:
    """Like a notebook: a Checkpointer that nobody closes."""
    ckpt = holdfast.Checkpointer(url)
    ckpt.load({"x": torch.zeros(10)})
    save = ckpt.save(step, {"x": torch.full((10,), float(step))})
    assert save is not None
    save.wait("memory", timeout_s=30)


def left_by_one(tell: Tell, config: holdfast.Config, *, leaver: int, step: int, after_s: float) -> dict[str, Any]:
    """One rank leaves its `with` by an exception, the others close: what was loaded, how it ended, in what time."""
    rank = dist.get_rank()
    told: dict[str, Any] = {"kind": "", "message": "", "hint": ""}
    began = time.monotonic()
    try:
        with holdfast.Checkpointer(config) as ckpt:
            told["found"] = ckpt.load({"x": torch.zeros(1000), "step": 0})
            told["from"] = ckpt.last_load and ckpt.last_load.bytes_by_tier
            save = ckpt.save(step, {"x": torch.full((1000,), float(step)), "step": step})
            assert save is not None
            save.wait("memory", timeout_s=30)
            dist.barrier()
            began = time.monotonic()
            if rank == leaver:
                time.sleep(after_s)
                raise ZeroDivisionError
    except HoldfastError as e:
        told |= {"kind": e.kind, "message": e.message, "hint": e.hint}
    except ZeroDivisionError:
        told["kind"] = "left"
    told["took_s"] = time.monotonic() - began
    dist.barrier()
    return told


def closes_or_waits(tell: Tell, url: str, *, step: int) -> tuple[str, str]:
    """Rank 0 closes, the others stay until killed; the error that rank 0 got."""
    ckpt = holdfast.Checkpointer(url)
    ckpt.load({"x": torch.zeros(1000)})
    save = ckpt.save(step, {"x": torch.ones(1000)})
    assert save is not None
    save.wait("memory", timeout_s=30)
    tell(step)
    if dist.get_rank() > 0:
        time.sleep(1000)
    try:
        ckpt.close()
    except HoldfastError as e:
        return e.kind, e.message
    return "", ""


def chained(tell: Tell, url: str) -> dict[str, Any]:
    """A handler that was there before is called too, and is back after close."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    before = signal.getsignal(signal.SIGTERM)
    last = until_told(tell, url, step_s=0.01)
    return {"last": last, "heard": heard, "back": signal.getsignal(signal.SIGTERM) is before}


def with_a_forked_child(tell: Tell, url: str) -> dict[str, Any]:
    """Forks once signals are taken; the child tells what its calls raised and waits for a signal. What became of it."""
    with holdfast.Checkpointer(url, every_steps=1) as ckpt:
        state: dict[str, Any] = {"x": torch.zeros(1000)}
        ckpt.load(state)
        saved = ckpt.save(1, state)
        assert saved is not None
        saved.wait("durable")
        ckpt.should_stop()
        child = os.fork()
        if not child:
            _in_child(tell, ckpt, saved)
        _, status = os.waitpid(child, 0)
        for step in range(2, 20):
            ckpt.save(step, state)
            time.sleep(0.02)
            if ckpt.should_stop():
                break
    return {"child": os.waitstatus_to_exitcode(status), "last": step}


def _in_child(tell: Tell, ckpt: holdfast.Checkpointer, saved: holdfast.Save) -> None:
    kinds = []
    calls = (lambda: ckpt.save(2, {}), ckpt.steps, ckpt.should_stop, lambda: saved.wait("durable"), ckpt.close)
    for call in calls:
        try:
            call()
        except HoldfastError as e:
            kinds.append(e.kind)
    ckpt.__exit__(HoldfastError, None, None)
    tell((os.getpid(), kinds))
    time.sleep(30)
    os._exit(0)


def by_time(tell: Tell, url: str, *, every_s: float, step_s: float, saves: int) -> dict[str, Any]:
    """So many saves that are due by time alone while it trains, without a barrier between the ranks' steps."""
    tiers = (holdfast.TierConfig("memory:", every_s=every_s, keep_last=2), holdfast.TierConfig(url, every_s=every_s))
    state: dict[str, Any] = {"x": torch.zeros(1000), "step": -1}
    told: list[str] = []
    saved = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with holdfast.Checkpointer(holdfast.Config(tiers=tiers)) as ckpt:
            ckpt.load(state)
            end = time.monotonic() + 60
            for step in itertools.count(1):
                time.sleep(step_s)
                state["x"].fill_(step)
                if (handle := ckpt.save(step, state)) is not None:
                    saved[step] = handle
                if step == 50:
                    tell(step)
                over = torch.tensor([float(len(saved) >= saves or time.monotonic() > end)])
                if step % 50 == 0:
                    dist.all_reduce(over)
                    if over.item():
                        break
            outcomes = {}
            for step, handle in saved.items():
                try:
                    handle.wait("durable", timeout_s=30)
                    outcomes[step] = "durable"
                except HoldfastError as e:
                    outcomes[step] = e.kind
        told += [str(w.message) for w in caught]
    return {"outcomes": outcomes, "stalls_s": max(h.stall_s for h in saved.values()), "warnings": told}


def failing(tell: Tell, url: str, full: str, *, on_save_error: str | int) -> dict[str, Any]:
    """A second tier without room: at which step what is raised, and what a rank that goes on hears."""
    tiers = (
        holdfast.TierConfig("memory:", keep_last=2),
        holdfast.TierConfig(url),
        holdfast.TierConfig(full, name="full", every_steps=5),
    )
    state: dict[str, Any] = {"x": torch.zeros(2_000_000), "step": -1}
    config = holdfast.Config(tiers=tiers, on_save_error=on_save_error)
    raised = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ckpt = holdfast.Checkpointer(config)
        try:
            ckpt.load(state)
            for step in range(1, 2000):
                time.sleep(0.02)
                state["step"] = step
                try:
                    handle = ckpt.save(step, state)
                    assert handle is not None
                    if step % 5 == 0:
                        handle.wait("posix", timeout_s=30)
                except HoldfastError as e:
                    raised.append((step, e.kind, e.tier, e.hint))
                    if len(raised) == 2:
                        break
        finally:
            with contextlib.suppress(HoldfastError):
                ckpt.close()
    return {"raised": raised, "step": step}

"""Copies between memory and a CUDA device, and the page locks of slots."""

import mmap
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

from holdfast.config import Config
from holdfast.trainer.devices import page_lock, page_lock_for
from holdfast.trainer.slots import Slots
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import PAGE_BYTES, SlotPage

pytestmark = pytest.mark.torch

HALF_BYTE = getattr(torch, "uint4", torch.uint8)


@pytest.fixture
def slots(tmp_path):
    """Two slots of rank 0 in files of their own."""
    settings = Config.from_url(str(tmp_path / "home")).resolve({"HOLDFAST_ARENA_DIR": str(tmp_path)})
    settings.arena.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        file = MappedFile(settings.arena / f"slot-{number:05d}", 4 * PAGE_BYTES)
        page = SlotPage(file.buffer)
        page.dealt_rank = 0
        page.release()
        file.close()
    session: Any = SimpleNamespace(rank=0)
    made = Slots(session, settings)
    yield made
    made.close()


def wait_for(slots):
    assert slots._faulting is not None
    slots._faulting.join(30)
    assert slots.faulted()


def test_a_slot_is_locked_once_and_let_go_before_it_is_unmapped(slots):
    locked: list[int] = []
    unlocked: list[bool] = []

    def lock(buffer):
        locked.append(len(buffer))
        return lambda: unlocked.append(len(buffer) > 0)  # raises if it is unmapped already

    slots.page_lock = lock
    for _ in range(2):
        slots.dealt([0, 1], PAGE_BYTES)
        wait_for(slots)
    assert locked == [4 * PAGE_BYTES] * 2
    slots.dealt([0], PAGE_BYTES)
    wait_for(slots)
    assert len(unlocked) == 1
    slots.close()
    assert unlocked == [True, True]


def test_slots_faulted_before_a_device_was_seen_are_locked_then(slots):
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    locked: list[int] = []

    def lock(buffer):
        locked.append(len(buffer))
        return lambda: None

    slots.page_lock = lock
    assert not slots.faulted()
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    assert len(locked) == 2


def test_nothing_is_locked_without_a_cuda_tensor():
    assert page_lock_for([torch.zeros(1), torch.zeros(1, device="meta")]) is None


def test_a_driver_that_refuses_costs_speed_only(monkeypatch, caplog):
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    unlock = page_lock(memoryview(bytearray(64)))
    unlock()
    assert "cannot lock 64 bytes" in caplog.text


@pytest.mark.gpu
def test_tensors_of_a_device_are_saved_and_filled():
    def state(seed):
        torch.manual_seed(seed)
        on_device = torch.nn.Conv2d(3, 4, 3).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {
            "m": on_device,
            "host": torch.randn(5),
            "odd": torch.randn(6, 7, device="cuda").t(),
            "small": torch.randint(0, 9, (8,), dtype=torch.uint8, device="cuda").view(HALF_BYTE),
            "large": torch.randn(1 << 20, device="cuda"),
        }

    saved, live = state(0), state(1)
    fill(live, images_of(saved))
    assert torch.equal(live["m"].weight, saved["m"].weight)
    assert live["m"].weight.is_contiguous(memory_format=torch.channels_last)
    for name in ("host", "odd", "large"):
        assert torch.equal(live[name], saved[name]), name
    assert torch.equal(live["small"].view(torch.uint8), saved["small"].view(torch.uint8))


@pytest.mark.gpu
def test_a_save_sees_what_was_computed_before_and_nothing_after():
    x = torch.zeros(1 << 22, device="cuda")
    for _ in range(200):
        x += 1
    images = images_of({"x": x})
    x += 1
    y = torch.zeros_like(x)
    fill({"y": y}, images_of({"y": torch.full_like(x, 200)}))
    fill({"x": x}, images)
    assert torch.equal(x, y)


@pytest.mark.gpu
def test_a_locked_buffer_is_pinned():
    memory = mmap.mmap(-1, 1 << 20)
    view = memoryview(memory)
    unlock = page_lock(view)
    tensor = torch.frombuffer(view, dtype=torch.uint8)
    assert tensor.is_pinned()
    unlock()
    assert not tensor.is_pinned()
    del tensor
    view.release()
    memory.close()

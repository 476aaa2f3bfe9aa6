"""Copies between memory and a CUDA device, and page locks."""

import mmap
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

from holdfast.trainer import devices
from holdfast.trainer.devices import page_lock, page_lock_for

pytestmark = pytest.mark.torch

HALF_BYTE = getattr(torch, "uint4", torch.uint8)


def test_nothing_is_locked_without_a_cuda_tensor():
    assert page_lock_for([torch.zeros(1), torch.zeros(1, device="meta")]) is None


def test_a_driver_that_refuses_costs_speed_only(monkeypatch, caplog):
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    unlock = page_lock(torch.device("cuda", 0), memoryview(bytearray(64)))
    unlock()
    assert "cannot lock 64 bytes" in caplog.text


def test_pages_are_locked_on_a_device_that_the_rank_uses(monkeypatch):
    """The thread that locks them is on the first one otherwise, whichever the rank computes on."""
    current: list[Any] = [torch.device("cuda", 0)]
    found: list[Any] = []

    @contextmanager
    def device(of):
        current.append(of)
        yield
        current.pop()

    def register(*_):
        found.append(current[-1])
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", device)
    tensors: Any = [torch.zeros(1), SimpleNamespace(device=torch.device("cuda", 5))]
    lock = page_lock_for(tensors)
    assert lock is not None
    lock(memoryview(bytearray(64)))
    assert found == [torch.device("cuda", 5)]


def test_copies_that_were_begun_are_waited_for_whatever_happens_to_the_others(monkeypatch):
    waited: list[torch.device] = []

    def beside(device, waits):
        waits.append(lambda: waited.append(device))
        return nullcontext()

    def copy(destinations, sources, *, non_blocking):
        if not non_blocking:
            raise KeyboardInterrupt

    monkeypatch.setattr(devices, "_beside", beside)
    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    away = torch.zeros(1, device="meta")
    with pytest.raises(KeyboardInterrupt):
        devices.copy_between_devices([torch.zeros(1), torch.zeros(1)], [torch.zeros(1), away])
    assert waited == [away.device]


def test_a_device_that_fails_keeps_no_other_from_being_waited_for(monkeypatch):
    waited: list[int] = []

    def beside(device, waits):
        number = len(waits)

        def wait():
            waited.append(number)
            raise RuntimeError(f"copy {number} failed")

        waits.append(wait)
        return nullcontext()

    monkeypatch.setattr(devices, "_beside", beside)
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *tensors, non_blocking: None)
    here, away = torch.zeros(1), torch.zeros(1, device="meta")
    with pytest.raises(RuntimeError, match="copy 0 failed"):
        devices.copy_between_devices([here, away], [away, here])
    assert sorted(waited) == [0, 1]


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
    unlock = page_lock(torch.device("cuda", 0), view)
    tensor = torch.frombuffer(view, dtype=torch.uint8)
    assert tensor.is_pinned()
    unlock()
    assert not tensor.is_pinned()
    del tensor
    view.release()
    memory.close()

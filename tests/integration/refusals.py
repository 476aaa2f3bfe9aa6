"""What tests of bad input share: a small state, runs made of it, and errors that come in time and say what to do."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress

import pytest
import torch
from tests.integration.place import due

import holdfast


def filled(value, n=20_000):
    return {"x": torch.full((n,), float(value)), "step": value}


def save_steps(place, *steps, n=20_000):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0, n))
        for step in steps:
            due(ckpt.save(step, filled(step, n))).wait("durable", timeout_s=30)


class Leave(Exception):
    """Leaves a `with` without closing, so that the agent stays for the next load: starting one takes a second."""


def load_and_leave(url):
    state = filled(-1)
    with suppress(Leave), holdfast.Checkpointer(url) as ckpt:
        step = ckpt.load(state)
        raise Leave
    assert (state["x"] == step).all()
    return step


def load(url, n=20_000):
    """The step that loads, proven to be what was saved."""
    state = filled(-1, n)
    with holdfast.Checkpointer(url) as ckpt:
        step = ckpt.load(state)
    assert step is None or (state["step"] == step and (state["x"] == step).all())
    return step


@contextmanager
def refused(kind, *named, within_s=30.0):
    """An error of that kind, which names these things, has a hint, and comes in time."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        yield caught
    assert time.monotonic() - began < within_s
    for name in named:
        assert str(name) in str(caught.value)
    assert caught.value.hint, str(caught.value)

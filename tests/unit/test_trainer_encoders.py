"""Values of types that a user registered: saved as what they consist of, made anew by name."""

import dataclasses
import enum
from collections import namedtuple
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

import holdfast
from holdfast.errors import CorruptError, LoadError, StructureError, UnsupportedValueError
from holdfast.format.plain import Opaque
from holdfast.trainer import encoders
from holdfast.trainer.capture import Capture

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(encoders, "_by_type", {})
    monkeypatch.setattr(encoders, "_by_name", {})


class Phase(enum.Enum):
    WARM = 1
    LONG = 2


Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Curriculum:
    phase: Phase
    weights: torch.Tensor
    seen: list[int]


class Meter:
    """Has a state of its own, and is registered all the same."""

    def __init__(self, total=0.0):
        self.total = total

    def state_dict(self):
        raise AssertionError("the encoder is asked")

    def load_state_dict(self, state):
        raise AssertionError("the decoder is asked")


def teach():
    holdfast.register(Phase, name="phase", encode=lambda p: p.name, decode=Phase.__getitem__)
    holdfast.register(Point, name="point", encode=tuple, decode=lambda t: Point(*t))
    holdfast.register(Meter, name="meter", encode=lambda m: m.total, decode=Meter)
    holdfast.register(
        Curriculum,
        name="example.Curriculum",
        encode=lambda c: {"phase": c.phase, "weights": c.weights, "seen": c.seen},
        decode=lambda d: Curriculum(**d),
    )


def saved():
    return {
        "plan": Curriculum(Phase.LONG, torch.tensor([1.0, 2.0]), [3, 4]),
        "nested": {"at": [Point(1, Phase.WARM), (Phase.LONG,)], "plans": [Curriculum(Phase.WARM, torch.ones(3), [])]},
        "own": holdfast.per_rank(Curriculum(Phase.WARM, torch.full((1,), 7.0), [])),
        "meter": Meter(2.5),
    }


def live():
    return {
        "plan": Curriculum(Phase.WARM, torch.zeros(2), []),
        "nested": {"at": [None], "plans": []},
        "own": holdfast.per_rank(None),
        "meter": Meter(),
    }


def test_registered_values_come_back_wherever_they_stand():
    teach()
    state: dict[str, Any] = live()
    fill(state, images_of(saved()))
    plan, nested, own = state["plan"], state["nested"], state["own"].value
    assert (plan.phase, plan.weights.tolist(), plan.seen) == (Phase.LONG, [1.0, 2.0], [3, 4])
    assert nested["at"] == [Point(1, Phase.WARM), (Phase.LONG,)]
    assert type(nested["at"][0]) is Point
    assert nested["plans"][0].weights.tolist() == [1.0, 1.0, 1.0]
    assert (own.phase, own.weights.tolist()) == (Phase.WARM, [7.0])
    assert state["meter"].total == 2.5


def test_tensors_inside_are_entries_like_all_others():
    teach()
    names = {e.piece.fqn for e in images_of(saved())[0].header.layout.entries}
    assert names == {"plan.weights", "nested.plans.0.weights", "own.weights"}


def test_the_name_stands_in_the_checkpoint_and_nothing_of_python():
    teach()
    payload = Capture().refresh({"p": Phase.LONG}).payload(0)
    assert payload == b'{"p":{"!user:phase":"LONG"}}'


def test_an_unknown_name_says_what_to_register():
    teach()
    images = images_of(saved())
    del encoders._by_name["example.Curriculum"]
    with pytest.raises(StructureError, match=r"registered type 'example\.Curriculum'") as e:
        fill(live(), images)
    assert "holdfast.register(ITS_TYPE, name='example.Curriculum'" in e.value.hint


def test_without_a_registration_the_hint_says_how():
    with pytest.raises(UnsupportedValueError, match=r"state\['plan'\]\['deep'\]\[0\] is a .*Curriculum") as e:
        Capture().refresh({"plan": {"deep": [saved()["plan"]]}}).payload(0)
    assert "holdfast.register" in e.value.hint


def test_what_an_encoder_raises_or_gives_wrongly_is_told_with_the_path():
    def fail(x):
        raise KeyError("phase")

    for encode, message in (
        (fail, r"'a\.b' cannot be encoded as 'point': KeyError"),
        (lambda p: p, r"encode of 'point' gave 'a\.b' back"),
        (lambda p: {"m": torch.nn.Linear(1, 1)}, r"encode of 'point' gave a Linear at 'a\.b\.m'"),
        (lambda p: [holdfast.per_rank(1)], r"gave a PerRank at 'a\.b\.0'"),
        (lambda p: {"x": object()}, r"state\['a'\]\['b'\] \(user:point\)\['x'\] is a builtins.object"),
    ):
        holdfast.register(Point, name="point", encode=encode, decode=tuple)
        with pytest.raises(UnsupportedValueError, match=message):
            Capture().refresh({"a": {"b": Point(1, 2)}}).payload(0)


def test_what_a_decoder_raises_is_a_load_error():
    holdfast.register(Phase, name="phase", encode=lambda p: p.name, decode=lambda name: Phase[name + "?"])
    with pytest.raises(LoadError, match=r"of 'phase' raised KeyError: 'LONG\?'"):
        fill({"p": None}, images_of({"p": Phase.LONG}))


def test_a_tag_of_a_newer_holdfast_is_refused():
    images = images_of({"p": Opaque("later", 1)})
    with pytest.raises(CorruptError, match="'later', which nothing here decodes"):
        fill({"p": None}, images)


def test_registered_types_are_no_keys():
    teach()
    with pytest.raises(UnsupportedValueError, match=r"key\(<Phase.LONG"):
        Capture().refresh({"d": {Phase.LONG: 1}}).payload(0)

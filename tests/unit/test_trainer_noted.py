"""Metrics that the loop gives: what is refused, and what is warned of."""

import warnings

import pytest

from holdfast.config import Config, TierConfig
from holdfast.errors import UsageError

pytestmark = pytest.mark.torch
noted = pytest.importorskip("holdfast.trainer.noted")


@pytest.fixture
def wished():
    best = TierConfig("/a", name="best", keep_best=2, best_metric="val_loss")
    return noted.Wished(Config(tiers=(best, TierConfig("/b"))).resolve({}).tiers)


def test_metrics_that_are_no_dict_are_refused():
    with pytest.raises(UsageError, match="metrics are a list") as caught:
        noted.note([1.0])
    assert caught.value.hint


def test_a_tier_that_is_not_given_its_metric_is_warned_of_once(wished):
    def save():
        wished.check({"best"}, {"val_los": 1.0})

    said = "tier best keeps the best by 'val_loss', and save.. was given 'val_los'"
    with pytest.warns(RuntimeWarning, match=said) as told:
        save()
    assert [w.filename for w in told] == [__file__], "where save() was called"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wished.check({"best"}, {"val_los": 1.0})


@pytest.mark.parametrize(
    ("due", "metrics"), [({"best"}, None), ({"posix"}, {"lr": 1.0}), ({"best"}, {"val_loss": 1.0, "lr": 1.0})]
)
def test_no_warning_where_nothing_is_amiss(wished, due, metrics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wished.check(due, metrics)

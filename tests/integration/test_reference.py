"""docs/reference.md says what the code does: every table of fixed names is compared with it."""

import dataclasses
import inspect
from unittest import mock

import pytest
from tests.integration import reference

from holdfast import errors
from holdfast.agent.server import Server
from holdfast.config import Config, Settings, TierConfig
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.quarantine import quarantine_key
from holdfast.wire import messages

NOT_SETTINGS = {"run", "tiers", "sources"}


def test_error_kinds():
    rows = reference.table("Errors")
    told = {r["kind"]: (r["class"], int(r["exit code"]), r["retry"] == "yes") for r in rows}
    assert told == {k: (c.__name__, c.exit_code, c.retryable) for k, c in errors.BY_KIND.items()}
    assert all(r["when"] for r in rows)


def test_settings_and_their_environment_names():
    told = {r["setting"]: (r["environment"], r["default"]) for r in reference.table("Settings")}
    fields = {f.name: f for f in dataclasses.fields(Settings) if f.name not in NOT_SETTINGS}
    assert told.keys() == fields.keys()
    for name, (variable, default) in told.items():
        assert variable == f"HOLDFAST_{name.upper()}"
        assert str(fields[name].default).removesuffix(".0") == default, name
    assert {f.name for f in dataclasses.fields(Config)} - {"tiers", "run", "origins"} == fields.keys()


def test_settings_of_a_tier():
    told = {r["setting"]: r["default"] for r in reference.table("Settings of a tier")}
    expected = {f.name: f.default for f in dataclasses.fields(TierConfig)}
    assert told == {k: "" if v is dataclasses.MISSING else str(v) for k, v in expected.items()}


def test_keys_on_tiers():
    told = {r["what"]: r["key"] for r in reference.table("Keys on a tier")}
    checkpoint = CheckpointId(1, 100)
    assert told == {
        "claim of an attempt": names.attempt_key(1),
        "image": names.image_key(ImageId(1, 100, 0)),
        "manifest": names.manifest_key(checkpoint),
        "tombstone": names.tombstone_key(checkpoint),
        "quarantine record": quarantine_key(ImageId(1, 100, 0)),
    }


def test_public_names():
    import holdfast

    assert {r["name"] for r in reference.table("Public names")} == set(holdfast.__all__) - {"__version__"}


def test_agent_api():
    served = Server(mock.MagicMock()).app.router.routes()
    routes = {f"{r.method} {r.resource.canonical}" for r in served if r.resource is not None and r.method != "HEAD"}
    assert reference.column("Agent API", "call") == routes


def test_keys_of_a_step():
    told = reference.column("`StepInfo`", "key")
    assert told == set(messages.StepInfo.__struct_fields__)


@pytest.mark.torch
def test_signatures():
    pytest.importorskip("torch")
    import holdfast

    owners = {"Checkpointer": holdfast.Checkpointer, "Save": holdfast.Save, "holdfast": holdfast, "Config": Config}
    for row in reference.table("Signatures"):
        owner, _, rest = row["call"].partition(".")
        name, _, told = rest.partition("(")
        if not told:
            owner, name, told = "Checkpointer", "__init__", row["call"].partition("(")[2]
        assert told.rstrip(")") == without_types(getattr(owners[owner], name)), row["call"]


def without_types(call):
    found = inspect.signature(call).parameters.values()
    texts = []
    for p in found:
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        texts.append(str(p.replace(annotation=p.empty)))
    return ", ".join(texts)

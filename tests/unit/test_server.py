"""What the agent's socket answers to calls that are wrong, and to its own defects."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from holdfast.agent.agent import Agent
from holdfast.agent.server import Server
from holdfast.errors import AgentError, HoldfastError, UsageError, from_dict
from holdfast.wire import messages


async def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("bad calls come to nobody")


async def invalid(body: Any) -> Any:
    return msgspec.convert({"rank": "x"}, messages.Unpin)


async def defective(body: Any) -> Any:
    raise KeyError("rank")


@pytest.fixture
def call():
    """What a server answers: the status, and the error it tells of."""

    async def served(method, target, body):
        others = SimpleNamespace(launch=refuse, prepare=defective, claim=refuse, close_rank=refuse, stop=refuse)
        loading = SimpleNamespace(loadable=refuse, place=refuse, fetch=refuse, unpinned=invalid, bad_image=refuse)
        agent = SimpleNamespace(
            admission=others,
            dealing=others,
            ownership=others,
            closing=others,
            loading=loading,
            repairing=SimpleNamespace(repair=refuse),
            prune=refuse,
            answers=SimpleNamespace(save_status=refuse),
            errors_since=refuse,
        )
        async with TestClient(TestServer(Server(cast(Agent, agent)).app)) as client:
            answer = await client.request(method, target, data=body)
            return answer.status, from_dict(msgspec.json.decode(await answer.read()))

    return lambda method, target, body=None: asyncio.run(served(method, target, body))


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/attach", "rank"),
        ("/attach?rank=first", "rank='first'"),
        ("/loadable?step=1.5", "step='1.5'"),
        ("/errors?since=never", "since='never'"),
        ("/save/1/2?wait_s=long", "wait_s='long'"),
        ("/save/1/2?wait_s=nan", "wait_s='nan'"),
        (f"/save/1/{'9' * 5000}", "step='9999"),
    ],
)
def test_a_bad_parameter_is_the_callers_and_named(call, target, named):
    status, error = call("GET", target)
    assert status == 400
    assert isinstance(error, UsageError)
    assert named in error.message


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"rank": "one"}', b'{"rank": "\xff"}', b"[]"])
def test_a_body_that_cannot_be_read_is_the_callers(call, body):
    status, error = call("POST", "/prepare", body)
    assert (status, type(error)) == (400, UsageError)


def test_settings_that_do_not_convert_are_the_callers(call):
    status, error = call("POST", "/unpin", msgspec.json.encode(messages.Unpin(0)))
    assert (status, type(error)) == (400, UsageError)


def test_a_defect_of_the_agent_is_told_and_is_no_sign_of_its_death(call, caplog):
    status, error = call("POST", "/prepare", msgspec.json.encode(messages.Prepare(0, 1)))
    assert status == 500
    assert type(error) is HoldfastError
    assert not isinstance(error, AgentError)
    assert not error.retryable
    assert "KeyError: 'rank'" in error.message
    assert "Traceback" in caplog.text

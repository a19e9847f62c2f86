"""What people think of analyses: who may say it, where it is shown, and what is learnt from it."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from messaging_server.analysis.feedback_queries import LabelledExample
from messaging_server.analysis.service import labelled_examples
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import Priority
from tests.analysis.test_routes import analyses_of, eventually
from tests.client import Api


@pytest.fixture(scope="module")
def agent(api: Api) -> Iterator[Api]:
    with api.new_user() as user:
        yield user


@pytest.fixture(scope="module")
def colleague(api: Api) -> Iterator[Api]:
    with api.new_user() as user:
        yield user


def analysed(api: Api, agent: Api, *texts: str) -> tuple[str, dict[str, Any]]:
    """A conversation of the agent's with these messages, and its analysis."""
    conversation_id = api.new_conversation(agent)["id"]
    for text in texts:
        agent.send(conversation_id, text)
    agent.post(f"/conversations/{conversation_id}/analyze")
    (entry,) = eventually(lambda: analyses_of(agent, conversation_id))
    return conversation_id, entry


def path_of(conversation_id: str, analysis: dict[str, Any]) -> str:
    return f"/conversations/{conversation_id}/analyses/{analysis['id']}/feedback"


def test_feedback_stands_in_the_list_and_the_latest_counts(api: Api, agent: Api) -> None:
    conversation_id, entry = analysed(api, agent, "Where is my parcel?")
    assert entry["feedback"] is None
    path = path_of(conversation_id, entry)
    given = agent.post(path, {"verdict": "correct"}, expect=200)
    assert given["feedback"]["verdict"] == "correct"
    assert given["feedback"]["userId"] == agent.user["id"]
    body = {"verdict": "wrong", "priority": "HIGH", "tags": ["shipping", "vip", "vip"]}
    given = api.post(path, body, expect=200)
    assert given["feedback"]["tags"] == ["shipping", "vip"]
    assert given["feedback"]["createdAt"].endswith("Z")
    (shown,) = analyses_of(agent, conversation_id)
    assert shown == given
    assert {**shown, "feedback": None} == entry
    conversation = agent.get(f"/conversations/{conversation_id}")
    assert conversation["prioritySource"] == conversation["tagsSource"] == "AI"


def test_only_who_sees_the_conversation(api: Api, agent: Api, colleague: Api) -> None:
    conversation_id, entry = analysed(api, agent, "Hello")
    other_id, _ = analysed(api, agent, "Hello")
    path = path_of(conversation_id, entry)
    hidden = [
        colleague.post(path, {"verdict": "correct"}, expect=404),
        agent.post(path_of(other_id, entry), {"verdict": "correct"}, expect=404),
        api.post(path_of(str(uuid4()), entry), {"verdict": "correct"}, expect=404),
        agent.post(
            path_of(conversation_id, {"id": str(uuid4())}), {"verdict": "correct"}, expect=404
        ),
    ]
    assert {error["message"] for error in hidden} == {"No such analysis"}
    with Api(api.url) as stranger:
        stranger.post(path, {"verdict": "correct"}, expect=401)
    api.post(path, {"verdict": "correct"}, expect=200)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"verdict": "perhaps"},
        {"verdict": None},
        {"verdict": "wrong", "priority": "URGENT"},
        {"verdict": "wrong", "tags": ["a", "b", "c", "d", "e", "f"]},
        {"verdict": "wrong", "tags": [""]},
        {"verdict": "wrong", "tags": ["\u200b"]},
        {"verdict": "wrong", "tags": ["x" * 51]},
        {"verdict": "wrong", "tags": "x"},
        {"verdict": "wrong", "tags": ["\0"]},
        {"verdict": "correct", "priority": "HIGH"},
        {"verdict": "correct", "tags": []},
        {"verdict": "wrong", "note": "x"},
    ],
)
def test_bad_feedback(api: Api, agent: Api, body: dict[str, Any]) -> None:
    path = path_of(str(uuid4()), {"id": str(uuid4())})
    assert agent.post(path, body, expect=400)["code"] == "validation_error"


def read_examples(dsn: str) -> list[LabelledExample]:
    async def read() -> list[LabelledExample]:
        database = Database(dsn, pool_size=2, bus=Bus())
        await database.start()
        try:
            return await labelled_examples(database)
        finally:
            await database.stop()

    return asyncio.run(read())


def test_corrections_are_labelled_examples(api: Api, agent: Api, module_dsn: str) -> None:
    before = len(read_examples(module_dsn))
    right_id, right = analysed(api, agent, "I was charged twice", "please refund me")
    agent.send(right_id, "a secret", private=True)
    agent.send(right_id, "came later")
    agent.post(path_of(right_id, right), {"verdict": "correct"})
    half_id, half = analysed(api, agent, "Thanks!")
    agent.post(path_of(half_id, half), {"verdict": "wrong", "priority": "MEDIUM"})
    useless_id, useless = analysed(api, agent, "Nothing said")
    agent.post(path_of(useless_id, useless), {"verdict": "wrong"})
    first, second = read_examples(module_dsn)[before:]
    assert str(first.analysis_id) == right["id"]
    assert [message.text for message in first.messages] == [
        "I was charged twice",
        "please refund me",
    ]
    assert (first.priority, first.tags) == (Priority(right["priority"]), tuple(right["tags"]))
    assert (second.priority, second.tags) == (Priority.MEDIUM, None)

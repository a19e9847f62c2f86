"""The calls about analyses on a running server, for each role."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api
from tests.conftest import fresh_database, live_server

DEADLINE_SECONDS = 30.0


@pytest.fixture(scope="module")
def agent(api: Api) -> Iterator[Api]:
    with api.new_user() as user:
        yield user


@pytest.fixture(scope="module")
def colleague(api: Api) -> Iterator[Api]:
    with api.new_user() as user:
        yield user


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def analyses_of(api: Api, conversation_id: str, **query: Any) -> list[dict[str, Any]]:
    """Those that have ended."""
    page = api.get(f"/conversations/{conversation_id}/analyses", **query)
    return [item for item in page["items"] if item["status"] != "RUNNING"]


def has_analyses(api: Api, conversation_id: str, count: int) -> bool:
    return len(analyses_of(api, conversation_id)) == count


def test_a_message_is_analysed_by_itself_and_pushed(api: Api, agent: Api) -> None:
    conversation_id = api.new_conversation(agent)["id"]
    with agent.socket() as socket:
        assert socket.call("conversation:join", conversation_id)["ok"]
        agent.send(conversation_id, "We charged you twice and will refund it today.")
        frame = socket.wait_event("conversation:ai:update")
    (entry,) = analyses_of(agent, conversation_id)
    assert frame["conversationId"] == conversation_id
    assert frame["data"]["aiData"]["summary"] == entry["summary"]
    assert (entry["status"], entry["trigger"], entry["throughSeq"]) == ("SUCCEEDED", "message", 1)
    assert (entry["provider"], entry["model"], entry["attempt"]) == ("local", "local-1", 1)
    conversation = agent.get(f"/conversations/{conversation_id}")
    assert conversation["summary"] == conversation["ai"]["summary"] == entry["summary"]
    assert conversation["ai"]["analyzedThroughSeq"] == 1
    assert conversation["ai"]["provider"] == "local"


def test_analyse_now(api: Api, agent: Api) -> None:
    conversation_id = api.new_conversation(agent)["id"]
    agent.send(conversation_id, "Hello")
    accepted = agent.post(f"/conversations/{conversation_id}/analyze", expect=202)
    assert accepted["conversationId"] == conversation_id
    assert accepted["dueAt"].endswith("Z")
    (entry,) = eventually(lambda: analyses_of(agent, conversation_id))
    assert entry["trigger"] == "manual"


def test_analyse_now_takes_an_empty_conversation_and_no_body(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    response = api.http.post(f"/conversations/{conversation_id}/analyze")
    assert response.status_code == 202
    assert analyses_of(api, conversation_id) == []


def test_history_is_paged_newest_first(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    for count in range(1, 4):
        api.send(conversation_id, f"Hello {count}")
        api.post(f"/conversations/{conversation_id}/analyze", expect=202)
        eventually(partial(has_analyses, api, conversation_id, count))
    whole = analyses_of(api, conversation_id)
    path = f"/conversations/{conversation_id}/analyses"
    first = api.get(path, limit=2)
    second = api.get(path, limit=2, cursor=first["nextCursor"])
    assert first["items"] + second["items"] == whole
    assert second["nextCursor"] is None
    times = [entry["createdAt"] for entry in whole]
    assert times == sorted(times, reverse=True)


def test_only_who_sees_a_conversation(api: Api, agent: Api, colleague: Api) -> None:
    conversation_id = api.new_conversation(agent)["id"]
    path = f"/conversations/{conversation_id}"
    agent.get(f"{path}/analyses", expect=200)
    api.get(f"{path}/analyses", expect=200)
    hidden = [
        colleague.get(f"{path}/analyses", expect=404),
        colleague.post(f"{path}/analyze", expect=404),
        agent.get(f"/conversations/{uuid4()}/analyses", expect=404),
        api.post(f"/conversations/{uuid4()}/analyze", expect=404),
    ]
    assert {error["message"] for error in hidden} == {"No such conversation"}
    with Api(api.url) as stranger:
        stranger.get(f"{path}/analyses", expect=401)
        stranger.post(f"{path}/analyze", expect=401)
        stranger.get("/analysis/queue", expect=401)
    agent.get("/analysis/queue", expect=403)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"cursor": "x"}, {"cursor": "AAAA"}, {"page": 1}]
)
def test_bad_queries(api: Api, query: dict[str, Any]) -> None:
    conversation_id = api.new_conversation()["id"]
    error = api.get(f"/conversations/{conversation_id}/analyses", expect=400, **query)
    assert error["code"] == "validation_error"


def test_the_queue_shows_what_failed_and_why(postgres: EmbeddedPostgres) -> None:
    """An endpoint that nobody answers at, and one attempt only."""
    settings = {
        "MESSAGING_AI__PROVIDER": "openai",
        "MESSAGING_AI__MODEL": "nobody",
        "MESSAGING_AI__FALLBACK": "none",
        "MESSAGING_AI__BASE_URL": "http://127.0.0.1:9/v1",
        "MESSAGING_ANALYSIS__MAX_ATTEMPTS": "1",
    }
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, **settings) as server,
        Api.first_admin(server.url) as admin,
    ):
        failing = admin.new_conversation()["id"]
        admin.send(failing)
        eventually(lambda: admin.get("/analysis/queue")["counts"]["failed"])
        fresh = admin.new_conversation()["id"]
        admin.send(fresh)
        queue = admin.get("/analysis/queue")
        assert sum(queue["counts"].values()) == 2
        item = queue["items"][0]
        assert (item["conversationId"], item["state"]) == (failing, "FAILED")
        assert (item["attempts"], item["dueAt"]) == (1, None)
        assert "can't be reached" in item["error"]
        assert item["failedAt"].endswith("Z")
        assert queue["items"][1]["conversationId"] == fresh
        (entry,) = analyses_of(admin, failing)
        assert (entry["status"], entry["summary"], entry["tags"]) == ("FAILED", None, [])
        admin.post(f"/conversations/{failing}/analyze", expect=202)
        eventually(partial(has_analyses, admin, failing, 2))

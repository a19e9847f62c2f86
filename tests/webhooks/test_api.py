"""What ADMINs do with webhooks, on a running server; and what a kill of it does to deliveries."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from standardwebhooks import WebhookVerificationError

from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api, LiveServer, together, wait_until
from tests.conftest import live_server
from tests.webhooks.conftest import LOCAL, Hooks
from tests.webhooks.receiver import Receiver, Reply, verified


@pytest.fixture
def paused(hooks: Hooks, receiver: Receiver) -> dict[str, Any]:
    """A webhook that is told of messages, disabled."""
    webhook = hooks.make(receiver.url, events=["message.created"])
    changed: dict[str, Any] = hooks.api.patch(f"/webhooks/{webhook['id']}", {"enabled": False})
    return changed


def test_the_life_of_a_webhook(api: Api, receiver: Receiver) -> None:
    body = {
        "url": receiver.url,
        "description": "the CRM",
        "events": ["lead.created", "lead.updated", "lead.created"],
        "includePrivateNotes": True,
    }
    made = api.post("/webhooks", body, expect=201)
    check(made, shapes.SHOWN_WEBHOOK)
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["events"] == ["lead.created", "lead.updated"]
    path = f"/webhooks/{made['id']}"
    assert api.get(path) == made
    listed = api.get("/webhooks")
    check(listed, shapes.page_of(shapes.WEBHOOK))
    assert made in listed["items"]
    assert secret not in str(listed)
    changes = {"description": None, "events": [], "enabled": False, "includePrivateNotes": False}
    changed = api.patch(path, changes)
    assert {key: changed[key] for key in changes} == changes
    assert api.patch(path, {}) == changed
    assert api.delete(path) is None
    for method, where in (("GET", path), ("PATCH", path), ("DELETE", path)):
        api.request(method, where, {} if method == "PATCH" else None, expect=404)
    api.get(f"{path}/deliveries", expect=404)
    api.post(f"{path}/test", expect=404)
    api.post(f"{path}/rotate-secret", expect=404)
    api.post(f"{path}/replay", {"since": "2026-01-01T00:00:00Z"}, expect=404)


def test_a_private_address_is_refused_and_the_setting_named(api: Api, hooks: Hooks) -> None:
    private = "http://10.0.0.1/hook"
    error = api.post("/webhooks", {"url": private}, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["url"]
    assert "webhooks.allowed_networks" in error["message"]
    webhook = hooks.make("http://127.0.0.1:9/")  # opened in this server's configuration
    error = api.patch(f"/webhooks/{webhook['id']}", {"url": private}, expect=400)
    assert "webhooks.allowed_networks" in error["message"]


def test_a_test_says_what_came_of_it(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    webhook = hooks.make(receiver.url)
    path = f"/webhooks/{webhook['id']}/test"
    outcome = api.post(path, expect=200)
    check(outcome, shapes.WEBHOOK_TEST)
    assert (outcome["succeeded"], outcome["responseStatus"], outcome["error"]) == (True, 200, None)
    payload = verified(receiver.requests[0], webhook["secret"])
    assert payload["type"] == "webhook.test"
    assert payload["data"]["webhookId"] == webhook["id"]
    receiver.decide = lambda _: Reply(status=418, delay_seconds=0.2)
    outcome = api.post(path, expect=200)
    assert (outcome["succeeded"], outcome["responseStatus"]) == (False, 418)
    assert outcome["durationMilliseconds"] >= 200
    receiver.go_away()
    outcome = api.post(path, expect=200)
    assert (outcome["succeeded"], outcome["responseStatus"]) == (False, None)
    assert outcome["error"].startswith("no connection")
    assert hooks.deliveries(webhook["id"]) == []


def test_during_a_rotation_both_secrets_are_good(
    api: Api, hooks: Hooks, receiver: Receiver
) -> None:
    webhook = hooks.make(receiver.url, events=["message.created"])
    shown = api.post(f"/webhooks/{webhook['id']}/rotate-secret", expect=200)
    check(shown, shapes.SHOWN_WEBHOOK_SECRET)
    until = datetime.fromisoformat(shown["previousSecretValidUntil"])
    assert 23 < (until - datetime.now(UTC)).total_seconds() / 3600 <= 24
    api.send(api.new_conversation()["id"])
    wait_until(lambda: receiver.requests)
    for secret in (webhook["secret"], shown["secret"]):
        assert verified(receiver.requests[0], secret)["type"] == "message.created"
    api.post(f"/webhooks/{webhook['id']}/rotate-secret")
    api.post(f"/webhooks/{webhook['id']}/test")
    with pytest.raises(WebhookVerificationError):
        verified(receiver.requests[1], webhook["secret"])
    assert verified(receiver.requests[1], shown["secret"])


def test_a_paused_one_gets_everything_later(
    api: Api, hooks: Hooks, receiver: Receiver, paused: dict[str, Any]
) -> None:
    conversation = api.new_conversation()
    for number in range(5):
        api.send(conversation["id"], str(number))
    waiting = wait_until(lambda: len(found := hooks.deliveries(paused["id"])) == 5 and found)
    for delivery in waiting:
        check(delivery, shapes.WEBHOOK_DELIVERY)
        assert (delivery["status"], delivery["attempts"]) == ("PENDING", 0)
        assert delivery["nextAttemptAt"]
    assert receiver.requests == []
    api.patch(f"/webhooks/{paused['id']}", {"enabled": True})
    wait_until(lambda: len(receiver.requests) == 5)
    assert [each.text for each in receiver.requests] == [str(number) for number in range(5)]
    assert [each.id for each in receiver.requests] == [each["id"] for each in reversed(waiting)]


def test_pages_of_deliveries(api: Api, hooks: Hooks, paused: dict[str, Any]) -> None:
    conversation = api.new_conversation()
    for _ in range(7):
        api.send(conversation["id"])
    wait_until(lambda: len(hooks.deliveries(paused["id"])) == 7)
    path = f"/webhooks/{paused['id']}/deliveries"
    found: list[dict[str, Any]] = []
    cursor = None
    while cursor is not None or not found:
        query = {"cursor": cursor} if cursor else {}
        page = api.get(path, limit=3, **query)
        found += page["items"]
        cursor = page["nextCursor"]
    assert found == hooks.deliveries(paused["id"])
    times = [each["createdAt"] for each in found]
    assert times == sorted(times, reverse=True)
    assert len({each["id"] for each in found}) == 7
    assert hooks.deliveries(paused["id"], status="SUCCEEDED") == []
    assert len(hooks.deliveries(paused["id"], status="PENDING")) == 7
    api.get(path, status="OLD", expect=400)
    api.get(path, cursor="x", expect=400)


def test_one_delivery_again(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    webhook = hooks.make(receiver.url, events=["message.created"])
    api.send(api.new_conversation()["id"], "again")
    (delivery,) = wait_until(lambda: hooks.deliveries(webhook["id"], status="SUCCEEDED"))
    path = f"/webhooks/{webhook['id']}/deliveries"
    renewed = api.post(f"{path}/{delivery['id']}/retry", expect=200)
    check(renewed, shapes.WEBHOOK_DELIVERY)
    assert (renewed["status"], renewed["attempts"]) == ("PENDING", 0)
    first, second = wait_until(lambda: len(receiver.requests) == 2 and receiver.requests)
    assert (first.id, first.body) == (second.id, second.body)
    api.post(f"{path}/{uuid4()}/retry", expect=404)
    other = hooks.make(receiver.url)
    api.post(f"/webhooks/{other['id']}/deliveries/{delivery['id']}/retry", expect=404)


def test_a_failed_attempt_can_be_hurried(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(status=500 if len(receiver.requests) == 1 else 200)
    webhook = hooks.make(receiver.url, events=["message.created"])
    api.send(api.new_conversation()["id"])
    (failed,) = wait_until(
        lambda: (found := hooks.deliveries(webhook["id"])) and found[0]["attempts"] and found
    )
    assert (failed["responseStatus"], failed["error"]) == (500, "answered 500")
    assert api.get(f"/webhooks/{webhook['id']}")["failingSince"] is not None
    api.post(f"/webhooks/{webhook['id']}/deliveries/{failed['id']}/retry")
    (renewed,) = wait_until(lambda: hooks.deliveries(webhook["id"], status="SUCCEEDED"))
    assert renewed["attempts"] == 1  # by itself it would have been the second
    assert len(receiver.requests) == 2
    wait_until(lambda: api.get(f"/webhooks/{webhook['id']}")["failingSince"] is None)


def test_replay(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    webhook = hooks.make(receiver.url, events=["message.created"])
    conversation = api.new_conversation()
    before = [api.send(conversation["id"], f"before {number}") for number in range(3)]
    time.sleep(0.01)
    after = [api.send(conversation["id"], f"after {number}") for number in range(4)]
    wait_until(lambda: len(hooks.deliveries(webhook["id"], status="SUCCEEDED")) == 7)
    first = list(receiver.requests)
    path = f"/webhooks/{webhook['id']}/replay"
    assert api.post(path, {"since": after[0]["createdAt"]}, expect=200) == {"count": 4}
    wait_until(lambda: len(receiver.requests) == 11)
    assert [(each.id, each.body) for each in receiver.requests[7:]] == [
        (each.id, each.body) for each in first[3:]
    ]
    assert [each.text for each in first[:3]] == [each["contentText"] for each in before]
    assert api.post(path, {"since": "2999-01-01T00:00:00Z"}) == {"count": 0}
    api.post(path, {"since": "2026-01-01T00:00:00"}, expect=400)
    for far in ("9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59"):
        assert api.post(path, {"since": far}, expect=400)["details"][0]["field"] == "since"


def test_410_is_shown_to_admins(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(status=410)
    webhook = hooks.make(receiver.url)
    api.post("/leads", {"name": "Ana"})
    path = f"/webhooks/{webhook['id']}"
    seen = wait_until(lambda: not (found := api.get(path))["enabled"] and found)
    assert seen["disabledReason"] == "It answered 410 Gone"
    receiver.decide = lambda _: Reply()
    enabled = api.patch(path, {"enabled": True})
    assert (enabled["disabledReason"], enabled["failingSince"]) == (None, None)
    wait_until(lambda: hooks.deliveries(webhook["id"], status="SUCCEEDED"), 4)


def test_the_first_webhook_under_load(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    """Switching the triggers on and off waits for writers and harms none of them."""
    conversations = [api.new_conversation()["id"] for _ in range(8)]

    def write(number: int) -> None:
        for _ in range(25):
            api.send(conversations[number])

    def switch() -> None:
        for _ in range(10):
            body = {"url": receiver.url, "events": ["message.created"]}
            webhook = api.post("/webhooks", body, expect=201)
            text = f"to {webhook['id']}"
            api.send(conversations[0], text)
            wait_until(lambda text=text: text in [each.text for each in receiver.requests])
            api.delete(f"/webhooks/{webhook['id']}", expect=200)

    together([*(lambda n=n: write(n) for n in range(8)), switch])


# --- kill -9 ----------------------------------------------------------------------------------


@pytest.fixture
def doomed(dsn: str) -> Iterator[LiveServer]:
    with live_server(dsn, **LOCAL) as server:
        yield server


def let_leases_run_out(dsn: str) -> None:
    """As if the time had passed for which what was under way is kept for the dead server."""

    async def move() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "update webhook_deliveries set lease_until = lease_until - interval '20 seconds'"
        )
        await connection.close()

    asyncio.run(move())


MESSAGES, CONVERSATIONS = 250, 25


def test_a_kill_in_the_middle_loses_nothing(
    doomed: LiveServer, receiver: Receiver, dsn: str
) -> None:
    """1,000 deliveries; what was under way comes twice, with the same id and the same bytes."""
    receiver.decide = lambda _: Reply(delay_seconds=0.02)
    with Api.first_admin(doomed.url) as api:
        hooks = [
            api.post("/webhooks", {"url": f"{receiver.url}/{n}", "events": ["message.created"]})
            for n in range(4)
        ]
        conversations = [api.new_conversation()["id"] for _ in range(CONVERSATIONS)]

        def write(conversation_id: str) -> list[str]:
            return [
                api.send(conversation_id, str(n))["id"] for n in range(MESSAGES // CONVERSATIONS)
            ]

        sent = together([lambda c=c: write(c) for c in conversations], threads=8)
        wait_until(lambda: len(receiver.requests) >= 300, 30)
        doomed.kill()
        assert len({each.id for each in receiver.requests}) < 1_000, "it was too late"
        let_leases_run_out(dsn)
        doomed.start()
        wait_until(lambda: len({each.id for each in receiver.requests}) == 1_000, 60)
        expected = {message_id for ids in sent for message_id in ids}
        check_deliveries(receiver, expected)
        secrets = {f"/hook/{n}": hook["secret"] for n, hook in enumerate(hooks)}
        for each in receiver.requests[:: len(receiver.requests) // 50]:
            assert verified(each, secrets[each.path])


def check_deliveries(receiver: Receiver, expected: set[str]) -> None:
    """Each webhook has heard of each message, in order; an id has one message and one body."""
    bodies: dict[str, set[bytes]] = defaultdict(set)
    heard: dict[str, dict[str, str]] = defaultdict(dict)
    order: dict[tuple[str, str], list[int]] = defaultdict(list)
    for each in receiver.requests:
        message = each.json["data"]["message"]
        bodies[each.id].add(each.body)
        if message["id"] not in heard[each.path]:
            heard[each.path][message["id"]] = each.id
            order[each.path, message["conversationId"]].append(message["seq"])
        assert heard[each.path][message["id"]] == each.id
    assert all(len(of_id) == 1 for of_id in bodies.values())
    assert len(heard) == 4
    assert all(set(of_webhook) == expected for of_webhook in heard.values())
    for numbers in order.values():
        assert all(after > before for before, after in pairwise(numbers))

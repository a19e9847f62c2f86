"""Leads write in: who is found, what is made, and each message once."""

from typing import Any
from uuid import uuid4

import pytest

from tests.client import Api, together


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def inbound(**fields: Any) -> dict[str, Any]:
    return {
        "externalId": unique("m"),
        "lead": {"name": "Luis"},
        "message": {"contentText": "hola"},
        **fields,
    }


# --- Once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", ["externalId", "email", "phone", "name"])
@pytest.mark.parametrize("in_conversation", [False, True])
def test_100_equal_calls_make_one_message(
    api: Api, key: Api, lead: str, in_conversation: bool
) -> None:
    body = inbound(lead={"name": "Luis", lead: f"{unique('luis')}@example.com"})
    if in_conversation:
        body["conversationExternalId"] = unique("c")
    responses = together([lambda: key.http.post("/inbound", json=body)] * 100, threads=50)
    assert sorted(response.status_code for response in responses) == [200] * 99 + [201]
    assert len({response.text for response in responses}) == 1
    data = responses[0].json()["data"]
    log = api.get(f"/conversations/{data['conversationId']}/messages")["items"]
    assert log == [data["message"]]
    name = body["lead"]["name"]
    conversations = api.get("/conversations", search=body["lead"].get("email", name), limit=100)
    about_lead = [item for item in conversations["items"] if item["lead"]["id"] == data["leadId"]]
    assert len(about_lead) == 1


def test_a_repeated_id_answers_the_first_result_whatever_comes_with_it(key: Api) -> None:
    body = inbound()
    first = key.post("/inbound", body, expect=201)
    other = {**body, "lead": {"name": "Ana"}, "message": {"contentText": "other"}}
    assert key.post("/inbound", other, expect=200) == first
    with_conversation = {**body, "conversationExternalId": unique("c")}
    assert key.post("/inbound", with_conversation, expect=200) == first


def test_a_failed_call_leaves_nothing(api: Api, key: Api) -> None:
    name = unique("Nobody")
    body = inbound(lead={"name": name}, message={"contentType": "IMAGE"})
    error = key.post("/inbound", body, expect=400)
    assert error["details"][0]["field"] == "message.mediaUrl"
    assert api.get("/leads", search=name)["items"] == []
    key.post("/inbound", {**body, "message": {"contentText": "now it is right"}}, expect=201)


# --- The lead ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["externalId", "email", "phone"])
def test_a_lead_is_found_again(api: Api, key: Api, field: str) -> None:
    lead = {"name": "Luis", field: f"{unique('luis')}@example.com"}
    first = key.post("/inbound", inbound(lead=lead), expect=201)
    second = key.post("/inbound", inbound(lead={**lead, "name": "L."}), expect=201)
    assert second["leadId"] == first["leadId"]
    assert second["conversationId"] == first["conversationId"]
    assert second["message"]["seq"] == 2
    assert api.get(f"/leads/{first['leadId']}")["name"] == "Luis"


def test_only_the_first_identity_that_is_given_counts(key: Api) -> None:
    email, phone = f"{unique('luis')}@example.com", unique("+34")
    by_email = key.post("/inbound", inbound(lead={"name": "L", "email": email, "phone": phone}))
    with_id = {"name": "L", "externalId": unique("l"), "email": email}
    assert key.post("/inbound", inbound(lead=with_id))["leadId"] != by_email["leadId"]
    other = {"name": "L", "email": f"{unique('ana')}@example.com", "phone": phone}
    assert key.post("/inbound", inbound(lead=other))["leadId"] != by_email["leadId"]
    by_phone = key.post("/inbound", inbound(lead={"name": "L", "phone": phone}))
    assert by_phone["leadId"] == by_email["leadId"]


def test_emails_of_leads_have_no_case(key: Api) -> None:
    address = f"Ñandú.İ.{uuid4().hex[:8]}@Example.com"
    ids = {
        key.post("/inbound", inbound(lead={"name": "L", "email": email}))["leadId"]
        for email in (address, address.lower().replace("i̇", "İ"), f" {address} ")
    }
    assert len(ids) == 1


def test_a_lead_made_by_hand_is_found(api: Api, key: Api) -> None:
    email = f"{unique('ana')}@example.com"
    lead = api.post("/leads", {"name": "Ana", "email": email, "phone": "+34 600"})
    found = key.post("/inbound", inbound(lead={"name": "?", "email": email.upper()}))
    assert found["leadId"] == lead["id"]


def test_without_identity_every_message_is_a_new_lead(key: Api) -> None:
    ids = {key.post("/inbound", inbound(), expect=201)["leadId"] for _ in range(3)}
    assert len(ids) == 3


def test_the_oldest_of_two_leads_with_one_email_is_found(api: Api, key: Api) -> None:
    email = f"{unique('ana')}@example.com"
    first = api.post("/leads", {"name": "Ana", "email": email})
    api.post("/leads", {"name": "Ana again", "email": email})
    assert (
        key.post("/inbound", inbound(lead={"name": "A", "email": email}))["leadId"] == first["id"]
    )


@pytest.mark.parametrize("field", ["externalId", "email", "phone"])
def test_first_messages_at_the_same_moment_make_one_lead(key: Api, field: str) -> None:
    lead = {"name": "Luis", field: f"{unique('luis')}@example.com"}
    results = together([lambda: key.post("/inbound", inbound(lead=lead), expect=201)] * 30)
    assert len({result["leadId"] for result in results}) == 1
    assert len({result["conversationId"] for result in results}) == 1
    assert sorted(result["message"]["seq"] for result in results) == list(range(1, 31))


# --- The conversation -------------------------------------------------------------------------


@pytest.mark.parametrize("identified", [False, True])
def test_first_messages_of_one_external_conversation_at_the_same_moment(
    key: Api, identified: bool
) -> None:
    lead = {"name": "Luis", **({"externalId": unique("l")} if identified else {})}
    conversation = unique("c")

    def receive() -> dict[str, Any]:
        body = inbound(lead=lead, conversationExternalId=conversation)
        result: dict[str, Any] = key.post("/inbound", body, expect=201)
        return result

    results = together([receive] * 30)
    assert len({result["conversationId"] for result in results}) == 1
    assert len({result["leadId"] for result in results}) == 1
    assert sorted(result["message"]["seq"] for result in results) == list(range(1, 31))


def test_an_external_conversation_is_kept_apart(key: Api) -> None:
    lead = {"name": "Luis", "externalId": unique("l")}
    first, second = unique("c"), unique("c")
    in_first = key.post("/inbound", inbound(lead=lead, conversationExternalId=first))
    in_second = key.post("/inbound", inbound(lead=lead, conversationExternalId=second))
    without = key.post("/inbound", inbound(lead=lead))
    again = key.post("/inbound", inbound(lead=lead, conversationExternalId=first))
    assert in_first["conversationId"] == again["conversationId"]
    ids = {result["conversationId"] for result in (in_first, in_second, without)}
    assert len(ids) == 3
    assert {result["leadId"] for result in (in_first, in_second, without)} == {in_first["leadId"]}


def test_the_newest_conversation_goes_on(api: Api, key: Api) -> None:
    lead = {"name": "Luis", "externalId": unique("l")}
    first = key.post("/inbound", inbound(lead=lead))
    newer = api.post("/conversations", {"leadId": first["leadId"]})
    assert key.post("/inbound", inbound(lead=lead))["conversationId"] == newer["id"]
    api.send(first["conversationId"], "this one is alive again")
    again = key.post("/inbound", inbound(lead=lead))
    assert again["conversationId"] == first["conversationId"]


def test_a_resolved_conversation_is_reopened(api: Api, key: Api) -> None:
    lead = {"name": "Luis", "externalId": unique("l")}
    path = f"/conversations/{key.post('/inbound', inbound(lead=lead))['conversationId']}"
    api.patch(path, {"status": "RESOLVED"})
    key.post("/inbound", inbound(lead=lead))
    seen = api.get(path)
    assert (seen["status"], seen["lastSeq"], seen["unreadCount"]) == ("OPEN", 2, 2)

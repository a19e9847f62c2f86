"""How far agents' messages got: what visitors mark, and agents see."""

from typing import Any
from uuid import UUID

from tests.client import Api, together
from tests.public.site import Site, sql


def statuses(api: Api, conversation_id: str) -> list[Any]:
    """Oldest first."""
    items = api.get(f"/conversations/{conversation_id}/messages", afterSeq=0, limit=100)["items"]
    return [message["status"] for message in items]


def test_reading_marks_and_seeing_marks(api: Api, site: Site) -> None:
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    api.send(conversation_id, "note", private=True)
    for number in range(3):
        api.send(conversation_id, f"answer {number}")
    assert statuses(api, conversation_id) == [None, None, "sent", "sent", "sent"]
    visitor.get("/messages")
    visitor.get("/messages", afterSeq=0)
    visitor.get("/messages", afterSeq=1)
    assert statuses(api, conversation_id) == [None, None, "sent", "sent", "sent"]
    visitor.get("/messages", afterSeq=3)
    assert statuses(api, conversation_id) == [None, None, "delivered", "delivered", "sent"]
    assert visitor.post("/seen", {"seq": 2}, expect=200) is None
    assert statuses(api, conversation_id) == [None, None, "read", "delivered", "sent"]
    visitor.get("/messages", afterSeq=4)
    visitor.post("/seen", {"seq": 1}, expect=200)
    visitor.post("/seen", {"seq": 0}, expect=200)
    assert statuses(api, conversation_id) == [None, None, "read", "delivered", "delivered"]
    visitor.post("/seen", {"seq": 2**31 - 1}, expect=200)
    assert statuses(api, conversation_id) == [None, None, "read", "read", "read"]
    api.send(conversation_id, "one more")
    assert statuses(api, conversation_id)[-1] == "sent"


def test_marks_without_a_conversation(site: Site) -> None:
    visitor = site.visitor()
    visitor.post("/seen", {"seq": 5}, expect=200)
    visitor.get("/messages", afterSeq=5)


def test_a_visitor_marks_its_own_conversation_only(api: Api, site: Site) -> None:
    visitor, stranger = site.visitor(), site.visitor()
    conversation_id = visitor.send()["conversationId"]
    stranger.send()
    api.send(conversation_id, "answer")
    stranger.post("/seen", {"seq": 100}, expect=200)
    stranger.get("/messages", afterSeq=100)
    assert statuses(api, conversation_id) == [None, "sent"]


def test_agents_see_it_at_once(api: Api, site: Site) -> None:
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    api.send(conversation_id, "note", private=True)
    message = api.send(conversation_id, "answer")
    with api.socket() as socket:
        socket.call("conversation:join", {"conversationId": conversation_id})
        visitor.post("/seen", {"seq": 2}, expect=200)
        pushed = socket.wait_event("message:status")
    assert pushed["conversationId"] == conversation_id
    assert pushed["data"]["messageId"] == message["id"]
    assert pushed["data"]["status"] == "read"


def test_of_many_changes_the_newest_are_pushed(api: Api, site: Site, public_dsn: str) -> None:
    """250 unread answers at once: all of them change, the newest 200 are told."""
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    last = api.send(conversation_id, "answer")
    sql(
        public_dsn,
        """
        with more as (
            insert into messages (
                id, conversation_id, seq, public_seq, sender_type, sender_id, content_text,
                lead_message_count
            )
            select gen_random_uuid(), conversation_id, seq + n, public_seq + n, sender_type,
                sender_id, content_text, lead_message_count
            from messages, generate_series(1, 249) as n
            where id = $1
        )
        update conversations set last_seq = 251, last_public_seq = 251, public_count = 251
        where id = $2
        """,
        last["id"],
        conversation_id,
    )
    with api.socket() as socket:
        socket.call("conversation:join", {"conversationId": conversation_id})
        visitor.post("/seen", {"seq": 251}, expect=200)
        newest = socket.wait(
            lambda frame: frame.get("event") == "message:status" and frame["data"]["seq"] == 251
        )
        assert newest["data"]["status"] == "read"
        frames = [frame for frame in socket.frames if frame.get("event") == "message:status"]
        told = {frame["data"]["seq"] for frame in frames}
    assert told == set(range(52, 251))
    counted = "select count(*) as n from messages where conversation_id = $1 and delivery = 3"
    assert sql(public_dsn, counted, conversation_id)[0]["n"] == 250


def test_marks_at_the_same_moment(api: Api, site: Site) -> None:
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    for _ in range(20):
        api.send(conversation_id, "answer")
    calls = [lambda n=n: visitor.post("/seen", {"seq": n}, expect=200) for n in range(2, 22)]
    calls += [lambda n=n: visitor.get("/messages", afterSeq=n) for n in range(2, 22)]
    calls += [lambda n=n: visitor.send(f"meanwhile {n}") for n in range(5)]
    together(calls[::-1])
    assert statuses(api, conversation_id)[1:21] == ["read"] * 20


def test_a_long_log_is_marked_whole(public_dsn: str, site: Site) -> None:
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    fill = """
        with added as (
            insert into messages (
                conversation_id, seq, public_seq, sender_type, content_text, lead_message_count
            )
            select $1, n, n, 'AGENT', 'x', 1 from generate_series(2, 3000) n
            returning 1
        )
        update conversations set last_seq = 3000, public_count = 3000 where id = $1
    """
    sql(public_dsn, fill, UUID(conversation_id))
    visitor.post("/seen", {"seq": 3000}, expect=200)
    read = "select count(*) as n from messages where conversation_id = $1 and delivery = 3"
    assert sql(public_dsn, read, UUID(conversation_id))[0]["n"] == 2999

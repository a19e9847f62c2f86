"""Bodies stay under their limit, whatever they tell."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from messaging_server.models import (
    AssignedAgent,
    Attachment,
    ContentType,
    Message,
    Sender,
    SenderType,
    WebhookEvent,
    timestamp,
)
from messaging_server.webhooks.payloads import (
    LARGEST_BODY_BYTES,
    OutboxEntry,
    Sources,
    ToldAiView,
    ToldConversation,
    ToldLead,
    render,
)

NOW = timestamp(datetime.now(UTC))
WIDEST = ("\U0001f600", "\u0001", "\ud7ff", '"', "a")


def words(length: int) -> st.SearchStrategy[str]:
    """Nothing, or as long as it may be, of characters that take the most room."""
    return st.builds(str.__mul__, st.sampled_from(WIDEST), st.sampled_from((0, 1, length)))


def tags() -> st.SearchStrategy[list[str]]:
    return st.builds(lambda tag, count: [tag] * count, words(50), st.integers(0, 100))


def agents() -> st.SearchStrategy[AssignedAgent]:
    return st.builds(AssignedAgent, id=st.just(uuid4()), email=words(254), name=words(200))


attachments = st.builds(
    Attachment,
    id=st.just(uuid4()),
    file_name=words(255),
    content_type=words(100),
    size_bytes=st.just(1 << 40),
    url=words(2_000),
    width=st.just(10_000),
    height=st.just(10_000),
    thumbnail_url=words(2_000),
)
messages = st.builds(
    Message,
    id=st.just(uuid4()),
    conversation_id=st.just(uuid4()),
    seq=st.just(1),
    sender_type=st.just(SenderType.LEAD),
    sender=st.builds(Sender, id=st.just(uuid4()), name=words(200)),
    content_type=st.just(ContentType.IMAGE),
    content_text=words(10_000),
    media_url=words(2_000),
    attachments=st.builds(lambda one, count: [one] * count, attachments, st.integers(0, 10)),
    private=st.just(False),
    status=st.none(),
    client_message_id=words(100),
    created_at=st.just(NOW),
)
conversations = st.builds(
    ToldConversation,
    id=st.just(uuid4()),
    inbox_id=st.just(uuid4()),
    status=words(50),
    priority=words(50),
    priority_source=words(50),
    tags=tags(),
    tags_source=words(50),
    summary=words(2_000),
    ai=st.builds(
        ToldAiView,
        summary=words(2_000),
        priority=words(50),
        tags=tags(),
        updated_at=st.just(NOW),
        analyzed_through_seq=st.just(1),
        provider=words(50),
    ),
    assigned_agent=agents(),
    waiting_since=st.just(NOW),
    snoozed_until=st.just(NOW),
    created_at=st.just(NOW),
    updated_at=st.just(NOW),
    version=st.just(1),
)
leads = st.builds(
    ToldLead,
    id=st.just(uuid4()),
    name=words(200),
    email=words(254),
    phone=words(50),
    attributes=st.builds(lambda key, text: {key: [text] * 20}, words(100), words(1_000)),
    created_at=st.just(NOW),
    updated_at=st.just(NOW),
    verified=st.just(False),
)


def told(
    event: WebhookEvent,
    message: Message,
    conversation: ToldConversation,
    lead: ToldLead,
    agent: AssignedAgent,
) -> str:
    conversation_id, subject_id, agent_id = UUID(int=1), UUID(int=2), UUID(int=3)
    details: dict[WebhookEvent, dict[str, Any]] = {
        WebhookEvent.CONVERSATION_ASSIGNED: {
            "agentId": str(agent_id),
            "previousAgentId": str(agent_id),
        },
        WebhookEvent.MESSAGE_STATUS: {"status": "failed", "error": "\u0001" * 1_000},
    }
    entry = OutboxEntry(
        position=1,
        event=event,
        ordering_key=conversation_id,
        subject_id=subject_id,
        detail=details.get(event, {}),
        created_at=datetime.now(UTC),
    )
    sources = Sources(
        messages={subject_id: message},
        conversations={conversation_id: (conversation, lead)},
        leads={subject_id: lead},
        agents={agent_id: agent},
    )
    body = render(entry, sources)
    assert body is not None
    return body


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WebhookEvent), messages, conversations, leads, agents())
def test_every_body_is_under_the_limit(
    event: WebhookEvent,
    message: Message,
    conversation: ToldConversation,
    lead: ToldLead,
    agent: AssignedAgent,
) -> None:
    body = told(event, message, conversation, lead, agent)
    assert len(body.encode()) < LARGEST_BODY_BYTES
    data = json.loads(body)["data"]
    assert data["lead"]["id"] == str(lead.id)
    if "message" in data and not data["truncated"]:
        assert data["message"]["mediaUrl"] == message.media_url


def test_files_are_the_last_to_go() -> None:
    """Ten attachments and the longest address of four-byte characters are too much."""
    address = "\U0001f600" * 2_000
    attachment = Attachment(
        id=uuid4(),
        file_name="\u0001" * 255,
        content_type="image/png",
        size_bytes=1,
        url="https://files.example/" + "a" * 500,
        width=1,
        height=1,
        thumbnail_url="https://files.example/" + "a" * 500,
    )
    message = Message(
        id=uuid4(),
        conversation_id=uuid4(),
        seq=1,
        sender_type=SenderType.SYSTEM,
        sender=None,
        content_type=ContentType.IMAGE,
        content_text="text",
        media_url=address,
        attachments=[attachment] * 10,
        private=False,
        status=None,
        client_message_id=None,
        created_at=NOW,
    )
    agent = AssignedAgent(id=uuid4(), email="a@example.com", name=None)
    conversation = ToldConversation(
        id=uuid4(),
        inbox_id=None,
        status="OPEN",
        priority=None,
        priority_source="AI",
        tags=["\U0001f600" * 50] * 20,
        tags_source="AI",
        summary=None,
        ai=None,
        assigned_agent=None,
        waiting_since=None,
        snoozed_until=None,
        created_at=NOW,
        updated_at=NOW,
        version=1,
    )
    lead = ToldLead(
        id=uuid4(),
        name="Ana",
        email=None,
        phone=None,
        attributes={},
        created_at=NOW,
        updated_at=NOW,
        verified=True,
    )
    body = told(WebhookEvent.MESSAGE_CREATED, message, conversation, lead, agent)
    data = json.loads(body)["data"]
    assert data["truncated"] is True
    assert (data["message"]["attachments"], data["message"]["mediaUrl"]) == ([], None)
    assert data["message"]["contentText"] == "text"
    fewer = told(
        WebhookEvent.MESSAGE_CREATED,
        structs.replace(message, media_url="https://example.com/a.png"),
        conversation,
        lead,
        agent,
    )
    kept = json.loads(fewer)["data"]["message"]
    assert (len(kept["attachments"]), kept["mediaUrl"]) == (10, "https://example.com/a.png")

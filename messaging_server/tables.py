"""All tables, as the query builder sees them; the migrations make them.

Only `queries.py` modules import this. Columns that only SQL text touches (the analysis
schedule, counters, search) are part of the tables all the same: a test compares both.
"""

from piccolo.columns import (
    JSONB,
    UUID,
    Array,
    BigInt,
    Boolean,
    Bytea,
    Date,
    DoublePrecision,
    ForeignKey,
    Integer,
    SmallInt,
    Text,
    Timestamptz,
)
from piccolo.table import Table
from uuid_utils.compat import uuid7


class Users(Table, tablename="users"):
    id = UUID(primary_key=True, default=uuid7)
    email = Text()
    name = Text(null=True, default=None)
    password_hash = Text(secret=True)
    role = Text()
    active = Boolean(default=True)
    token_version = Integer(default=0)
    created_at = Timestamptz()
    updated_at = Timestamptz()


class Inboxes(Table, tablename="inboxes"):
    id = UUID(primary_key=True, default=uuid7)
    name = Text()
    kind = Text()
    allowed_origins = Array(base_column=Text(), default=list)
    greeting = Text(null=True, default=None)
    secret = Text(secret=True)
    previous_secret = Text(null=True, default=None, secret=True)
    previous_secret_until = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()


class Leads(Table, tablename="leads"):
    id = UUID(primary_key=True, default=uuid7)
    inbox_id = UUID(null=True, default=None)
    identity = Text(null=True, default=None)
    external_id = Text(null=True, default=None)
    name = Text()
    email = Text(null=True, default=None)
    phone = Text(null=True, default=None)
    attributes = JSONB(default="{}")
    contact_changed_by_agent = Boolean(default=False)
    contact_verified = Boolean(default=True)
    created_by = ForeignKey(Users)
    created_at = Timestamptz()
    updated_at = Timestamptz()


class Visitors(Table, tablename="visitors"):
    id = UUID(primary_key=True, default=uuid7)
    inbox_id = UUID()
    lead_id = ForeignKey(Leads, null=False)
    token_hash = Bytea(secret=True)
    expires_at = Timestamptz()
    created_at = Timestamptz()


class Conversations(Table, tablename="conversations"):
    id = UUID(primary_key=True, default=uuid7)
    inbox_id = UUID(null=True, default=None)
    external_id = Text(null=True, default=None)
    lead_id = ForeignKey(Leads, null=False)
    lead_text = Text(default="")
    assigned_agent_id = ForeignKey(Users)
    status = Text(default="OPEN")
    priority = Text(null=True, default=None)
    priority_source = Text(default="AI")
    tags = Array(base_column=Text(), default=list)
    tags_source = Text(default="AI")
    ai_summary = Text(null=True, default=None)
    ai_priority = Text(null=True, default=None)
    ai_tags = Array(base_column=Text(), default=list)
    ai_provider = Text(null=True, default=None)
    ai_updated_at = Timestamptz(null=True, default=None)
    last_seq = Integer(default=0)
    last_public_seq = Integer(default=0)
    public_count = Integer(default=0)
    lead_message_count = Integer(default=0)
    last_message_sender_type = Text(null=True, default=None)
    last_message_content_type = Text(null=True, default=None)
    last_message_preview = Text(null=True, default=None)
    last_message_at = Timestamptz(null=True, default=None)
    last_activity_at = Timestamptz()
    waiting_since = Timestamptz(null=True, default=None)
    first_lead_message_at = Timestamptz(null=True, default=None)
    first_reply_seconds = DoublePrecision(null=True, default=None)
    snoozed_until = Timestamptz(null=True, default=None)
    analysis_due_at = Timestamptz(null=True, default=None)
    analysis_first_at = Timestamptz(null=True, default=None)
    analysis_trigger = Text(null=True, default=None)
    analyzed_seq = Integer(default=0)
    analysis_attempts = Integer(default=0)
    analysis_error = Text(null=True, default=None)
    analysis_failed_at = Timestamptz(null=True, default=None)
    lease_until = Timestamptz(null=True, default=None)
    lease_token = UUID(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()
    version = Integer(default=1)


class Messages(Table, tablename="messages"):
    id = UUID(primary_key=True, default=uuid7)
    conversation_id = UUID()
    seq = Integer()
    public_seq = Integer(null=True, default=None)
    sender_type = Text()
    sender_id = UUID(null=True, default=None)
    content_type = Text(default="TEXT")
    content_text = Text(null=True, default=None)
    media_url = Text(null=True, default=None)
    private = Boolean(default=False)
    client_message_id = Text(null=True, default=None)
    inbox_id = UUID(null=True, default=None)
    external_id = Text(null=True, default=None)
    lead_message_count = Integer()
    delivery = SmallInt(default=0)
    delivery_error = Text(null=True, default=None)
    attachment_count = SmallInt(default=0)
    created_at = Timestamptz()


class Attachments(Table, tablename="attachments"):
    id = UUID(primary_key=True, default=uuid7)
    message_id = UUID(null=True, default=None)
    conversation_id = ForeignKey(Conversations)
    position = SmallInt(default=0)
    uploaded_by = ForeignKey(Users)
    lead_id = ForeignKey(Leads)
    inbox_id = UUID(null=True, default=None)
    file_name = Text()
    content_type = Text()
    size_bytes = BigInt()
    width = Integer(null=True, default=None)
    height = Integer(null=True, default=None)
    storage_key = Text()
    thumbnail_key = Text(null=True, default=None)
    created_at = Timestamptz()
    linked_at = Timestamptz(null=True, default=None)


class AttachmentRemovals(Table, tablename="attachment_removals"):
    storage_key = Text(primary_key=True)
    due_at = Timestamptz()


class ConversationReads(Table, tablename="conversation_reads"):
    id = UUID(primary_key=True, default=uuid7)
    conversation_id = ForeignKey(Conversations, null=False)
    user_id = ForeignKey(Users, null=False)
    seq = Integer()
    lead_message_count = Integer()
    updated_at = Timestamptz()


class Analyses(Table, tablename="analyses"):
    id = UUID(primary_key=True, default=uuid7)
    conversation_id = ForeignKey(Conversations)
    status = Text()
    trigger = Text()
    provider = Text()
    model = Text()
    prompt_version = Text(null=True, default=None)
    fingerprint = Bytea(null=True, default=None)
    through_seq = Integer()
    attempt = Integer()
    summary = Text(null=True, default=None)
    priority = Text(null=True, default=None)
    priority_reason = Text(null=True, default=None)
    tags = Array(base_column=Text(), default=list)
    language = Text(null=True, default=None)
    suggested_reply = Text(null=True, default=None)
    error = Text(null=True, default=None)
    calls = Integer(default=1)
    tokens_in = Integer(default=0)
    tokens_out = Integer(default=0)
    tokens_cached = Integer(default=0)
    cost_micro_dollars = BigInt(default=0)
    latency_milliseconds = Integer(null=True, default=None)
    feedback_verdict = Text(null=True, default=None)
    feedback_priority = Text(null=True, default=None)
    feedback_tags = Array(base_column=Text(), null=True, default=None)
    feedback_by = ForeignKey(Users)
    feedback_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()


class AnalysisSpending(Table, tablename="analysis_spending"):
    day = Date(primary_key=True)
    micro_dollars = BigInt(default=0)
    refused = Boolean(default=False)


class ApiKeys(Table, tablename="api_keys"):
    id = UUID(primary_key=True, default=uuid7)
    inbox_id = ForeignKey(Inboxes, null=False)
    name = Text()
    prefix = Text()
    key_hash = Bytea(secret=True)
    created_by = ForeignKey(Users)
    created_at = Timestamptz()
    last_used_at = Timestamptz(null=True, default=None)


class Webhooks(Table, tablename="webhooks"):
    id = UUID(primary_key=True, default=uuid7)
    url = Text(secret=True)
    description = Text(null=True, default=None)
    events = Array(base_column=Text(), default=list)
    include_private_notes = Boolean(default=False)
    secret = Text(secret=True)
    previous_secret = Text(null=True, default=None, secret=True)
    previous_secret_until = Timestamptz(null=True, default=None)
    enabled = Boolean(default=True)
    disabled_reason = Text(null=True, default=None)
    failing_since = Timestamptz(null=True, default=None)
    held_until = Timestamptz(null=True, default=None)
    created_by = ForeignKey(Users)
    created_at = Timestamptz()
    updated_at = Timestamptz()


class WebhookOutbox(Table, tablename="webhook_outbox"):
    position = BigInt(primary_key=True)
    event = Text()
    ordering_key = UUID()
    subject_id = UUID()
    detail = JSONB(null=True, default=None)
    created_at = Timestamptz()


class WebhookBodies(Table, tablename="webhook_bodies"):
    position = BigInt(primary_key=True)
    body = Text()


class WebhookDeliveries(Table, tablename="webhook_deliveries"):
    id = UUID(primary_key=True, default=uuid7)
    position = BigInt()
    webhook_id = UUID()
    event = Text()
    ordering_key = UUID()
    private = Boolean(default=False)
    status = Text(default="PENDING")
    parked = Boolean(default=False)
    attempts = Integer(default=0)
    due_at = Timestamptz()
    lease_until = Timestamptz(null=True, default=None)
    lease_token = UUID(null=True, default=None)
    response_status = Integer(null=True, default=None)
    error = Text(null=True, default=None)
    created_at = Timestamptz()
    finished_at = Timestamptz(null=True, default=None)


class ConversationCounts(Table, tablename="conversation_counts"):
    id = BigInt(primary_key=True)
    assigned_agent_id = UUID(null=True, default=None)
    status = Text()
    priority = Text(null=True, default=None)
    waiting = Boolean()
    count = Integer()  # type: ignore[assignment]  # hides Table.count, which nothing here calls


class ShownUsers(Table, tablename="shown_users"):
    id = SmallInt(primary_key=True)
    version = BigInt()


TABLES: tuple[type[Table], ...] = (
    Users,
    Inboxes,
    Leads,
    Visitors,
    Conversations,
    Messages,
    Attachments,
    AttachmentRemovals,
    ConversationReads,
    Analyses,
    AnalysisSpending,
    ApiKeys,
    Webhooks,
    WebhookOutbox,
    WebhookBodies,
    WebhookDeliveries,
    ConversationCounts,
    ShownUsers,
)

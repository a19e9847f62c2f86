"""The first schema: users, leads, conversations, messages, analyses, API keys.

Written as SQL because the defaults, partial indexes and counters matter more here than the
columns; `tables.py` describes the same tables for the query builder, and a test compares the
two. Core Postgres 14 features only.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000001"
VERSION = "1.38.0"
DESCRIPTION = "The first schema"

TABLES = """
create table users (
    id uuid primary key default gen_random_uuid(),
    email text not null,
    name text,
    password_hash text not null,
    role text not null default 'SALES_AGENT' check (role in ('ADMIN', 'SALES_AGENT')),
    active boolean not null default true,
    token_version integer not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index users_email on users (lower(email));

create table leads (
    id uuid primary key default gen_random_uuid(),
    external_id text,
    name text not null,
    email text,
    phone text,
    attributes jsonb not null default '{}',
    contact_changed_by_agent boolean not null default false,
    created_by uuid references users (id),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index leads_external_id on leads (external_id) where external_id is not null;
create index leads_email on leads (lower(email)) where email is not null;
create index leads_phone on leads (phone) where phone is not null;
create index leads_created on leads (created_at, id);

create table conversations (
    id uuid primary key default gen_random_uuid(),
    external_id text,
    lead_id uuid not null references leads (id) on delete cascade,
    assigned_agent_id uuid references users (id),
    status text not null default 'OPEN',
    priority text,
    priority_source text not null default 'AI',
    tags text[] not null default '{}',
    tags_source text not null default 'AI',
    ai_summary text,
    ai_priority text,
    ai_tags text[] not null default '{}',
    ai_provider text,
    ai_updated_at timestamptz,
    last_seq integer not null default 0,
    last_public_seq integer not null default 0,
    lead_message_count integer not null default 0,
    last_message_sender_type text,
    last_message_content_type text,
    last_message_preview text,
    last_message_at timestamptz,
    last_activity_at timestamptz not null default now(),
    waiting_since timestamptz,
    first_lead_message_at timestamptz,
    first_reply_seconds double precision,
    snoozed_until timestamptz,
    analysis_due_at timestamptz,
    analysis_first_at timestamptz,
    analysis_trigger text,
    analyzed_seq integer not null default 0,
    analysis_attempts integer not null default 0,
    analysis_error text,
    analysis_failed_at timestamptz,
    lease_until timestamptz,
    lease_token uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    version integer not null default 1
) with (fillfactor = 70);
create unique index conversations_external_id on conversations (external_id)
    where external_id is not null;
create index conversations_lead on conversations (lead_id);
create index conversations_activity on conversations (last_activity_at, id);
create index conversations_agent on conversations (assigned_agent_id, last_activity_at, id);
create index conversations_status on conversations (status, last_activity_at, id);
create index conversations_priority on conversations (priority, last_activity_at, id);
create index conversations_unreplied on conversations (last_activity_at, id)
    where waiting_since is not null and status <> 'RESOLVED';
create index conversations_tags on conversations using gin (tags);
create index conversations_analysis on conversations (analysis_due_at)
    where analysis_due_at is not null or analysis_failed_at is not null;

create table messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null,
    seq integer not null,
    sender_type text not null,
    sender_id uuid,
    content_type text not null default 'TEXT',
    content_text text,
    media_url text,
    private boolean not null default false,
    client_message_id text,
    external_id text,
    lead_message_count integer not null,
    created_at timestamptz not null default now(),
    words tsvector generated always as (
        to_tsvector('simple', translate(content_text, './@-_:+&=?#', '           '))
    ) stored
);
create unique index messages_seq on messages (conversation_id, seq);
create unique index messages_client_message_id
    on messages (conversation_id, sender_id, client_message_id)
    where client_message_id is not null;
create unique index messages_external_id on messages (external_id) where external_id is not null;
create index messages_search on messages using gin (words);

create table conversation_reads (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references conversations (id) on delete cascade,
    user_id uuid not null references users (id) on delete cascade,
    seq integer not null,
    lead_message_count integer not null,
    updated_at timestamptz not null default now()
);
create unique index conversation_reads_mark on conversation_reads (conversation_id, user_id);
create index conversation_reads_user on conversation_reads (user_id);

create table analyses (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references conversations (id) on delete cascade,
    status text not null check (status in ('SUCCEEDED', 'FAILED')),
    trigger text not null,
    provider text not null,
    model text not null,
    through_seq integer not null,
    attempt integer not null,
    summary text,
    priority text,
    priority_reason text,
    tags text[] not null default '{}',
    language text,
    error text,
    latency_milliseconds integer not null,
    created_at timestamptz not null default now()
);
create index analyses_conversation on analyses (conversation_id, created_at, id);

create table api_keys (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    prefix text not null,
    key_hash bytea not null unique,
    created_by uuid references users (id),
    created_at timestamptz not null default now(),
    last_used_at timestamptz
);
"""

# `conversations` and `messages` are written with every message. They have no CHECK constraints,
# whose text Postgres parses anew in each statement, and messages no foreign key: they are only
# appended by the statement that locks their conversation, and this trigger deletes them with it.
CASCADE = """
create function delete_messages() returns trigger
language plpgsql
as $$
begin
    delete from messages where conversation_id = old.id;
    return null;
end
$$;
create trigger conversations_deleted after delete on conversations
    for each row execute function delete_messages();
"""

LEAD_SEARCH = """
create function lead_search_text(name text, email text, phone text) returns text
language sql immutable parallel safe
as $$
    select ' ' || lower(
        name || ' ' || coalesce(email, '') || ' ' || coalesce(phone, '') || ' '
        || regexp_replace(coalesce(phone, ''), '[^0-9]', '', 'g')
    )
$$;

create function trigrams(value text) returns text[]
language sql immutable parallel safe
as $$
    select coalesce(array_agg(distinct substr(value, i, 3)), '{}')
    from generate_series(1, length(value) - 2) as i
$$;

create index leads_search on leads using gin (trigrams(lead_search_text(name, email, phone)));
"""

# The dashboard adds up these rows instead of counting conversations: every change of what is
# counted appends the difference, without touching a row that another writer holds.
COUNTERS = """
create table conversation_counts (
    id bigint generated always as identity primary key,
    assigned_agent_id uuid,
    status text not null,
    priority text,
    waiting boolean not null,
    count integer not null
);
create index conversation_counts_agent on conversation_counts (assigned_agent_id);

create function count_conversations() returns trigger
language plpgsql
as $$
begin
    if tg_op <> 'INSERT' then
        insert into conversation_counts (assigned_agent_id, status, priority, waiting, count)
        values (old.assigned_agent_id, old.status, old.priority, old.waiting_since is not null, -1);
    end if;
    if tg_op <> 'DELETE' then
        insert into conversation_counts (assigned_agent_id, status, priority, waiting, count)
        values (new.assigned_agent_id, new.status, new.priority, new.waiting_since is not null, 1);
    end if;
    return null;
end
$$;

create trigger conversations_counted_rows after insert or delete on conversations
    for each row execute function count_conversations();
create trigger conversations_counted_changes after update on conversations
    for each row when (
        old.assigned_agent_id is distinct from new.assigned_agent_id
        or old.status <> new.status
        or old.priority is distinct from new.priority
        or (old.waiting_since is null) <> (new.waiting_since is null)
    )
    execute function count_conversations();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def create_schema() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        for script in (TABLES, CASCADE, LEAD_SEARCH, COUNTERS):
            await transaction.connection.execute(script)

    manager.add_raw(create_schema)
    return manager

"""Outbound webhooks: who wants to hear, what happened, and what they are still to be told.

Triggers write each fact into the outbox, in the transaction of the fact, so that whoever changes
something (the API, an analysis, a timer, SQL) is covered; the server makes deliveries of it.
Why so: `docs/decisions/0010-webhooks.md`.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000005"
VERSION = "1.38.0"
DESCRIPTION = "Webhooks"

TABLES = """
create table webhooks (
    id uuid primary key default gen_random_uuid(),
    url text not null,
    description text,
    events text[] not null default '{}',
    include_private_notes boolean not null default false,
    secret text not null,
    previous_secret text,
    previous_secret_until timestamptz,
    enabled boolean not null default true,
    disabled_reason text,
    failing_since timestamptz,
    held_until timestamptz,
    created_by uuid references users (id),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table webhook_outbox (
    position bigint primary key generated always as identity,
    event text not null,
    ordering_key uuid not null,
    subject_id uuid not null,
    detail jsonb,
    created_at timestamptz not null default now()
);

create table webhook_bodies (
    position bigint primary key,
    body text not null
);

create table webhook_deliveries (
    id uuid primary key default gen_random_uuid(),
    position bigint not null,
    webhook_id uuid not null,
    event text not null,
    ordering_key uuid not null,
    private boolean not null default false,
    status text not null default 'PENDING',
    parked boolean not null default false,
    attempts integer not null default 0,
    due_at timestamptz not null default now(),
    lease_until timestamptz,
    lease_token uuid,
    response_status integer,
    error text,
    created_at timestamptz not null,
    finished_at timestamptz
) with (fillfactor = 70);
create index webhook_deliveries_due
    on webhook_deliveries (webhook_id, parked, due_at, position) where status = 'PENDING';
create index webhook_deliveries_lane
    on webhook_deliveries (ordering_key, webhook_id, status, position);
create index webhook_deliveries_log on webhook_deliveries (webhook_id, created_at, position);
create index webhook_deliveries_private on webhook_deliveries (webhook_id) where private;
"""

FACTS = """
create function tell_of_conversation() returns trigger
language plpgsql
as $$
declare
    changed text[];
begin
    if tg_op = 'INSERT' then
        insert into webhook_outbox (event, ordering_key, subject_id)
        values ('conversation.created', new.id, new.id);
        return null;
    end if;
    if old.assigned_agent_id is distinct from new.assigned_agent_id then
        insert into webhook_outbox (event, ordering_key, subject_id, detail)
        values ('conversation.assigned', new.id, new.id, jsonb_build_object(
            'agentId', new.assigned_agent_id, 'previousAgentId', old.assigned_agent_id));
    end if;
    if old.status <> new.status then
        insert into webhook_outbox (event, ordering_key, subject_id, detail)
        values ('conversation.status_changed', new.id, new.id, jsonb_build_object(
            'status', new.status, 'previousStatus', old.status));
    end if;
    if old.ai_updated_at is distinct from new.ai_updated_at then
        insert into webhook_outbox (event, ordering_key, subject_id)
        values ('conversation.ai_updated', new.id, new.id);
        return null;
    end if;
    changed := array_remove(array[
        case when old.priority is distinct from new.priority
            or old.priority_source <> new.priority_source then 'priority' end,
        case when old.tags <> new.tags or old.tags_source <> new.tags_source then 'tags' end,
        case when old.snoozed_until is distinct from new.snoozed_until
            then 'snoozedUntil' end,
        case when old.lead_id <> new.lead_id then 'lead' end
    ], null);
    if changed <> '{}' then
        insert into webhook_outbox (event, ordering_key, subject_id, detail)
        values ('conversation.updated', new.id, new.id, jsonb_build_object('changed', changed));
    end if;
    return null;
end
$$;
create trigger conversations_told_inserts after insert on conversations
    for each row execute function tell_of_conversation();
create trigger conversations_told_changes after update on conversations
    for each row when (
        old.status <> new.status
        or old.assigned_agent_id is distinct from new.assigned_agent_id
        or old.ai_updated_at is distinct from new.ai_updated_at
        or old.priority is distinct from new.priority
        or old.priority_source <> new.priority_source
        or old.tags <> new.tags
        or old.tags_source <> new.tags_source
        or old.snoozed_until is distinct from new.snoozed_until
        or old.lead_id <> new.lead_id
    )
    execute function tell_of_conversation();

create function tell_of_lead() returns trigger
language plpgsql
as $$
declare
    changed text[];
begin
    if tg_op = 'INSERT' then
        insert into webhook_outbox (event, ordering_key, subject_id)
        values ('lead.created', new.id, new.id);
        return null;
    end if;
    changed := array_remove(array[
        case when old.name <> new.name then 'name' end,
        case when old.email is distinct from new.email then 'email' end,
        case when old.phone is distinct from new.phone then 'phone' end,
        case when old.attributes <> new.attributes then 'attributes' end,
        case when old.contact_verified <> new.contact_verified then 'verified' end
    ], null);
    insert into webhook_outbox (event, ordering_key, subject_id, detail)
    values ('lead.updated', new.id, new.id, jsonb_build_object('changed', changed));
    return null;
end
$$;
create trigger leads_told_inserts after insert on leads
    for each row execute function tell_of_lead();
create trigger leads_told_changes after update on leads
    for each row when (
        old.name <> new.name
        or old.email is distinct from new.email
        or old.phone is distinct from new.phone
        or old.attributes <> new.attributes
        or old.contact_verified <> new.contact_verified
    )
    execute function tell_of_lead();

create function record_lead_merge(from_id uuid, into_id uuid) returns void
language sql
as $$
    insert into webhook_outbox (event, ordering_key, subject_id, detail)
    select 'lead.merged', into_id, into_id, jsonb_build_object('mergedLeadId', from_id)
    where exists (select from webhooks)
$$;

create function tell_of_message() returns trigger
language plpgsql
as $$
begin
    insert into webhook_outbox (event, ordering_key, subject_id)
    values ('message.created', new.conversation_id, new.id);
    return null;
end
$$;
create trigger messages_told_inserts after insert on messages
    for each row execute function tell_of_message();

create function tell_of_message_status() returns trigger
language plpgsql
as $$
begin
    insert into webhook_outbox (event, ordering_key, subject_id, detail)
    values ('message.status', new.conversation_id, new.id, jsonb_build_object(
        'status', (array['sent', 'failed', 'delivered', 'read'])[new.delivery + 1],
        'error', new.delivery_error));
    return null;
end
$$;
create trigger messages_told_status after update of delivery on messages
    for each row when (old.delivery <> new.delivery)
    execute function tell_of_message_status();
"""

# Without a webhook nothing is written down and nothing is paid for: the triggers are off. Leads,
# conversations, messages is the order in which everybody locks; whoever waits here gives up long
# before Postgres would look for a deadlock and end somebody else's transaction.
SWITCH = """
create function switch_telling() returns trigger
language plpgsql security definer
set search_path from current
set lock_timeout = '200ms'
as $$
declare
    wanted boolean;
    present boolean;
begin
    perform pg_advisory_xact_lock(7001);
    wanted := exists (select from webhooks);
    present := (
        select tgenabled <> 'D' from pg_trigger
        where tgname = 'messages_told_inserts' and tgrelid = 'messages'::regclass
    );
    if wanted and not present then
        alter table leads enable trigger leads_told_inserts, enable trigger leads_told_changes;
        alter table conversations
            enable trigger conversations_told_inserts, enable trigger conversations_told_changes;
        alter table messages
            enable trigger messages_told_inserts, enable trigger messages_told_status;
    elsif present and not wanted then
        alter table leads disable trigger leads_told_inserts, disable trigger leads_told_changes;
        alter table conversations
            disable trigger conversations_told_inserts, disable trigger conversations_told_changes;
        alter table messages
            disable trigger messages_told_inserts, disable trigger messages_told_status;
        delete from webhook_outbox;
    end if;
    return null;
end
$$;
alter table leads disable trigger leads_told_inserts, disable trigger leads_told_changes;
alter table conversations
    disable trigger conversations_told_inserts, disable trigger conversations_told_changes;
alter table messages
    disable trigger messages_told_inserts, disable trigger messages_told_status;
create trigger webhooks_switch after insert or delete on webhooks
    for each statement execute function switch_telling();
"""

# What is erased is not told any more, and what was told of it is not kept. The lock is that of
# whoever turns facts into deliveries: what it is just about to write must not be overlooked.
ERASURE = """
create function forget_deliveries() returns trigger
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(7002);
    with forgotten as (
        delete from webhook_deliveries where ordering_key = old.id returning position
    )
    delete from webhook_bodies b using forgotten f where b.position = f.position;
    return null;
end
$$;
create trigger conversations_forgotten after delete on conversations
    for each row execute function forget_deliveries();
create trigger leads_forgotten after delete on leads
    for each row execute function forget_deliveries();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_webhooks() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        for script in (TABLES, FACTS, SWITCH, ERASURE):
            await transaction.connection.execute(script)

    manager.add_raw(add_webhooks)
    return manager

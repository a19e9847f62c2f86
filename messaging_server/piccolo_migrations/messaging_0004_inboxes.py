"""Inboxes: where leads write in, what visitors may see, how far a message got.

Two inboxes exist after the first start: a WIDGET inbox for a website and an API inbox, which
the API keys of earlier versions and what came through them now belong to.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000004"
VERSION = "1.38.0"
DESCRIPTION = "Inboxes"

# `gen_random_uuid` draws from the same strong random source as keys do: two have 244 bits.
INBOXES = """
create table inboxes (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    kind text not null check (kind in ('WIDGET', 'API')),
    allowed_origins text[] not null default '{}',
    greeting text,
    secret text not null default 'is_' || translate(
        gen_random_uuid()::text || gen_random_uuid()::text, '-', ''),
    previous_secret text,
    previous_secret_until timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
insert into inboxes (name, kind, created_at, updated_at)
select name, kind, at, at
from (
    values ('API', 'API', now()), ('Website', 'WIDGET', now() + interval '1 millisecond')
) as first (name, kind, at);

alter table api_keys add column inbox_id uuid references inboxes (id) on delete cascade;
update api_keys set inbox_id = (select id from inboxes where kind = 'API');
alter table api_keys alter column inbox_id set not null;

create table visitors (
    id uuid primary key default gen_random_uuid(),
    inbox_id uuid not null,
    lead_id uuid not null references leads (id) on delete cascade,
    token_hash bytea not null unique,
    expires_at timestamptz not null,
    created_at timestamptz not null default now()
);
create index visitors_lead on visitors (lead_id);
create index visitors_expiry on visitors (expires_at);
"""

# `inbox_id` is no foreign key here, nor of conversations and visitors: an inbox goes at once,
# however much came through it, and what came keeps its mark. Ids are never used again.
#
# A lead of an inbox: `external_id` is how its other system calls the lead, `identity` the `sub`
# of a website's identity token. What a visitor typed about itself is not `contact_verified`.
LEADS = """
alter table leads
    add column inbox_id uuid,
    add column identity text,
    add column contact_verified boolean not null default true;
update leads set inbox_id = (select id from inboxes where kind = 'API')
where external_id is not null;
drop index leads_external_id;
create unique index leads_external_id on leads (inbox_id, external_id)
    where external_id is not null;
create unique index leads_identity on leads (inbox_id, identity) where identity is not null;
"""

# Visitors see public messages only, numbered without gaps by `public_seq`. `delivery` is how far
# an agent's message got: 0 sent, 1 failed, 2 delivered, 3 read; it only grows.
LOG = """
alter table conversations
    add column inbox_id uuid,
    add column public_count integer not null default 0;
update conversations c
set inbox_id = (select id from inboxes where kind = 'API')
where external_id is not null
    or exists (
        select 1 from messages m where m.conversation_id = c.id and m.external_id is not null
    );
drop index conversations_external_id;
create unique index conversations_external_id on conversations (inbox_id, external_id)
    where external_id is not null;

alter table messages
    add column inbox_id uuid,
    add column public_seq integer,
    add column delivery smallint not null default 0,
    add column delivery_error text,
    set (fillfactor = 90);
update messages m
set public_seq = n.public_seq,
    inbox_id = case when m.external_id is not null then n.inbox_id end
from (
    select m.id, c.inbox_id,
        row_number() over (partition by m.conversation_id order by m.seq) as public_seq
    from messages m join conversations c on c.id = m.conversation_id
    where not m.private
) n
where n.id = m.id;
update conversations c
set public_count = (
    select count(*) from messages m where m.conversation_id = c.id and not m.private
);
drop index messages_external_id;
create unique index messages_external_id on messages (inbox_id, external_id)
    where external_id is not null;
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_inboxes() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        for script in (INBOXES, LEADS, LOG):
            await transaction.connection.execute(script)

    manager.add_raw(add_inboxes)
    return manager

"""Attachments of messages, and the list of stored objects that are to be removed."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000006"
VERSION = "1.38.0"
DESCRIPTION = "Attachments"

# An upload has no message until one is sent with it. `messages.attachment_count` tells readers of
# the log which messages are worth a second look.
ATTACHMENTS = """
create table attachments (
    id uuid primary key default gen_random_uuid(),
    message_id uuid,
    conversation_id uuid references conversations (id) on delete cascade,
    position smallint not null default 0,
    uploaded_by uuid references users (id) on delete set null,
    lead_id uuid references leads (id) on delete set null,
    inbox_id uuid references inboxes (id) on delete set null,
    file_name text not null,
    content_type text not null,
    size_bytes bigint not null,
    width integer,
    height integer,
    storage_key text not null,
    thumbnail_key text,
    created_at timestamptz not null default now(),
    linked_at timestamptz,
    check ((message_id is null) = (conversation_id is null)),
    check ((width is null) = (height is null))
);
create index attachments_message on attachments (message_id, position)
    where message_id is not null;
create index attachments_conversation on attachments (conversation_id)
    where conversation_id is not null;
create index attachments_unused on attachments (created_at) where message_id is null;
create index attachments_user on attachments (uploaded_by) where uploaded_by is not null;
create index attachments_lead on attachments (lead_id) where lead_id is not null;
create index attachments_inbox on attachments (inbox_id) where inbox_id is not null;

alter table messages add column attachment_count smallint not null default 0;
"""

# Whatever deletes a row of `attachments`, its objects are removed afterwards; an object that is
# being stored stands here too until its row does, so that a crash in between leaves nothing.
REMOVALS = """
create table attachment_removals (
    storage_key text primary key,
    due_at timestamptz not null default now()
);
create index attachment_removals_due on attachment_removals (due_at);

create function remove_attachment_objects() returns trigger
language plpgsql
as $$
begin
    insert into attachment_removals (storage_key)
    select key from unnest(array[old.storage_key, old.thumbnail_key]) as key
    where key is not null
    on conflict (storage_key) do update set due_at = now();
    return null;
end
$$;
create trigger attachments_deleted after delete on attachments
    for each row execute function remove_attachment_objects();

create function delete_unsent_attachments() returns trigger
language plpgsql
as $$
begin
    delete from attachments where lead_id = old.id and message_id is null;
    return old;
end
$$;
create trigger leads_attachments_deleted before delete on leads
    for each row execute function delete_unsent_attachments();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_attachments() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        for script in (ATTACHMENTS, REMOVALS):
            await transaction.connection.execute(script)

    manager.add_raw(add_attachments)
    return manager

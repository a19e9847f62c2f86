"""Whatever is deleted is locked in the order in which everybody else locks it.

Else two could wait for each other: conversations before their attachments, webhooks before their
deliveries, messages by their ids. `attachments.inbox_id` is no foreign key any more, as nowhere
else: to forget the inbox, its deletion would write to attachments in no order at all.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-24T00:00:00:000008"
VERSION = "1.38.0"
DESCRIPTION = "Lock order"

LOCK_ORDER = """
create or replace function delete_messages() returns trigger
language plpgsql
as $$
begin
    perform from messages where conversation_id = old.id order by id for update;
    delete from messages where conversation_id = old.id;
    return null;
end
$$;

create or replace function delete_unsent_attachments() returns trigger
language plpgsql
as $$
begin
    perform from conversations where lead_id = old.id order by id for update;
    delete from attachments where lead_id = old.id and message_id is null;
    return old;
end
$$;

create or replace function forget_deliveries() returns trigger
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(7002);
    perform from webhooks order by id for no key update;
    with forgotten as (
        delete from webhook_deliveries where ordering_key = old.id returning position
    )
    delete from webhook_bodies b using forgotten f where b.position = f.position;
    return null;
end
$$;

alter table attachments drop constraint attachments_inbox_id_fkey;
drop index attachments_inbox;
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def set_lock_order() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(LOCK_ORDER)

    manager.add_raw(set_lock_order)
    return manager

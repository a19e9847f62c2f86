"""A change of a lead is one of its conversations, which show it: a new version of each row.

Lists tell by a conversation's row alone whether it is shown as it was (decision 13). So that none
is missed, a conversation that comes to a lead waits for those who are changing the lead. It does so
after it has come: a trigger before would have Postgres lock the row again for each message.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-30T00:00:00:000010"
VERSION = "1.38.0"
DESCRIPTION = "Shown leads"

SHOWN_LEADS = """
create function show_changed_lead() returns trigger
language plpgsql
as $$
begin
    perform from conversations where lead_id = new.id order by id for no key update;
    update conversations set version = version + 1, updated_at = now() where lead_id = new.id;
    return null;
end
$$;
create trigger leads_shown after update on leads
    for each row when (
        (old.name, old.email, old.phone, old.attributes::text, old.created_at, old.updated_at)
        is distinct from -- as text, in which 1 and 1.0 differ
        (new.name, new.email, new.phone, new.attributes::text, new.created_at, new.updated_at)
    )
    execute function show_changed_lead();

create function lock_lead() returns trigger
language plpgsql
as $$
begin
    perform from leads where id = new.lead_id for no key update;
    return null;
end
$$;
create trigger conversations_lock_lead after insert or update of lead_id on conversations
    for each row execute function lock_lead();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_shown_leads() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(SHOWN_LEADS)

    manager.add_raw(add_shown_leads)
    return manager

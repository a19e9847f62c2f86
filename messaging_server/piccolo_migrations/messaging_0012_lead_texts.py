"""What a lead is found by, kept in its row and in the rows of its conversations.

A search for what many leads have goes through the newest conversations. To compare each with a
text of its own takes a quarter of looking up its lead (`docs/decisions/0002`).
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-30T00:00:00:000012"
VERSION = "1.38.0"
DESCRIPTION = "Lead texts"

LEAD_TEXTS = """
alter table leads add column search_text text not null
    generated always as (lead_search_text(name, email, phone)) stored;

alter table conversations add column lead_text text not null default '';
update conversations c set lead_text = l.search_text from leads l where l.id = c.lead_id;

create or replace function show_changed_lead() returns trigger
language plpgsql
as $$
begin
    perform from conversations where lead_id = new.id order by id for no key update;
    update conversations
    set lead_text = new.search_text, version = version + 1, updated_at = now()
    where lead_id = new.id;
    return null;
end
$$;

-- Locked, the lead is read as it is now, and whoever changes it later finds this conversation.
create or replace function lock_lead() returns trigger
language plpgsql
as $$
declare
    text_of_lead text;
begin
    select search_text into text_of_lead from leads where id = new.lead_id for no key update;
    update conversations set lead_text = text_of_lead where id = new.id;
    return null;
end
$$;
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_lead_texts() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(LEAD_TEXTS)

    manager.add_raw(add_lead_texts)
    return manager

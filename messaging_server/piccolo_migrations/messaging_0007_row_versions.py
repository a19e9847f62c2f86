"""A conversation's row version covers whom it shows: its lead and its agent.

Lists tell by `xmin` alone whether they hold a conversation as it is (decision 13). So a change of
a lead or of a user's name writes new versions of the conversations that show it. Everybody locks
leads and users before conversations.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000007"
VERSION = "1.38.0"
DESCRIPTION = "Row versions"

ROW_VERSIONS = """
create function renew_conversations_of_lead() returns trigger
language plpgsql
as $$
begin
    update conversations set lead_id = lead_id where lead_id = new.id;
    return null;
end
$$;
create trigger leads_shown after update on leads
    for each row when (
        (old.name, old.email, old.phone, old.attributes, old.created_at, old.updated_at)
        is distinct from
        (new.name, new.email, new.phone, new.attributes, new.created_at, new.updated_at)
    )
    execute function renew_conversations_of_lead();

create function renew_conversations_of_agent() returns trigger
language plpgsql
as $$
begin
    update conversations set assigned_agent_id = assigned_agent_id
    where assigned_agent_id = new.id;
    return null;
end
$$;
create trigger users_shown after update on users
    for each row when ((old.email, old.name) is distinct from (new.email, new.name))
    execute function renew_conversations_of_agent();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_triggers() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(ROW_VERSIONS)

    manager.add_raw(add_triggers)
    return manager

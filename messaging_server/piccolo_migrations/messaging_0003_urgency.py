"""Who needs a reply first: the order of `GET /conversations?sort=urgency`, with its indexes.

The order must not change while time passes, so it is that of a time: when the lead began to
wait, earlier by the head start of the priority. Only what is OPEN and waits is indexed. Why
these head starts: `docs/decisions/0008-urgency.md`.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000003"
VERSION = "1.38.0"
DESCRIPTION = "Urgency"

# An index needs an immutable expression, which `timestamptz - interval` is not: what a day is
# depends on the session's time zone. A change of the head starts is a new function and new indexes.
URGENCY = """
create function urgent_since(waiting_since timestamptz, priority text) returns timestamptz
language sql immutable parallel safe
as $$
    select (
        waiting_since at time zone 'UTC'
        - case priority
            when 'HIGH' then interval '72 hours'
            when 'MEDIUM' then interval '24 hours'
            when 'LOW' then interval '0 hours'
            else interval '12 hours'
        end
    ) at time zone 'UTC'
$$;

create index conversations_urgency on conversations (urgent_since(waiting_since, priority), id)
    where waiting_since is not null and status = 'OPEN';
create index conversations_agent_urgency
    on conversations (assigned_agent_id, urgent_since(waiting_since, priority), id)
    where waiting_since is not null and status = 'OPEN';
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_urgency() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(URGENCY)

    manager.add_raw(add_urgency)
    return manager

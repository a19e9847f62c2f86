"""Filters in the indexes of the list: a page that nothing or little matches is told from them.

Each index is in the order of the list and begins with one filter. What stands after the order is
compared within the index, without reading the conversation: `docs/decisions/0017-filters.md`.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-24T00:00:00:000009"
VERSION = "1.38.0"
DESCRIPTION = "Filters"

FILTERS = """
drop index conversations_agent, conversations_status, conversations_priority,
    conversations_unreplied, conversations_urgency, conversations_agent_urgency;

create index conversations_agent on conversations
    (assigned_agent_id, last_activity_at, id, status, priority, waiting_since);
create index conversations_status on conversations
    (status, last_activity_at, id, priority, waiting_since, assigned_agent_id);
create index conversations_priority on conversations
    (priority, last_activity_at, id, status, waiting_since, assigned_agent_id);
create index conversations_unreplied on conversations
    (last_activity_at, id, status, priority, assigned_agent_id)
    where waiting_since is not null and status <> 'RESOLVED';

create index conversations_urgency on conversations
    (urgent_since(waiting_since, priority), id, priority)
    where waiting_since is not null and status = 'OPEN';
create index conversations_agent_urgency on conversations
    (assigned_agent_id, urgent_since(waiting_since, priority), id, priority)
    where waiting_since is not null and status = 'OPEN';
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_filters() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(FILTERS)

    manager.add_raw(add_filters)
    return manager

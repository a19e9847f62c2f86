"""An index of the kinds of conversations, for filters together that few of them meet; their counts.

It is of expressions, so that Postgres never takes it by itself (`docs/decisions/0017-filters.md`).
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-30T00:00:00:000011"
VERSION = "1.38.0"
DESCRIPTION = "Kinds"

KINDS = """
create index conversations_kind on conversations (
    (coalesce(status, '')),
    (coalesce(priority, '')),
    (coalesce(assigned_agent_id, '00000000-0000-0000-0000-000000000000'))
);

-- Where many conversations came at once, their counts are summed up into few rows. The dashboard
-- goes through all pages that are left, and vacuum gives none back where it skips the indexes.
alter table conversation_counts set (vacuum_index_cleanup = on);
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_kinds() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(KINDS)

    manager.add_raw(add_kinds)
    return manager

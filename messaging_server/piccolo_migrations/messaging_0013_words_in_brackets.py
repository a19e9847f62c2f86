"""What stands in angle brackets is found: as a tag Postgres would leave it out.

Mail writes its addresses so (`Bea <bea@example.com>`). The messages are written anew, half a minute
a million of them.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-30T00:00:00:000013"
VERSION = "1.38.0"
DESCRIPTION = "Words in brackets"

WORDS = """
alter table messages drop column words; -- and its index
alter table messages add column words tsvector generated always as (
    to_tsvector('simple', translate(content_text, './@-_:+&=?#<>', repeat(' ', 13)))
) stored;
create index messages_search on messages using gin (words);
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def write_words_anew() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(WORDS)

    manager.add_raw(write_words_anew)
    return manager

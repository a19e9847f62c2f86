"""How often what conversations show of users has changed: one row with one number.

Lists tell by it whether the agents of the conversations they hold are as they were (decision 13).
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000007"
VERSION = "1.38.0"
DESCRIPTION = "Shown users"

SHOWN_USERS = """
create table shown_users (
    id smallint primary key check (id = 1),
    version bigint not null
);
insert into shown_users (id, version) values (1, 0);

create function count_change_of_shown_users() returns trigger
language plpgsql
as $$
begin
    update shown_users set version = version + 1;
    return null;
end
$$;
create trigger users_shown after update on users
    for each row when ((old.email, old.name) is distinct from (new.email, new.name))
    execute function count_change_of_shown_users();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_shown_users() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(SHOWN_USERS)

    manager.add_raw(add_shown_users)
    return manager

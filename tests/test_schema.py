"""The migrated schema: what the query builder takes it for, and the SQL that was written before."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import bcrypt
import pytest

from messaging_server.tables import TABLES
from tests.client import PASSWORD, Api, LiveServer

POSTGRES_NAMES = {
    "DOUBLE PRECISION": "double precision",
    "TIMESTAMPTZ": "timestamp with time zone",
    "TEXT[]": "ARRAY",
}


async def fetch_columns(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            """
            select table_name, column_name, data_type, is_nullable = 'YES' as nullable
            from information_schema.columns
            where table_schema = 'public' and table_name <> 'migration'
                and is_generated = 'NEVER' -- the query builder would try to write them
            """
        )
    finally:
        await connection.close()


def type_of(column: Any) -> str:
    name = column.column_type
    return POSTGRES_NAMES.get(name, name.lower())


def test_tables_and_migrations_agree(dsn: str) -> None:
    migrated = {
        (row["table_name"], row["column_name"]): (row["data_type"], row["nullable"])
        for row in asyncio.run(fetch_columns(dsn))
    }
    declared = {
        (table._meta.tablename, column._meta.db_column_name): (
            type_of(column),
            column._meta.null,
        )
        for table in TABLES
        for column in table._meta.columns
    }
    assert declared == migrated


# --- SQL for test data, as the first version of this API had it ---------------------------------


def bcrypt_hash(prefix: str) -> str:
    """As older libraries (2a), newer ones (2b) and PHP (2y) write it."""
    made = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    return made.replace("$2b$", f"${prefix}$", 1)


async def execute(dsn: str, *statements: tuple[Any, ...]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for sql, *arguments in statements:
            await connection.execute(sql, *arguments)
    finally:
        await connection.close()


USER = "insert into users (id,email,password_hash,role) values ($1,$2,$3,$4)"
LEAD = "insert into leads (id,name,email,phone) values ($1,$2,$3,$4)"
CONVERSATION = "insert into conversations (id,lead_id,assigned_agent_id) values ($1,$2,$3)"


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
def test_old_sql_runs_and_the_api_shows_its_rows(
    server: LiveServer, module_dsn: str, prefix: str
) -> None:
    admin_id, agent_id, lead_id, conversation_id, unassigned_id = (uuid4() for _ in range(5))
    mark = uuid4().hex[:8]
    asyncio.run(
        execute(
            module_dsn,
            (USER, admin_id, f"Admin.{mark}@example.com", bcrypt_hash(prefix), "ADMIN"),
            (USER, agent_id, f"agent.{mark}@example.com", bcrypt_hash(prefix), "SALES_AGENT"),
            (LEAD, lead_id, f"Ana {mark}", "ana@example.com", "+34 600"),
            (CONVERSATION, conversation_id, lead_id, agent_id),
            (CONVERSATION, unassigned_id, lead_id, None),
        )
    )
    with Api(server.url) as nobody:
        admin = nobody.log_in(f"admin.{mark}@example.com")
        agent = nobody.log_in(f"agent.{mark}@example.com")
        assert UUID(agent.user["id"]) == agent_id
        seen = agent.get("/conversations")["items"]
        assert [UUID(item["id"]) for item in seen] == [conversation_id]
        assert (seen[0]["lead"]["name"], seen[0]["status"]) == (f"Ana {mark}", "OPEN")
        assert seen[0]["lastMessage"] is None
        assert agent.send(str(conversation_id))["seq"] == 1
        assert len(admin.get("/conversations", search=mark)["items"]) == 2
        assert [UUID(lead["id"]) for lead in admin.get("/leads", search=mark)["items"]] == [lead_id]
        assert agent.get("/dashboard/metrics")["totalConversations"] == 1
        again = {"email": f"AGENT.{mark}@example.com", "password": PASSWORD}
        admin.post("/auth/register", again, expect=409)


def test_a_hash_that_is_none_logs_nobody_in(server: LiveServer, module_dsn: str) -> None:
    hashes = ["", "plain text", "$2b$10$short", "$1$md5$x", "ñ"]
    rows = [
        (USER, uuid4(), f"{index}@bad.example", text, "ADMIN") for index, text in enumerate(hashes)
    ]
    asyncio.run(execute(module_dsn, *rows))
    with Api(server.url) as nobody:
        for index in range(len(hashes)):
            login = {"email": f"{index}@bad.example", "password": PASSWORD}
            nobody.post("/auth/login", login, expect=401)
    server.assert_no_defects()

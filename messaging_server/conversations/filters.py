"""What a list of conversations is asked for, and the conditions of SQL that say the same."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.conversations.urgency import NEEDS_REPLY, URGENT_SINCE
from messaging_server.database import Database
from messaging_server.models import Caller, Priority, Status

COMPARED = """
    xmin, id, lead_id, lead_text, assigned_agent_id, status, priority, tags, waiting_since,
    last_activity_at, lead_message_count
"""
"""What a list filters and sorts by, and what it reads."""

UNREPLIED = "c.waiting_since is not null and c.status <> 'RESOLVED'"


class Sort(StrEnum):
    """Newest activity first; or most urgent first, and only those that need a reply."""

    ACTIVITY = "activity"
    URGENCY = "urgency"


class Order(Struct, frozen=True):
    """By a time and then the id; `after` compares a row with the last one of a page."""

    time: str
    clause: str
    after: str

    @classmethod
    def by(cls, time: str, direction: str, *, after: str) -> "Order":
        return cls(time, f"order by {time} {direction}, c.id {direction}", after)


ORDERS = {
    Sort.ACTIVITY: Order.by("c.last_activity_at", "desc", after="<"),
    Sort.URGENCY: Order.by(URGENT_SINCE, "asc", after=">"),
}


class ConversationCursor(Struct, frozen=True):
    """The last conversation of a page, by what it was sorted."""

    sort: Sort
    at: datetime
    id: UUID


class Filters(Struct, frozen=True, kw_only=True):
    """All that is given must hold, in the order of `sort`."""

    sort: Sort = Sort.ACTIVITY
    priority: Priority | None = None
    tag: str | None = None
    status: Status | None = None
    assigned_agent_id: UUID | None = None
    unassigned: bool | None = None
    unreplied: bool | None = None
    search: str | None = None

    @property
    def exclude_each_other(self) -> bool:
        """Whether no conversation at all can meet them."""
        by_urgency = self.sort is Sort.URGENCY
        return (
            (self.unreplied is True and self.status is Status.RESOLVED)
            or (by_urgency and (self.unreplied is False or self.status not in (None, Status.OPEN)))
            or (self.unassigned is True and self.assigned_agent_id is not None)
        )


class Statement:
    """Collects conditions and their parameters, numbered as they come."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.arguments: list[Any] = []

    def parameter(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def where(self, condition: str) -> None:
        self.conditions.append(condition)


class Selection(Struct, frozen=True):
    """The conversations that a caller may see and asks for, after the cursor."""

    caller: Caller
    filters: Filters
    cursor: ConversationCursor | None
    tag_in_place: bool = False
    """Whether tags are compared row by row, without the index of tags."""

    @property
    def order(self) -> Order:
        return ORDERS[self.filters.sort]

    def statement(self) -> Statement:
        """A new one with all conditions."""
        statement = Statement()
        if not self.caller.is_admin:
            statement.where(f"c.assigned_agent_id = {statement.parameter(self.caller.id)}")
        self._add_filters(statement)
        self._add_waiting(statement)
        if self.cursor is not None:
            at, last_id = statement.parameter(self.cursor.at), statement.parameter(self.cursor.id)
            order = self.order
            statement.where(f"({order.time}, c.id) {order.after} ({at}, {last_id}::uuid)")
        return statement

    def _add_filters(self, statement: Statement) -> None:
        filters = self.filters
        if filters.unassigned is not None:
            statement.where(f"c.assigned_agent_id is {'' if filters.unassigned else 'not'} null")
        if filters.assigned_agent_id is not None:
            agent_id = statement.parameter(filters.assigned_agent_id)
            statement.where(f"c.assigned_agent_id = {agent_id}")
        if filters.priority is not None:
            statement.where(f"c.priority = {statement.parameter(filters.priority)}")
        if filters.status is not None:
            statement.where(f"c.status = {statement.parameter(filters.status)}")
        if filters.tag is not None:
            tags = "coalesce(c.tags, '{}')" if self.tag_in_place else "c.tags"
            statement.where(f"{tags} @> array[{statement.parameter(filters.tag)}::text]")

    def _add_waiting(self, statement: Statement) -> None:
        """Written so that an index can tell it, with the status or by what it holds."""
        filters = self.filters
        if filters.sort is Sort.URGENCY:
            statement.where(NEEDS_REPLY)
        elif filters.unreplied:
            statement.where(UNREPLIED)
        elif filters.unreplied is False:
            is_unresolved = filters.status in (Status.OPEN, Status.SNOOZED)
            statement.where("c.waiting_since is null" if is_unresolved else f"not ({UNREPLIED})")

    def first(self, statement: Statement, limit: int) -> str:
        """The first of them as conversations `c`: they are gone through one by one."""
        return f"""(
            select {COMPARED} from conversations c
            {where(statement.conditions)}
            {self.order.clause}
            limit {limit}
        ) c"""


def looked_up(condition: str) -> str:
    """Those that an index finds, as conversations `c`: all of them, whatever else is asked."""
    return f"(select {COMPARED} from conversations where {condition} offset 0) c"


def where(conditions: list[str]) -> str:
    return f"where {' and '.join(conditions)}" if conditions else ""


async def are_few(database: Database, selection: Selection, limit: int) -> bool:
    """Whether there are fewer than `limit` of them."""
    statement = selection.statement()
    some = f"select 1 from conversations c {where(statement.conditions)} limit {limit}"
    sql = f"select count(*) < {limit} from ({some}) some_of_them"
    return bool(await database.fetch_value(sql, *statement.arguments))

"""What a list of conversations is asked for, and the conditions of SQL that say the same."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.conversations.urgency import NEEDS_REPLY, URGENT_SINCE
from messaging_server.models import Caller, Priority, Status


class Sort(StrEnum):
    """Newest activity first; or most urgent first, and only those that need a reply."""

    ACTIVITY = "activity"
    URGENCY = "urgency"


class Order(Struct, frozen=True):
    """By a time and then the id; `after` compares a row with the last one of a page."""

    time: str
    direction: str
    after: str

    @property
    def clause(self) -> str:
        return f"order by {self.time} {self.direction}, c.id {self.direction}"


ORDERS = {
    Sort.ACTIVITY: Order("c.last_activity_at", "desc", "<"),
    Sort.URGENCY: Order(URGENT_SINCE, "asc", ">"),
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
    def are_only_a_tag(self) -> bool:
        """Or a tag and an agent, whose conversations have an index of their own in that order."""
        others = (self.priority, self.status, self.unassigned, self.unreplied, self.search)
        return self.tag is not None and self.sort is Sort.ACTIVITY and others == (None,) * 5


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


def add_conditions(
    statement: Statement,
    caller: Caller,
    filters: Filters,
    cursor: ConversationCursor | None,
    *,
    in_place: bool = False,
) -> None:
    """`in_place`: whether tags are compared row by row, without the index of tags."""
    if filters.sort is Sort.URGENCY:
        statement.where(NEEDS_REPLY)
    if not caller.is_admin:
        statement.where(f"c.assigned_agent_id = {statement.parameter(caller.id)}")
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
        tags = "coalesce(c.tags, '{}')" if in_place else "c.tags"
        statement.where(f"{tags} @> array[{statement.parameter(filters.tag)}::text]")
    if filters.unreplied is not None:
        unreplied = "(c.waiting_since is not null and c.status <> 'RESOLVED')"
        statement.where(unreplied if filters.unreplied else f"not {unreplied}")
    if cursor is not None:
        order, at, last_id = (
            ORDERS[filters.sort],
            statement.parameter(cursor.at),
            statement.parameter(cursor.id),
        )
        statement.where(f"({order.time}, c.id) {order.after} ({at}, {last_id}::uuid)")


def where(conditions: list[str]) -> str:
    return f"where {' and '.join(conditions)}" if conditions else ""

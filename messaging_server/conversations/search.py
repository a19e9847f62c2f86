"""The list of conversations: filters, full-text search, by newest activity or by urgency.

Messages are found by the words they hold (each search word may be the beginning of one), leads
by any part of name, e-mail or phone. Only core Postgres is needed.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from messaging_server.conversations.tag_frequencies import TagFrequencies
from messaging_server.conversations.urgency import NEEDS_REPLY, URGENT_SINCE
from messaging_server.conversations.view_cache import ViewCache
from messaging_server.conversations.view_queries import LISTED, LISTED_JOINS, views_of
from messaging_server.database import Database
from messaging_server.errors import ValidationFailed
from messaging_server.leads.queries import (
    search_condition,
    search_condition_in_place,
    search_pattern,
)
from messaging_server.models import Caller, Priority, Status

MATCHING_LEADS = 1_000
SAMPLED_CONVERSATIONS = 100
SAMPLED_MESSAGES = 20
SAMPLED_TOTAL = 500
SAMPLED_LEADS = 30
SEPARATORS = dict.fromkeys(map(ord, "./@-_:+&=?#"), " ")
"""What `messages.words` takes for spaces, so that PED-4711 is found by 4711."""
INDEXED_MATCH = "m.words @@ (select to_tsquery('simple', {query}))"
MATCH_IN_PLACE = "coalesce(m.words, '') @@ (select to_tsquery('simple', {query}))"
"""For a few messages at hand: an expression keeps Postgres from asking the index of words."""


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


class ConversationList:
    """Pages of conversations, as one caller sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._views = ViewCache()
        self._tags = TagFrequencies(database)

    async def fetch_page(
        self,
        caller: Caller,
        filters: Filters,
        *,
        limit: int,
        cursor: ConversationCursor | None,
    ) -> tuple[list[msgspec.Raw], ConversationCursor | None]:
        """One page, each conversation as JSON, and the cursor of the next, if there is one.

        Which conversations they are is read first, then those that are not held as they are.
        Raises `ValidationFailed` for a cursor of another sort.
        """
        if cursor is not None and cursor.sort is not filters.sort:
            raise ValidationFailed.of("cursor", f"was given out for sort={cursor.sort}")
        rows = await self._find(caller, filters, cursor, size=limit + 1)
        last = rows[limit - 1] if len(rows) > limit else None
        following = cursor_after(last, filters.sort) if last else None
        return await views_of(self._database, self._views, caller, rows[:limit]), following

    async def _find(
        self, caller: Caller, filters: Filters, cursor: ConversationCursor | None, *, size: int
    ) -> Sequence[Mapping[str, Any]]:
        """The first `size` rows of `LISTED`, with the time by which they are sorted.

        `size` is written out: as a parameter it would keep Postgres planning every time.
        """
        frequencies = await self._tags.fetch() if filters.are_only_a_tag else None
        statement = Statement()
        joins = LISTED_JOINS.format(user_id=statement.parameter(caller.id))
        add_conditions(statement, caller, filters, cursor, in_place=frequencies is not None)
        source, conditions = "conversations c", where(statement.conditions)
        found = ""
        if filters.search is not None:
            walk = await choose_walk(self._database, caller, filters, cursor)
            leads = None if walk.leads else await find_leads(self._database, caller, filters.search)
            found = matching(statement, filters, walk, leads, size=size)
        elif frequencies and not frequencies.is_common(filters.tag or "", wanted=size):
            found = tagged(statement, filters, size=size)
        if found:
            source, conditions = f"({found}) found join conversations c on c.id = found.id", ""
        planned = filters.tag is not None and frequencies is None
        fetch = self._database.fetch_planned if planned else self._database.fetch
        return await fetch(
            f"""
            select {LISTED}, date_part('epoch', {ORDERS[filters.sort].time}) as sorted_at
            from {source} {joins}
            {conditions}
            {ORDERS[filters.sort].clause}
            limit {size}
            """,
            *statement.arguments,
        )


def cursor_after(row: Mapping[str, Any], sort: Sort) -> ConversationCursor:
    return ConversationCursor(sort, datetime.fromtimestamp(row["sorted_at"], UTC), row["id"])


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


class Walk(Struct, frozen=True):
    """What is looked for conversation by conversation, in order, instead of in an index.

    An index soon names the few that match; of many, each would have to be looked up, while going
    through the first conversations soon finds enough.
    """

    messages: bool
    leads: bool


async def choose_walk(
    database: Database, caller: Caller, filters: Filters, cursor: ConversationCursor | None
) -> Walk:
    """Both where there are few conversations, else what finds anything in a sample.

    The sample is the newest messages of the first conversations, and their leads. What one
    message in a hundred holds is nearly always found in it.
    """
    search = filters.search or ""
    statement = Statement()
    add_conditions(statement, caller, filters, cursor)
    in_message = MATCH_IN_PLACE.format(query=statement.parameter(text_query(search)))
    in_lead = search_condition_in_place(statement.parameter(search_pattern(search)))
    row = await database.fetch_row(
        f"""
        with sample as materialized (
            select c.id, c.lead_id from conversations c
            {where(statement.conditions)}
            {ORDERS[filters.sort].clause}
            limit {SAMPLED_CONVERSATIONS}
        ),
        size as (select count(*) < {SAMPLED_CONVERSATIONS} as is_small from sample)
        select
            is_small or exists (
                select 1
                from (
                    select newest.words
                    from sample
                    cross join lateral (
                        select words from messages
                        where conversation_id = sample.id
                        order by seq desc
                        limit {SAMPLED_MESSAGES}
                    ) newest
                    limit {SAMPLED_TOTAL}
                ) m
                where {in_message}
            ) as messages,
            is_small or exists (
                select 1
                from (select lead_id from sample limit {SAMPLED_LEADS}) first
                join leads l on l.id = first.lead_id
                where {in_lead}
            ) as leads
        from size
        """,
        *statement.arguments,
    )
    assert row is not None
    return Walk(row["messages"], row["leads"])


async def find_leads(database: Database, caller: Caller, search: str) -> Sequence[UUID]:
    """The newest leads that match, at most so many; planned for how common the search is."""
    statement = Statement()
    statement.where(search_condition(statement.parameter(search_pattern(search))))
    if not caller.is_admin:
        statement.where(
            f"""exists (
                select 1 from conversations v
                where v.lead_id = l.id and v.assigned_agent_id = {statement.parameter(caller.id)}
            )"""
        )
    rows = await database.fetch_planned(
        f"""
        select l.id from leads l
        {where(statement.conditions)}
        order by l.created_at desc
        limit {MATCHING_LEADS}
        """,
        *statement.arguments,
    )
    return [row["id"] for row in rows]


def matching(
    statement: Statement, filters: Filters, walk: Walk, leads: Sequence[UUID] | None, *, size: int
) -> str:
    """The first conversations whose messages or whose lead match, as a subquery.

    `leads` are those that match; None where they are looked for in the walk, whose order
    `offset 0` keeps. Words and leads hide in a `select`, so that no plan is better for knowing
    them, and one serves all.
    """
    search = filters.search or ""
    query = statement.parameter(text_query(search))
    if walk.messages:
        by_message = f"""exists (
            select 1 from messages m
            where m.conversation_id = c.id and {MATCH_IN_PLACE.format(query=query)}
            offset 0
        )"""
    else:
        by_message = f"""c.id = any(array(
            select distinct m.conversation_id from messages m
            where {INDEXED_MATCH.format(query=query)}
        ))"""
    if leads is None:
        in_lead = search_condition_in_place(statement.parameter(search_pattern(search)))
        by_lead = f"exists (select 1 from leads l where l.id = c.lead_id and {in_lead} offset 0)"
    else:
        by_lead = f"c.lead_id = any((select {statement.parameter(leads)}::uuid[])::uuid[])"
    one_walk = walk.messages and leads is None
    return " union ".join(
        f"""(
            select c.id from conversations c
            {where([*statement.conditions, branch])}
            {ORDERS[filters.sort].clause}
            limit {size}
        )"""
        for branch in ([f"({by_lead} or {by_message})"] if one_walk else [by_message, by_lead])
    )


def tagged(statement: Statement, filters: Filters, *, size: int) -> str:
    """The first conversations with a rare tag, as a subquery: by the index of tags, then sorted.

    The tag hides in a `select`, so that no plan is better for knowing it, and one serves all.
    """
    return f"""
        select c.id
        from (
            select * from conversations
            where tags @> (select array[{statement.parameter(filters.tag)}::text])
            offset 0
        ) c
        {where(statement.conditions)}
        {ORDERS[filters.sort].clause}
        limit {size}
    """


def text_query(search: str) -> str:
    """Every word must be in one message, in any order, each at least as a beginning."""
    text = search.translate(SEPARATORS)
    words = (word.replace("\\", "\\\\").replace("'", "''") for word in text.split())
    return " & ".join(f"'{word}':*" for word in words)

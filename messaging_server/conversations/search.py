"""The list of conversations: filters, search, by newest activity or by urgency."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from messaging_server.conversations.filters import (
    ORDERS,
    ConversationCursor,
    Filters,
    Sort,
    Statement,
    add_conditions,
    where,
)
from messaging_server.conversations.tag_frequencies import TagFrequencies
from messaging_server.conversations.text_search import (
    among_first,
    are_few,
    by_index,
    find_leads,
    is_common,
)
from messaging_server.conversations.view_cache import ViewCache
from messaging_server.conversations.view_queries import LISTED, LISTED_JOINS, views_of
from messaging_server.database import Database
from messaging_server.errors import ValidationFailed
from messaging_server.models import Caller


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
        """The first `size` rows of `LISTED`, with the time by which they are sorted."""
        if filters.search is not None:
            return await self._search(caller, filters, cursor, filters.search, size=size)
        frequencies = await self._tags.fetch() if filters.are_only_a_tag else None
        statement = Statement()
        add_conditions(statement, caller, filters, cursor, in_place=frequencies is not None)
        found = None
        if frequencies and not frequencies.is_common(filters.tag or "", wanted=size):
            found = tagged(statement, filters, size=size)
        planned = filters.tag is not None and frequencies is None
        return await self._fetch(statement, caller, filters, found, size=size, planned=planned)

    async def _search(
        self,
        caller: Caller,
        filters: Filters,
        cursor: ConversationCursor | None,
        search: str,
        *,
        size: int,
    ) -> Sequence[Mapping[str, Any]]:
        """What is common is found among the first conversations, what is rare by the indexes."""
        planned = filters.tag is not None
        if await is_common(self._database, caller, filters, cursor, search):
            statement = Statement()
            add_conditions(statement, caller, filters, cursor)
            found = among_first(statement, filters, search, size=size)
            rows = await self._fetch(statement, caller, filters, found, size=size, planned=planned)
            if len(rows) == size or await are_few(self._database, caller, filters, cursor):
                return rows
        statement = Statement()
        add_conditions(statement, caller, filters, cursor)
        leads = await find_leads(self._database, caller, search)
        found = by_index(statement, filters, search, leads, size=size)
        return await self._fetch(statement, caller, filters, found, size=size, planned=planned)

    async def _fetch(
        self,
        statement: Statement,
        caller: Caller,
        filters: Filters,
        found: str | None,
        *,
        size: int,
        planned: bool,
    ) -> Sequence[Mapping[str, Any]]:
        """The rows of `found`, a subquery of ids, or else those that meet the conditions.

        `size` is written out: as a parameter it would keep Postgres planning every time.
        """
        source, conditions = "conversations c", where(statement.conditions)
        if found is not None:
            source, conditions = f"({found}) found join conversations c on c.id = found.id", ""
        order = ORDERS[filters.sort]
        fetch = self._database.fetch_planned if planned else self._database.fetch
        return await fetch(
            f"""
            select {LISTED}, date_part('epoch', {order.time}) as sorted_at
            from {source} {LISTED_JOINS.format(user_id=statement.parameter(caller.id))}
            {conditions}
            {order.clause}
            limit {size}
            """,
            *statement.arguments,
        )


def cursor_after(row: Mapping[str, Any], sort: Sort) -> ConversationCursor:
    return ConversationCursor(sort, datetime.fromtimestamp(row["sorted_at"], UTC), row["id"])


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

"""The list of conversations: filters, search, by newest activity or by urgency."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from messaging_server.conversations.filters import (
    ConversationCursor,
    Filters,
    Selection,
    Sort,
    Statement,
    are_few,
    looked_up,
    where,
)
from messaging_server.conversations.kinds import KindCounts, of_kind
from messaging_server.conversations.text_search import TextSearch, among_first, by_index
from messaging_server.conversations.view_cache import ViewCache
from messaging_server.conversations.view_queries import LISTED, views_of
from messaging_server.database import Database
from messaging_server.errors import ValidationFailed
from messaging_server.frequencies import ElementFrequencies, Frequency
from messaging_server.leads.search import LeadSearch
from messaging_server.models import Caller

WALKED_FOR_TAGS = 1_000
"""Conversations that are compared one by one: a millisecond."""
LOOKED_UP_FOR_TAGS = 2.0
"""What it costs to look up a conversation and sort it, in conversations that are gone through."""
EVERYWHERE = 0.2
"""To look up more than one in five conversations takes longer than to go through those sought."""


class ConversationList:
    """Pages of conversations, as one caller sees them."""

    def __init__(self, database: Database, leads: LeadSearch) -> None:
        self._database = database
        self._views = ViewCache()
        self._tags = ElementFrequencies(database, "conversations", "tags")
        self._kinds = KindCounts(database)
        self._texts = TextSearch(database, leads)

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
        if filters.exclude_each_other:
            return []
        frequency = Frequency()
        if filters.tag is not None:
            frequency = (await self._tags.fetch()).get(filters.tag, frequency)
        in_place = frequency.is_common(wanted=size, looked_up=LOOKED_UP_FOR_TAGS)
        selection = Selection(caller, filters, cursor, tag_in_place=in_place)
        if filters.search is not None and filters.search.split():
            return await self._search(selection, filters.search, size=size)
        if await self._kinds.are_few(selection, wanted=size):
            selection = replace(selection, tag_in_place=True)
            statement = selection.statement()
            found = of_kind(selection, statement)
            return await self._fetch(selection, statement, found, size=size)
        if filters.tag is not None:
            return await self._find_tagged(selection, filters.tag, frequency, size=size)
        return await self._fetch(selection, selection.statement(), size=size)

    async def _find_tagged(
        self, selection: Selection, tag: str, frequency: Frequency, *, size: int
    ) -> Sequence[Mapping[str, Any]]:
        """A common tag is found among the first conversations, a rare one by the index of tags.

        So is one that is common, but not among those that meet the other conditions.
        """
        others = replace(selection, filters=replace(selection.filters, tag=None))
        if selection.tag_in_place:
            statement = others.statement()
            found = tagged_among_first(others, statement, tag)
            rows = await self._fetch(selection, statement, found, size=size)
            if len(rows) == size or await are_few(self._database, others, WALKED_FOR_TAGS):
                return rows
            if frequency.fraction > EVERYWHERE:
                return await self._fetch(selection, selection.statement(), size=size)
        statement = others.statement()
        found = tagged(statement, tag)
        return await self._fetch(selection, statement, found, size=size)

    async def _search(
        self, selection: Selection, search: str, *, size: int
    ) -> Sequence[Mapping[str, Any]]:
        """What is common is found among the first conversations, what is rare by the indexes."""
        sought = await self._texts.prepare(search, wanted=size)
        if sought.is_common:
            statement = selection.statement()
            found = among_first(selection, statement, sought)
            rows = await self._fetch(selection, statement, found, size=size)
            if len(rows) == size or await are_few(self._database, selection, sought.walked):
                return rows
        statement = selection.statement()
        found = by_index(statement, sought)
        return await self._fetch(selection, statement, found, size=size)

    async def _fetch(
        self, selection: Selection, statement: Statement, found: str | None = None, *, size: int
    ) -> Sequence[Mapping[str, Any]]:
        """The first rows of `found`, conversations `c`, or else those that meet the conditions.

        `size` is written out: as a parameter it would keep Postgres planning every time.
        """
        order, user_id = selection.order, statement.parameter(selection.caller.id)
        return await self._database.fetch(
            f"""
            select {LISTED.format(user_id=user_id)}, date_part('epoch', {order.time}) as sorted_at
            from {found or f"conversations c {where(statement.conditions)}"}
            {order.clause}
            limit {size}
            """,
            *statement.arguments,
        )


def cursor_after(row: Mapping[str, Any], sort: Sort) -> ConversationCursor:
    return ConversationCursor(sort, datetime.fromtimestamp(row["sorted_at"], UTC), row["id"])


def tagged_among_first(others: Selection, statement: Statement, tag: str) -> str:
    """Those of the first conversations that have the tag.

    The tag hides in a `select`, so that no plan is better for knowing it, and one serves all.
    """
    has_tag = f"c.tags @> (select array[{statement.parameter(tag)}::text])"
    return f"{others.first(statement, WALKED_FOR_TAGS)} where {has_tag}"


def tagged(statement: Statement, tag: str) -> str:
    """Those with a rare tag, by the index of tags; the tag hides here too."""
    has_tag = f"tags @> (select array[{statement.parameter(tag)}::text])"
    return f"{looked_up(has_tag)} {where(statement.conditions)}"

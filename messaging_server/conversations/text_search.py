"""Full-text search: by words of the messages, and by any part of the lead's contact.

Messages are found by the words they hold (each search word may be the beginning of one), leads
by any part of name, e-mail or phone. Only core Postgres is needed (decision 2).
"""

from collections.abc import Sequence
from uuid import UUID

from messaging_server.conversations.filters import (
    Selection,
    Statement,
    where,
)
from messaging_server.database import Database
from messaging_server.leads.queries import (
    search_condition,
    search_condition_in_place,
    search_pattern,
)
from messaging_server.models import Caller

MATCHING_LEADS = 10_000
SAMPLED_CONVERSATIONS = 100
SAMPLED_MESSAGES = 20
SAMPLED_TOTAL = 500
SAMPLED_LEADS = 30
SEPARATORS = dict.fromkeys(map(ord, "./@-_:+&=?#"), " ")
"""What `messages.words` takes for spaces, so that PED-4711 is found by 4711."""
INDEXED_MATCH = "m.words @@ (select to_tsquery('simple', {query}))"
MATCH_IN_PLACE = "coalesce(m.words, '') @@ (select to_tsquery('simple', {query}))"
"""For a few messages at hand: an expression keeps Postgres from asking the index of words."""


async def is_common(database: Database, selection: Selection, search: str) -> bool:
    """Whether a sample has it, or there are too few conversations for one.

    The sample is the newest messages of the first conversations, and their leads. What one
    message in a hundred holds is nearly always found in it.
    """
    statement = selection.statement()
    return bool(
        await database.fetch_value(
            f"""
            with sample as materialized (
                select c.id, c.lead_id
                from {selection.first(statement, SAMPLED_CONVERSATIONS)}
            )
            select (select count(*) from sample) < {SAMPLED_CONVERSATIONS}
                or exists (
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
                    where {MATCH_IN_PLACE.format(query=statement.parameter(text_query(search)))}
                )
                or exists (
                    select 1
                    from (select lead_id from sample limit {SAMPLED_LEADS}) first
                    join leads l on l.id = first.lead_id
                    where {search_condition_in_place(statement.parameter(search_pattern(search)))}
                )
            """,
            *statement.arguments,
        )
    )


def among_first(
    selection: Selection, statement: Statement, search: str, *, walked: int, size: int
) -> str:
    """Those of the first `walked` conversations whose lead or messages match, as a subquery.

    `offset 0` makes Postgres look at one conversation after the other, and stop at the last.
    """
    in_lead = search_condition_in_place(statement.parameter(search_pattern(search)))
    in_message = MATCH_IN_PLACE.format(query=statement.parameter(text_query(search)))
    return f"""
        select c.id
        from {selection.first(statement, walked)}
        where exists (select 1 from leads l where l.id = c.lead_id and {in_lead} offset 0)
            or exists (
                select 1 from messages m
                where m.conversation_id = c.id and {in_message}
                offset 0
            )
        {selection.order.clause}
        limit {size}
    """


async def find_leads(database: Database, caller: Caller, search: str) -> Sequence[UUID] | None:
    """All leads that match, planned for how common the search is; None where they are too many."""
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
        f"select l.id from leads l {where(statement.conditions)} limit {MATCHING_LEADS + 1}",
        *statement.arguments,
    )
    return [row["id"] for row in rows] if len(rows) <= MATCHING_LEADS else None


def by_index(
    selection: Selection,
    statement: Statement,
    search: str,
    leads: Sequence[UUID] | None,
    *,
    size: int,
) -> str:
    """The first conversations whose messages match, or which are of these leads, as a subquery.

    Without `leads` each conversation's own is looked at. Words and leads hide in a `select`, so
    that no plan is better for knowing them, and one serves all.
    """
    query = statement.parameter(text_query(search))
    by_message = f"""c.id = any(array(
        select distinct m.conversation_id from messages m
        where {INDEXED_MATCH.format(query=query)}
    ))"""
    if leads is None:
        in_lead = search_condition_in_place(statement.parameter(search_pattern(search)))
        by_lead = f"exists (select 1 from leads l where l.id = c.lead_id and {in_lead} offset 0)"
    else:
        by_lead = f"c.lead_id = any((select {statement.parameter(leads)}::uuid[])::uuid[])"
    return " union ".join(
        f"""(
            select c.id from conversations c
            {where([*statement.conditions, branch])}
            {selection.order.clause}
            limit {size}
        )"""
        for branch in (by_message, by_lead)
    )


def text_query(search: str) -> str:
    """Every word must be in one message, in any order, each at least as a beginning."""
    text = search.translate(SEPARATORS)
    words = (word.replace("\\", "\\\\").replace("'", "''") for word in text.split())
    return " & ".join(f"'{word}':*" for word in words)

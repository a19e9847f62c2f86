"""Full-text search: by words of the messages, and by any part of the lead's contact.

Messages are found by the words they hold (each search word may be the beginning of one), leads
by any part of name, e-mail or phone. Only core Postgres is needed (decision 2).
"""

from msgspec import Struct

from messaging_server.conversations.filters import Selection, Statement, looked_up, where
from messaging_server.conversations.word_frequencies import WordFrequencies
from messaging_server.database import Database
from messaging_server.frequencies import Frequency
from messaging_server.leads.search import LeadSearch, LeadText, contains, matches_indexed

SEPARATORS = dict.fromkeys(map(ord, "./@-_:+&=?#<>"), " ")
"""What `messages.words` takes for spaces, so that PED-4711 is found by 4711."""
WALKED_WITH_MESSAGES = 400
"""Conversations that are looked at one by one; with 20 messages each it takes up to 40 ms."""
WALKED_WITH_LEADS = 3_000
"""The same where only the leads' texts in them are looked at: 2 ms."""


class Sought(Struct, frozen=True):
    """A search, and how common it is in messages and leads."""

    words: str
    in_messages: Frequency
    lead: LeadText
    wanted: int

    @property
    def is_common_in_messages(self) -> bool:
        return self.in_messages.is_common(wanted=self.wanted)

    @property
    def is_common_in_leads(self) -> bool:
        return self.lead.is_common(wanted=self.wanted)

    @property
    def is_common(self) -> bool:
        return self.is_common_in_messages or self.is_common_in_leads

    @property
    def walked(self) -> int:
        """How many conversations are gone through for it."""
        return WALKED_WITH_MESSAGES if self.is_common_in_messages else WALKED_WITH_LEADS


class TextSearch:
    def __init__(self, database: Database, leads: LeadSearch) -> None:
        self._leads = leads
        self._words = WordFrequencies(database)

    async def prepare(self, search: str, *, wanted: int) -> Sought:
        """Find out how common it is; `wanted` is how many conversations are to be found."""
        words = search.translate(SEPARATORS)
        return Sought(
            words=text_query(words),
            in_messages=await self._words.fetch(words),
            lead=await self._leads.prepare(search),
            wanted=wanted,
        )


def among_first(selection: Selection, statement: Statement, sought: Sought) -> str:
    """Those of the first conversations whose lead or messages match.

    What is common is looked at in each of them, one after the other until there are enough
    (`offset 0` makes Postgres do so); what is rare the index names once for all.
    """
    words, pattern = statement.parameter(sought.words), statement.parameter(sought.lead.pattern)
    if sought.is_common_in_leads:
        in_lead = contains(pattern, "c.lead_text")
    else:
        in_lead = f"c.lead_id in ({_leads(pattern, statement.parameter(sought.lead.pieces))})"
    if sought.is_common_in_messages:
        # An expression keeps Postgres from asking the index of words.
        in_messages = f"""exists (
            select 1 from messages m
            where m.conversation_id = c.id
                and coalesce(m.words, '') @@ (select to_tsquery('simple', {words}))
            offset 0
        )"""
    else:
        in_messages = f"c.id in ({_conversations(words)})"
    return f"{selection.first(statement, sought.walked)} where {in_lead} or {in_messages}"


def by_index(statement: Statement, sought: Sought) -> str:
    """Those whose messages match, or which are of these leads.

    Words and leads hide in arrays, so that no plan is better for knowing them, and one serves all.
    """
    pieces = statement.parameter(sought.lead.pieces)
    leads = _leads(statement.parameter(sought.lead.pattern), pieces)
    conversations = _conversations(statement.parameter(sought.words))
    matching = f"id = any(array({conversations})) or lead_id = any(array({leads}))"
    return f"{looked_up(matching)} {where(statement.conditions)}"


def _leads(pattern: str, pieces: str) -> str:
    return f"select l.id from leads l where {matches_indexed(pattern, pieces)}"


def _conversations(words: str) -> str:
    """Each as often as it has messages that match: to tell them apart costs more."""
    return f"""
        select m.conversation_id from messages m
        where m.words @@ (select to_tsquery('simple', {words}))
    """


def text_query(search: str) -> str:
    """Every word must be in one message, in any order, each at least as a beginning."""
    words = (word.replace("\\", "\\\\").replace("'", "''") for word in search.split())
    return " & ".join(f"'{word}':*" for word in words)

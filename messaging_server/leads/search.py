"""Leads by any part of their name, e-mail or phone (`docs/decisions/0002`).

An index holds the pieces of three characters of each lead. A text is looked up by those of its
pieces that fewest leads have: the index takes a hundred times as long where it must compare the
lists of common ones too, such as `@ex` and `com`. That the pieces stand together is proved then.
"""

from msgspec import Struct

from messaging_server.database import Database
from messaging_server.frequencies import ElementFrequencies, Frequency, lowered

PIECE = 3
LOOKED_UP_PIECES = 3


class LeadText(Struct, frozen=True):
    """What is looked for, how common it is, and where its rarest pieces begin, from 1."""

    pattern: str
    frequency: Frequency
    pieces: list[int]

    def is_common(self, *, wanted: int) -> bool:
        """Whether leads are gone through; by a text without pieces the index finds none."""
        return not self.pieces or self.frequency.is_common(wanted=wanted)


class LeadSearch:
    def __init__(self, database: Database) -> None:
        self._frequencies = ElementFrequencies(database, "leads_search", "trigrams")

    async def prepare(self, search: str) -> LeadText:
        pattern = search_pattern(search)
        text = lowered(pattern)
        known = await self._frequencies.fetch()
        found = {
            text[at : at + PIECE]: (known.get(text[at : at + PIECE], Frequency()), at + 1)
            for at in range(len(text) - PIECE + 1)
        }
        rarest = sorted(found.values(), key=lambda piece: piece[0].fraction)[:LOOKED_UP_PIECES]
        return LeadText(
            pattern=pattern,
            frequency=rarest[0][0] if rarest else Frequency(),
            pieces=[begin for _, begin in rarest],
        )


def search_pattern(search: str) -> str:
    """Three characters or more match anywhere; fewer only where a word begins."""
    text = " ".join(search.split())
    return text if len(text) >= PIECE else f" {text}"


def matches_indexed(pattern: str, pieces: str) -> str:
    """For leads `l`, by the index. Given are two parameters, the members of a `LeadText`.

    They hide in a `select`, so that no plan is better for knowing them, and one serves all.
    """
    return f"""(
        trigrams(l.search_text) @> array(
            select piece
            from unnest({pieces}::integer[]) begin,
                substr(lower({pattern}), begin, {PIECE}) piece
            where length(piece) = {PIECE}
        )
        and {contains(pattern, "l.search_text")}
    )"""


def contains(pattern: str, text: str) -> str:
    """Given are the parameter and what is kept of a lead to search in, which Postgres lowered.

    So it does with the pattern: Python's rules for `İ` and `Σ` are others.
    """
    return f"position((select lower({pattern})) in {text}) > 0"

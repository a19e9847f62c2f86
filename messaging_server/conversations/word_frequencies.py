"""How common the beginning of a word is in messages, from a sample of them.

Postgres's own statistics hold whole words, and only common ones: of order numbers that all begin
alike each is rare, and their beginning is not.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, takewhile

from msgspec import Struct

from messaging_server.database import Database
from messaging_server.frequencies import Frequency, lowered
from messaging_server.remembered import Remembered

SAMPLED_MESSAGES = 2_000
MESSAGE_BYTES = 300
"""What one takes in the table, about."""
REMEMBERED_SECONDS = 300.0
LAST = "\U0010ffff"

_BREAKS = re.compile(r"""[\s!"$%'()*,;[\\\]^`{|}]+""")
"""What Postgres takes for the end of a word wherever it stands."""


class Sample(Struct, frozen=True):
    """Words in the order of their characters; `counts[i]`: in how many messages is one before
    `words[i]`, added up for each of these words."""

    rows: float
    sampled: int
    words: list[str]
    counts: list[int]

    def frequency(self, search: str) -> Frequency:
        """Of messages that hold all words, or begin one with them: that of the rarest.

        It is rather too high than too low: to look up what is common takes seconds. Words of which
        nothing is sure count as common.
        """
        parts = [part for part in _BREAKS.split(lowered(search)) if part]
        if not parts or not self.sampled:
            return Frequency()
        counts = (self._count(beginning) for beginning in _sure_beginnings(parts))
        return Frequency(self.rows, min(1.0, min(counts, default=self.sampled) / self.sampled))

    def _count(self, beginning: str) -> int:
        first = bisect_left(self.words, beginning)
        last = bisect_left(self.words, beginning + LAST)
        return self.counts[last] - self.counts[first]


def _sure_beginnings(parts: list[str]) -> Iterator[str]:
    """The first letters and digits of each.

    Whether accents, vowel signs or fractions belong to a word, Postgres decides.
    """
    for part in parts:
        beginning = "".join(takewhile(_is_of_a_word, part))
        if beginning:
            yield beginning


def _is_of_a_word(character: str) -> bool:
    return character.isalpha() or character.isdecimal()


class WordFrequencies:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: Remembered[None, Sample] = Remembered(seconds=REMEMBERED_SECONDS)

    async def fetch(self, search: str) -> Frequency:
        sample = await self._remembered.find(None, self._read)
        return sample.frequency(search)

    async def _read(self, _: None) -> Sample:
        """Whole blocks of the table, so that few are read.

        How many rows there are is reckoned from its size, as Postgres itself does: it may have
        grown since it was analysed, or never have been.
        """
        rows = await self._database.fetch_value(
            f"""
            select pg_relation_size(oid) * case
                when relpages > 0 then reltuples / (relpages * current_setting('block_size')::int)
                else 1.0 / {MESSAGE_BYTES}
            end
            from pg_class
            where oid = 'messages'::regclass
            """
        )
        found = await self._database.fetch(
            f"""
            with sample as materialized (
                select words from messages tablesample system ($1) limit {SAMPLED_MESSAGES}
            )
            select null as word, count(*) from sample
            union all (
                select word, count(*)
                from (select unnest(tsvector_to_array(words)) as word from sample) words
                group by word
                order by word collate "C"
            )
            """,
            min(100.0, 100.0 * SAMPLED_MESSAGES / max(rows, 1)),
        )
        (_, sampled), *words = found
        return Sample(
            rows=max(rows, sampled),
            sampled=sampled,
            words=[word for word, _ in words],
            counts=[0, *accumulate(count for _, count in words)],
        )

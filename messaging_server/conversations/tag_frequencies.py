"""How common a tag is, from the statistics that Postgres keeps of the table.

It decides how conversations with a tag are found: a common one by going through the newest, a
rare one by the index of tags. Postgres would decide the same, but by planning each call anew,
which costs as much as the call itself.
"""

from msgspec import Struct

from messaging_server.database import Database
from messaging_server.remembered import Remembered

REMEMBERED_SECONDS = 60.0
LOOKED_UP = 2.0
"""What it costs to look up a conversation and sort it, in conversations that are gone through."""


EVERYWHERE = 0.2
"""To look up more than one in five conversations takes longer than to go through those sought."""


class TagFrequency(Struct, frozen=True):
    """How many conversations there are, and how many of them have the tag, as a fraction."""

    conversations: float = 0.0
    frequency: float = 0.0

    def is_common(self, *, wanted: int) -> bool:
        """Whether `wanted` conversations with the tag are found sooner by going through all."""
        return wanted <= LOOKED_UP * self.conversations * self.frequency**2

    @property
    def is_everywhere(self) -> bool:
        return self.frequency > EVERYWHERE


class TagFrequencies:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: Remembered[None, dict[str, TagFrequency]] = Remembered(
            seconds=REMEMBERED_SECONDS
        )

    async def fetch(self, tag: str) -> TagFrequency:
        """At most a minute old; rare as long as Postgres has not looked at the table."""
        frequencies = await self._remembered.find(None, self._read)
        return frequencies.get(tag, TagFrequency())

    async def _read(self, _: None) -> dict[str, TagFrequency]:
        row = await self._database.fetch_row(
            """
            select c.reltuples, s.most_common_elems::text::text[] as tags,
                s.most_common_elem_freqs as frequencies
            from pg_stats s
            join pg_class c on c.oid = 'conversations'::regclass and c.relname = s.tablename
            where s.schemaname = current_schema() and s.attname = 'tags'
                and s.most_common_elems is not null
            """
        )
        if row is None:
            return {}
        # After the frequencies of the tags come the lowest, the highest and that of null.
        return {
            tag: TagFrequency(row["reltuples"], frequency)
            for tag, frequency in zip(row["tags"], row["frequencies"], strict=False)
        }

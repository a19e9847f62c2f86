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


class Frequencies(Struct, frozen=True):
    conversations: float
    by_tag: dict[str, float]

    def is_common(self, tag: str, *, wanted: int) -> bool:
        """Whether `wanted` conversations with the tag are found sooner by going through all."""
        frequency = self.by_tag.get(tag, 0.0)
        return wanted <= LOOKED_UP * self.conversations * frequency**2


class TagFrequencies:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: Remembered[None, Frequencies | None] = Remembered(
            seconds=REMEMBERED_SECONDS
        )

    async def fetch(self) -> Frequencies | None:
        """At most a minute old; None as long as Postgres has not looked at the table."""
        return await self._remembered.find(None, self._read)

    async def _read(self, _: None) -> Frequencies | None:
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
            return None
        # After the frequencies of the tags come the lowest, the highest and that of null.
        return Frequencies(
            row["reltuples"], dict(zip(row["tags"], row["frequencies"], strict=False))
        )

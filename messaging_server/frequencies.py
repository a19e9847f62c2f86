"""How common something is among the rows of a table, which decides how it is looked for.

What is common is found by going through the rows in the order of a list, what is rare by an index.
Postgres would decide the same, but only by planning each call anew, which costs as much as the
call itself.
"""

from collections.abc import Mapping

from msgspec import Struct

from messaging_server.database import Database
from messaging_server.remembered import Remembered


class Frequency(Struct, frozen=True):
    """How many rows there are, and which fraction of them has it."""

    rows: float = 0.0
    fraction: float = 0.0

    def is_common(self, *, wanted: int, looked_up: float = 1.0) -> bool:
        """Whether `wanted` rows that have it are found sooner by going through all.

        `looked_up` is what it costs to look one up by the index and to sort it, in rows that are
        gone through.
        """
        return wanted <= looked_up * self.rows * self.fraction**2


def lowered(text: str) -> str:
    """Each character by itself, as Postgres does.

    Python makes two of `İ`, and minds where in a word a `Σ` stands.
    """
    return "".join(each.lower()[0] for each in text)


class ElementFrequencies:
    """Of the elements of an array, from the statistics that Postgres keeps of a table or index."""

    REMEMBERED_SECONDS = 60.0

    def __init__(self, database: Database, relation: str, column: str) -> None:
        self._database = database
        self._relation = relation
        self._column = column
        self._remembered: Remembered[None, Mapping[str, Frequency]] = Remembered(
            seconds=self.REMEMBERED_SECONDS
        )

    async def fetch(self) -> Mapping[str, Frequency]:
        """The most common elements; none as long as Postgres has not looked at the table."""
        return await self._remembered.find(None, self._read)

    async def _read(self, _: None) -> Mapping[str, Frequency]:
        row = await self._database.fetch_row(
            """
            select t.reltuples, s.most_common_elems::text::text[] as elements,
                s.most_common_elem_freqs as fractions
            from pg_stats s
            join pg_class c on c.oid = to_regclass($1) and c.relname = s.tablename
            left join pg_index i on i.indexrelid = c.oid -- which counts other things than rows
            join pg_class t on t.oid = coalesce(i.indrelid, c.oid)
            where s.schemaname = current_schema() and s.attname = $2
                and s.most_common_elems is not null
            """,
            self._relation,
            self._column,
        )
        if row is None:
            return {}
        # After the fractions of the elements come the lowest, the highest and that of null.
        return {
            element: Frequency(row["reltuples"], fraction)
            for element, fraction in zip(row["elements"], row["fractions"], strict=False)
        }

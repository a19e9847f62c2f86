"""Filters together that few conversations meet: how many do, and how those are found.

The kinds of conversations are counted for the dashboard; the counts tell whether those of a kind
come soon enough in the order of the list, or must be looked up by an index of kinds and sorted.
"""

from collections import Counter
from itertools import product
from uuid import UUID

from msgspec import Struct

from messaging_server.conversations.filters import Selection, Sort, Statement, looked_up, where
from messaging_server.database import Database
from messaging_server.frequencies import Frequency
from messaging_server.models import Priority, Status
from messaging_server.remembered import Remembered

NOBODY = UUID(int=0)
"""Who has what is unassigned, in the index of kinds."""
LOOKED_UP = 20.0
"""What it costs to look up a conversation and sort it, in entries of an index gone through."""


class Kind(Struct, frozen=True):
    """None stands for any."""

    status: str | None = None
    priority: str | None = None
    agent_id: UUID | None = None

    @classmethod
    def of(cls, selection: Selection) -> "Kind":
        """What all of the selection have in common."""
        caller, filters = selection.caller, selection.filters
        of_agent = NOBODY if filters.unassigned else filters.assigned_agent_id
        agent_id = of_agent if caller.is_admin else caller.id
        return cls(filters.status, filters.priority, agent_id)

    @property
    def parts(self) -> list["Kind"]:
        """The kinds that have one thing in common: each has an index in the order of the list."""
        parts = [
            Kind(status=self.status),
            Kind(priority=self.priority),
            Kind(agent_id=self.agent_id),
        ]
        return [part for part in parts if part != Kind()]


class KindCounts:
    REMEMBERED_SECONDS = 60.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: Remembered[None, Counter[Kind]] = Remembered(
            seconds=self.REMEMBERED_SECONDS
        )

    async def are_few(self, selection: Selection, *, wanted: int) -> bool:
        """Whether what meets several filters is found sooner by `of_kind` than in its order."""
        parts = Kind.of(selection).parts
        if len(parts) < 2 or selection.filters.sort is not Sort.ACTIVITY:
            return False
        counts = await self._remembered.find(None, self._read)
        matching, walked = counts[Kind.of(selection)], min(counts[part] for part in parts)
        frequency = Frequency(walked, matching / walked if walked else 0.0)
        return not frequency.is_common(wanted=wanted, looked_up=LOOKED_UP)

    async def _read(self, _: None) -> Counter[Kind]:
        rows = await self._database.fetch(
            """
            select status, priority, coalesce(assigned_agent_id, $1) as agent_id, sum(count)
            from conversation_counts
            group by 1, 2, 3
            """,
            NOBODY,
        )
        counts: Counter[Kind] = Counter()
        for status, priority, agent_id, count in rows:
            for kind in product({status, None}, {priority, None}, {agent_id, None}):
                counts[Kind(*kind)] += count
        return counts


def of_kind(selection: Selection, statement: Statement) -> str:
    """The selection, by the index of its kind.

    The kind hides in a `select`, so that no plan is better for knowing it, and one serves all.
    """
    kind = Kind.of(selection)
    statuses = [kind.status] if kind.status else list(Status)
    priorities = [kind.priority] if kind.priority else [*Priority, ""]
    conditions = [
        f"coalesce(status, '') = any((select {statement.parameter(statuses)}::text[])::text[])",
        f"coalesce(priority, '') = any((select {statement.parameter(priorities)}::text[])::text[])",
    ]
    if kind.agent_id is not None:
        agent_id = statement.parameter(kind.agent_id)
        conditions.append(f"coalesce(assigned_agent_id, '{NOBODY}') = (select {agent_id}::uuid)")
    return f"{looked_up(' and '.join(conditions))} {where(statement.conditions)}"

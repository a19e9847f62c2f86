"""Analyses: what people may ask for, and the part of the server that makes them."""

from uuid import UUID

from messaging_server.analysis import queries
from messaging_server.analysis.analysers import make_analyser
from messaging_server.analysis.debouncer import Debouncer
from messaging_server.analysis.queries import AnalysisCursor, AnalysisQueue
from messaging_server.config import Config
from messaging_server.database import Database
from messaging_server.errors import NotFound
from messaging_server.events import Bus, Event
from messaging_server.models import Analysis as AnalysisEntry
from messaging_server.models import Caller, Model, Timestamp


class AnalysisRequested(Event, frozen=True, kw_only=True):
    """Somebody asked for an analysis now."""

    conversation_id: UUID


class AnalysisAccepted(Model, frozen=True, kw_only=True):
    """The analysis will run; its result comes as `conversation:ai:update`."""

    conversation_id: UUID
    due_at: Timestamp


class Analysis:
    """Analyses what is due from `start` to `stop`, unless `analysis.enabled` is false."""

    def __init__(self, config: Config, database: Database, bus: Bus) -> None:
        self._enabled = config.analysis.enabled
        self._shutdown_seconds = config.server.shutdown_seconds
        self.analyser = make_analyser(config.ai)
        self._debouncer = Debouncer(database, self.analyser, config.analysis)
        bus.subscribe(AnalysisRequested, lambda _event: self._debouncer.wake())

    async def start(self) -> None:
        if self._enabled:
            await self._debouncer.start()

    async def stop(self) -> None:
        """Takes a little more than `server.shutdown_seconds` at worst; the database must be up."""
        await self._debouncer.stop(timeout_seconds=self._shutdown_seconds)
        await self.analyser.aclose()


async def request_analysis(
    database: Database, caller: Caller, conversation_id: UUID
) -> AnalysisAccepted:
    due_at = await queries.update_requested(database, caller, conversation_id)
    if due_at is None:
        raise NotFound("No such conversation")
    database.publish(AnalysisRequested(conversation_id=conversation_id))
    return AnalysisAccepted(conversation_id=conversation_id, due_at=due_at)


async def list_analyses(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    limit: int,
    cursor: AnalysisCursor | None,
) -> tuple[list[AnalysisEntry], AnalysisCursor | None]:
    found = await queries.list_analyses(
        database, caller, conversation_id, limit=limit, cursor=cursor
    )
    if found is None:
        raise NotFound("No such conversation")
    return found


async def fetch_queue(database: Database) -> AnalysisQueue:
    return AnalysisQueue(
        counts=await queries.count_queue(database), items=await queries.list_queue(database)
    )

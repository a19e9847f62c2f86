"""What a visitor that comes back is given at once."""

import asyncio
from uuid import UUID

import pytest

from messaging_server.conversations import visitor_queries
from messaging_server.conversations.visitors import open_visitor_conversation
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import Visitor
from tests.client import Api
from tests.public.site import Site


@pytest.mark.parametrize(
    ("limit", "max_bytes", "fits"), [(3, 60, True), (2, 60, False), (3, 59, False)]
)
def test_what_does_not_fit_is_not_read(
    public_dsn: str,
    api: Api,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    max_bytes: int,
    *,
    fits: bool,
) -> None:
    """Bytes of UTF-8, of public messages only."""
    page = site.visitor()
    conversation_id = page.send()["conversationId"]
    for _ in range(2):
        api.send(conversation_id, "\N{GRINNING FACE}" * 5)
        api.send(conversation_id, "a private note", private=True)
    page.send("\N{LATIN SMALL LETTER E WITH ACUTE}" * 10)
    visitor = Visitor(UUID(page.lead_id), UUID(site.id), "", verified=False)
    reads = []
    really = visitor_queries.fetch_between
    monkeypatch.setattr(
        visitor_queries,
        "fetch_between",
        lambda *given, **named: reads.append(named) or really(*given, **named),
    )

    async def run() -> None:
        database = Database(public_dsn, pool_size=2, bus=Bus())
        await database.start()
        opened = await open_visitor_conversation(
            database, visitor, after_seq=1, limit=limit, max_bytes=max_bytes
        )
        await database.stop()
        assert [message.seq for message in opened.messages] == ([2, 3, 4] if fits else [])
        assert (opened.last_seq, opened.reset, len(reads)) == (4, not fits, int(fits))

    asyncio.run(run())

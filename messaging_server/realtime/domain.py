"""The domain as realtime asks for it: for agents as they are, for visitors what is public."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from messaging_server.config import LimitsConfig
from messaging_server.conversations import messages
from messaging_server.conversations import service as conversations
from messaging_server.conversations import visitors as visitor_conversations
from messaging_server.conversations.service import Opened
from messaging_server.conversations.visitors import VisitorOpened
from messaging_server.database import Database
from messaging_server.http import Headers, visitor_key
from messaging_server.models import Caller, Conversation, Message, PublicMessage, Visitor
from messaging_server.realtime.protocol import MAX_REPLY_BYTES
from messaging_server.realtime.visitors import AuthenticatedVisitor
from messaging_server.users.service import Authenticated, UserTokens


class Domain:
    """The domain's functions as rooms, sockets and inbox ask for them."""

    def __init__(self, database: Database, tokens: UserTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def authenticate(self, token: str) -> Authenticated:
        return await self._tokens.authenticate(token)

    async def open_conversation(
        self, caller: Caller, conversation_id: UUID, *, after_seq: int | None, limit: int
    ) -> Opened:
        return await conversations.open_conversation(
            self._database, caller, conversation_id, after_seq=after_seq, limit=limit
        )

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[Message]:
        return await messages.fetch_messages_between(
            self._database, conversation_id, after_seq=after_seq, through_seq=through_seq
        )

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        return await conversations.fetch_heads(self._database, conversation_ids)

    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        return await conversations.fetch_views(self._database, conversation_ids, callers)


class VisitorTokens(Protocol):
    async def authenticate(self, token: str) -> AuthenticatedVisitor: ...


class Origins(Protocol):
    async def check(self, headers: Headers, inbox_id: UUID) -> None:
        """Raises `Forbidden` when these headers come from a page that the inbox does not know."""


class Limiter(Protocol):
    def check(self, per_minute: int, *key: str) -> None:
        """Counts what is keyed alike; raises `RateLimited` over the limit."""


class VisitorDomain:
    """The domain's functions as the rooms and sockets of visitors ask for them."""

    def __init__(
        self,
        database: Database,
        tokens: VisitorTokens,
        origins: Origins,
        limiter: Limiter,
        limits: LimitsConfig,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._origins = origins
        self._limiter = limiter
        self._limits = limits

    def count_command(self, visitor: Visitor | None, network: str) -> None:
        limits = self._limits
        if visitor is not None:
            self._limiter.check(limits.calls_per_minute_per_visitor, *visitor_key(visitor))
        self._limiter.check(limits.visitor_commands_per_minute_per_address, "command", network)

    async def authenticate_visitor(self, token: str, headers: Headers) -> AuthenticatedVisitor:
        authenticated = await self._tokens.authenticate(token)
        await self._origins.check(headers, authenticated.visitor.inbox_id)
        return authenticated

    async def open_visitor_conversation(
        self, visitor: Visitor, *, after_seq: int | None, limit: int
    ) -> VisitorOpened:
        return await visitor_conversations.open_visitor_conversation(
            self._database, visitor, after_seq=after_seq, limit=limit, max_bytes=MAX_REPLY_BYTES
        )

    async def fetch_visitor_conversations(self, visitors: Sequence[Visitor]) -> list[UUID | None]:
        return await visitor_conversations.fetch_visitor_conversations(self._database, visitors)

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[PublicMessage]:
        return await visitor_conversations.fetch_public_messages_between(
            self._database, conversation_id, after_seq=after_seq, through_seq=through_seq
        )

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        return await visitor_conversations.fetch_public_heads(self._database, conversation_ids)

    async def mark_delivered(
        self, visitor: Visitor, seq: int, *, conversation_id: UUID | None
    ) -> None:
        await visitor_conversations.mark_delivered(
            self._database, visitor, seq, conversation_id=conversation_id
        )

    async def mark_read(self, visitor: Visitor, seq: int, *, conversation_id: UUID | None) -> None:
        await visitor_conversations.mark_read(
            self._database, visitor, seq, conversation_id=conversation_id
        )

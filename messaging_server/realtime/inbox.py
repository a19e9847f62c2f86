"""The inbox: tells everyone online how the conversations look that they may see.

Changes are collected and read together, as each user sees them. A busy server pushes more
rarely rather than spending its time on it: pushing takes at most a fifth of it. A client that
reads slowly gets the newest state later, not every state.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from typing import Protocol
from uuid import UUID

from loguru import logger

from messaging_server.errors import Unavailable
from messaging_server.models import Caller, Conversation
from messaging_server.realtime.protocol import (
    ConversationData,
    ConversationGained,
    ConversationUpdate,
    Frame,
    push_frame,
)
from messaging_server.realtime.rooms import backoff, count_deliveries
from messaging_server.realtime.sockets import Socket, Sockets

GATHER_SECONDS = 0.02
PAUSE_SECONDS = 0.2
PAUSE_FACTOR = 4
VIEWS_PER_READ = 2_000


class Views(Protocol):
    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        """(user id, conversation as this user sees it), only where the user may see it.

        Users who see the same should share the same object.
        """


class Inbox:
    """What has changed and has not been pushed yet."""

    def __init__(self, views: Views, sockets: Sockets) -> None:
        self._views = views
        self._sockets = sockets
        self._changed: dict[UUID, set[UUID] | None] = {}  # for which users; None: for all
        self._gained: set[tuple[UUID, UUID]] = set()
        self._missed: dict[Socket, dict[UUID, bool]] = {}  # by slow sockets; whether gained
        self._outdated: set[UUID] = set()
        self._wake = asyncio.Event()

    def changed(self, conversation_id: UUID, *, only_user_id: UUID | None = None) -> None:
        """The conversation looks different, perhaps to one user only."""
        if not self._sockets.count:
            return
        if only_user_id is None:
            self._changed[conversation_id] = None
        else:
            users = self._changed.setdefault(conversation_id, set())
            if users is not None:
                users.add(only_user_id)
        self._wake.set()

    def gained(self, conversation_id: UUID, user_id: UUID) -> None:
        """The user sees the conversation from now on."""
        self.changed(conversation_id)
        if conversation_id in self._changed:
            self._gained.add((user_id, conversation_id))

    def outdated(self, conversation_id: UUID) -> None:
        """What is being read about the conversation now must not be pushed any more."""
        self._outdated.add(conversation_id)

    async def run(self) -> None:
        """Push what changes, until cancelled."""
        failures = 0
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            started = time.monotonic()
            try:
                await self.flush()
            except Unavailable:
                failures += 1
                await asyncio.sleep(backoff(failures))
                continue
            except Exception:  # noqa: BLE001  # the next changes must be pushed all the same
                logger.exception("Conversations could not be pushed")
            failures = 0
            elapsed = time.monotonic() - started
            await asyncio.sleep(max(PAUSE_SECONDS, PAUSE_FACTOR * elapsed))

    async def flush(self) -> None:
        """Push what has changed so far; what could not be read or taken stays."""
        self._wake.clear()
        changed, self._changed = self._changed, {}
        gained, self._gained = self._gained, set()
        missed = self._take_missed()
        for conversation_id in chain.from_iterable(missed.values()):
            changed.setdefault(conversation_id, set())
        while changed and (callers := self._sockets.callers()):
            some = list(changed)[: max(1, VIEWS_PER_READ // len(callers))]
            self._outdated.clear()
            try:
                views = await self._views.fetch_views(some, callers)
            except Unavailable:
                self._put_back(changed, gained, missed)
                raise
            self._push(views, changed, gained, missed)
            for conversation_id in some:
                del changed[conversation_id]
        if self._missed:
            self._wake.set()

    def _take_missed(self) -> dict[Socket, dict[UUID, bool]]:
        """What sockets have missed that take frames again; the others are left to wait."""
        ready = [socket for socket in self._missed if not socket.full or socket.closed]
        return {socket: self._missed.pop(socket) for socket in ready}

    def _put_back(
        self,
        changed: dict[UUID, set[UUID] | None],
        gained: set[tuple[UUID, UUID]],
        missed: dict[Socket, dict[UUID, bool]],
    ) -> None:
        for conversation_id, users in changed.items():
            for user_id in (None,) if users is None else users:
                self.changed(conversation_id, only_user_id=user_id)
        self._gained |= {pair for pair in gained if pair[1] in self._changed}
        for socket, conversations in missed.items():
            for conversation_id, is_gained in conversations.items():
                if conversation_id in changed:
                    self._miss(socket, conversation_id, gained=is_gained)
        self._wake.set()

    def _push(
        self,
        views: list[tuple[UUID, Conversation]],
        changed: dict[UUID, set[UUID] | None],
        gained: set[tuple[UUID, UUID]],
        missed: dict[Socket, dict[UUID, bool]],
    ) -> None:
        """To each user's sockets, or to those that had missed it.

        A view that several users share is encoded once.
        """
        frames: dict[tuple[int, bool], Frame] = {}
        for user_id, conversation in views:
            users = changed[conversation.id]
            if conversation.id in self._outdated:
                continue
            is_new = users is None or user_id in users
            for socket in self._sockets.of_owner(user_id):
                had_missed = missed.get(socket, {}).get(conversation.id)
                if not is_new and had_missed is None:
                    continue
                is_gained = bool(had_missed) or (user_id, conversation.id) in gained
                if socket.full:
                    self._miss(socket, conversation.id, gained=is_gained)
                    continue
                kind = (id(conversation), is_gained)
                if kind not in frames:
                    frames[kind] = _frame(conversation, gained=is_gained)
                socket.send(frames[kind])
                count_deliveries(frames[kind], 1)

    def _miss(self, socket: Socket, conversation_id: UUID, *, gained: bool) -> None:
        """It reads too slowly, and gets the newest state later."""
        conversations = self._missed.setdefault(socket, {})
        conversations[conversation_id] = gained or conversations.get(conversation_id, False)


def _frame(conversation: Conversation, *, gained: bool) -> Frame:
    kind = ConversationGained if gained else ConversationUpdate
    push = kind(
        conversation_id=conversation.id,
        version=conversation.version,
        data=ConversationData(conversation=conversation),
    )
    return push_frame(push)

"""The inbox: tells everyone online how the conversations look that they may see.

Changes are collected and read together, as each user sees them. A busy server pushes more
rarely rather than spending its time on it: pushing takes at most a fifth of it. A client that
reads slowly gets the newest state later, not every state.
"""

import asyncio
import time
from collections.abc import Sequence
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
from messaging_server.realtime.sockets import Sockets

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
        while changed and (callers := self._sockets.callers()):
            some = list(changed)[: max(1, VIEWS_PER_READ // len(callers))]
            self._outdated.clear()
            try:
                views = await self._views.fetch_views(some, callers)
            except Unavailable:
                self._put_back(changed, gained)
                raise
            self._push(views, changed, gained)
            for conversation_id in some:
                del changed[conversation_id]

    def _put_back(
        self, changed: dict[UUID, set[UUID] | None], gained: set[tuple[UUID, UUID]]
    ) -> None:
        for conversation_id, users in changed.items():
            for user_id in users or (None,):
                self.changed(conversation_id, only_user_id=user_id)
        self._gained |= {pair for pair in gained if pair[1] in self._changed}

    def _push(
        self,
        views: list[tuple[UUID, Conversation]],
        changed: dict[UUID, set[UUID] | None],
        gained: set[tuple[UUID, UUID]],
    ) -> None:
        """To each user's sockets; a view that several users share is encoded once."""
        frames: dict[tuple[int, bool], Frame] = {}
        for user_id, conversation in views:
            users = changed[conversation.id]
            if conversation.id in self._outdated or (users is not None and user_id not in users):
                continue
            kind = (id(conversation), (user_id, conversation.id) in gained)
            if kind not in frames:
                frames[kind] = _frame(conversation, gained=kind[1])
            if not self._send(user_id, frames[kind]):
                self.changed(conversation.id, only_user_id=user_id)

    def _send(self, user_id: UUID, frame: Frame) -> bool:
        """False when a client reads too slowly: it gets the newest state later."""
        sockets = self._sockets.of_owner(user_id)
        ready = [socket for socket in sockets if not socket.full]
        for socket in ready:
            socket.send(frame)
        count_deliveries(frame, len(ready))
        return len(ready) == len(sockets)


def _frame(conversation: Conversation, *, gained: bool) -> Frame:
    kind = ConversationGained if gained else ConversationUpdate
    push = kind(
        conversation_id=conversation.id,
        version=conversation.version,
        data=ConversationData(conversation=conversation),
    )
    return push_frame(push)

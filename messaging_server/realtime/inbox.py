"""The inbox: tells everyone online how the conversations look that they may see.

Changes are collected and read together, as each user sees them. A busy server pushes more
rarely rather than spending its time on it: pushing takes at most a fifth of it.
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
    push_frame,
)
from messaging_server.realtime.rooms import backoff, count_deliveries
from messaging_server.realtime.sockets import Sockets

GATHER_SECONDS = 0.02
PAUSE_SECONDS = 0.2
PAUSE_FACTOR = 4
CONVERSATIONS_PER_READ = 200


class Views(Protocol):
    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        """(user id, conversation as this user sees it), only where the user may see it."""


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
        self._gained.add((user_id, conversation_id))
        self.changed(conversation_id)

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
        """Push what has changed so far; what could not be read stays."""
        while self._changed:
            changed, gained = self._take()
            self._outdated.clear()
            try:
                callers = self._sockets.callers()
                views = await self._views.fetch_views(list(changed), callers) if callers else []
            except Unavailable:
                self._put_back(changed, gained)
                raise
            for user_id, conversation in views:
                users = changed[conversation.id]
                if conversation.id not in self._outdated and (users is None or user_id in users):
                    self._push(user_id, conversation, gained=(user_id, conversation.id) in gained)
        self._wake.clear()

    def _take(self) -> tuple[dict[UUID, set[UUID] | None], set[tuple[UUID, UUID]]]:
        oldest = list(self._changed)[:CONVERSATIONS_PER_READ]
        changed = {
            conversation_id: self._changed.pop(conversation_id) for conversation_id in oldest
        }
        gained = {pair for pair in self._gained if pair[1] in changed}
        self._gained -= gained
        return changed, gained

    def _put_back(
        self, changed: dict[UUID, set[UUID] | None], gained: set[tuple[UUID, UUID]]
    ) -> None:
        for conversation_id, users in changed.items():
            for user_id in users or (None,):
                self.changed(conversation_id, only_user_id=user_id)
        self._gained |= {pair for pair in gained if pair[1] not in self._outdated}

    def _push(self, user_id: UUID, conversation: Conversation, *, gained: bool) -> None:
        kind = ConversationGained if gained else ConversationUpdate
        frame = push_frame(
            kind(
                conversation_id=conversation.id,
                version=conversation.version,
                data=ConversationData(conversation=conversation),
            )
        )
        sockets = self._sockets.of_user(user_id)
        for socket in sockets:
            socket.send(frame)
        count_deliveries(frame, len(sockets))

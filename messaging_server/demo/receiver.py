"""The other system: takes a webhook's deliveries over HTTP, and trusts none of them.

Each must be signed (Standard Webhooks), one that comes again must have the same bytes, and
`message.created` must come in the order of `seq` in each conversation.
"""

import asyncio
import hashlib
import math
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web
from msgspec import Struct
from standardwebhooks import Webhook, WebhookVerificationError

from messaging_server.demo.client import Api, OutOfOrder, PromiseBroken
from messaging_server.demo.tally import Tally, Watcher
from messaging_server.models import WebhookEvent

EVENTS = (
    WebhookEvent.MESSAGE_CREATED,
    WebhookEvent.MESSAGE_STATUS,
    WebhookEvent.CONVERSATION_CREATED,
    WebhookEvent.CONVERSATION_ASSIGNED,
    WebhookEvent.CONVERSATION_AI_UPDATED,
    WebhookEvent.LEAD_CREATED,
)
OF_EVERY_CONVERSATION = {
    WebhookEvent.CONVERSATION_CREATED,
    WebhookEvent.CONVERSATION_ASSIGNED,
    WebhookEvent.CONVERSATION_AI_UPDATED,
}
SECONDS_BETWEEN_LINES = 1.0
STOP_SECONDS = 1.0


class ToldLead(Struct, frozen=True):
    name: str


class ToldConversation(Struct, frozen=True):
    id: str


class ToldMessage(Struct, frozen=True):
    id: str
    seq: int
    private: bool


class Told(Struct, frozen=True):
    lead: ToldLead
    conversation: ToldConversation | None = None
    message: ToldMessage | None = None


class Event(Struct, frozen=True):
    type: WebhookEvent
    data: Told


class Story:
    """What was told of one conversation."""

    def __init__(self) -> None:
        self.events: set[WebhookEvent] = set()
        self.messages: list[ToldMessage] = []

    def is_complete(self, message_ids: Sequence[str]) -> bool:
        told = [message.id for message in self.messages]
        return told == message_ids and self.events >= OF_EVERY_CONVERSATION


class Receiver:
    """Verifies deliveries, counts them in `tally`, and shows `watcher` about one a second."""

    def __init__(self, secret: str, *, tally: Tally, watcher: Watcher) -> None:
        self._webhook = Webhook(secret)
        self._tally = tally
        self._watcher = watcher
        self._digests: dict[str, bytes] = {}
        self._stories: dict[str, Story] = defaultdict(Story)
        self._expected: dict[str, Sequence[str]] = {}
        self._shown_at = -math.inf
        self._changed = asyncio.Event()
        self._failure: PromiseBroken | None = None
        self._failed = asyncio.Event()

    # --- What comes in ------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self.take(request.headers, await request.read())
        except PromiseBroken as broken:
            self._failure = self._failure or broken
            self._failed.set()
            return web.Response(status=400)
        return web.Response(status=204)

    def take(self, headers: Mapping[str, str], body: bytes) -> None:
        """Raises `PromiseBroken` for a delivery that must not come."""
        event = self._verify(headers, body)
        delivery_id, digest = headers["webhook-id"], hashlib.sha256(body).digest()
        is_new = delivery_id not in self._digests
        if self._digests.setdefault(delivery_id, digest) != digest:
            raise PromiseBroken(f"webhook delivery {delivery_id} came again with other bytes")
        self._tally.deliveries += 1
        if is_new:
            self._tally.events[event.type] += 1
            self._remember(event)
            self._show(event)

    def _verify(self, headers: Mapping[str, str], body: bytes) -> Event:
        try:
            return msgspec.convert(self._webhook.verify(body, dict(headers)), Event)
        except msgspec.ValidationError as error:
            raise PromiseBroken(f"a webhook delivery told something else: {error}") from None
        except (WebhookVerificationError, ValueError) as error:
            raise PromiseBroken(f"a webhook delivery was not verified: {error}") from None

    def _remember(self, event: Event) -> None:
        conversation, message = event.data.conversation, event.data.message
        if conversation is None:
            return
        story = self._stories[conversation.id]
        story.events.add(event.type)
        if message is not None and event.type is WebhookEvent.MESSAGE_CREATED:
            last_seq = story.messages[-1].seq if story.messages else 0
            if message.private:
                raise PromiseBroken(f"{event.data.lead.name}: a private note left by webhook")
            if message.seq <= last_seq:
                raise OutOfOrder(
                    f"{event.data.lead.name}: the webhook was told of message {message.seq} "
                    f"after {last_seq}"
                )
            story.messages.append(message)
        self._changed.set()

    def _show(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._shown_at < SECONDS_BETWEEN_LINES:
            return
        self._shown_at = now
        message = event.data.message
        number = f" #{message.seq}" if message else ""
        self._watcher.happened("WEBHOOK", event.data.lead.name, f"{event.type}{number} verified")

    # --- What must have come ------------------------------------------------------------------

    async def watch(self) -> None:
        """Raises the first `PromiseBroken`, when it comes; must run as a task."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def expect(self, conversation_id: str, message_ids: Sequence[str]) -> None:
        """All public messages of a conversation that was analysed, oldest first."""
        self._expected[conversation_id] = message_ids

    async def wait_for_expected(self, *, timeout_seconds: float) -> None:
        """Raises `PromiseBroken` when it has not all come in time, or something else has."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._incomplete():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PromiseBroken(
                f"of {len(self._incomplete())} conversations the webhook was not told exactly "
                f"what happened within {timeout_seconds:g} s"
            ) from None

    def _incomplete(self) -> list[str]:
        return [
            conversation_id
            for conversation_id, message_ids in self._expected.items()
            if not self._stories[conversation_id].is_complete(message_ids)
        ]


@asynccontextmanager
async def receiving(api: Api, *, tally: Tally, watcher: Watcher) -> AsyncIterator[Receiver]:
    """A receiver on a port of 127.0.0.1, with a webhook of the ADMIN whose `api` it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        webhook = await api.post("/webhooks", {"url": url, "events": EVENTS})
        receiver = Receiver(webhook["secret"], tally=tally, watcher=watcher)
        runner = web.ServerRunner(web.Server(receiver.handle), shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield receiver
            await api.patch(f"/webhooks/{webhook['id']}", {"enabled": False})
        finally:
            await runner.cleanup()

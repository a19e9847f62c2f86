"""What ADMINs do with webhooks: make, change, test, look at what was delivered, repeat it."""

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
from msgspec import UNSET, Meta, UnsetType, structs
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.errors import NotFound, Unavailable, ValidationFailed
from messaging_server.models import (
    Caller,
    Model,
    Request,
    Timestamp,
    Webhook,
    WebhookDelivery,
    WebhookEvent,
    timestamp,
)
from messaging_server.webhooks import outbox_queries, queries, queue_queries
from messaging_server.webhooks.addresses import AddressRules
from messaging_server.webhooks.delivery import Webhooks
from messaging_server.webhooks.payloads import encode

NO_SUCH_WEBHOOK = "No such webhook"
SECRET_PREFIX = "whsec_"  # noqa: S105  # Standard Webhooks' mark of a secret
SECRET_BYTES = 32
OVERLAP_SECONDS = 86_400
TRIES_FOR_LOCK = 20
PAUSE_FOR_LOCK_SECONDS = 0.1

T = TypeVar("T")

WebhookUrl = Annotated[str, Meta(min_length=1, max_length=2_000)]
Description = Annotated[str, Meta(min_length=1, max_length=500)]
Events = Annotated[tuple[WebhookEvent, ...], Meta(max_length=50)]


class NewWebhook(Request, frozen=True):
    """Without `events` it is told of all of them, also of those that come to be later."""

    url: WebhookUrl
    description: Description | None = None
    events: Events = ()
    include_private_notes: bool = False


class WebhookChanges(Request, frozen=True):
    url: WebhookUrl | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    events: Events | UnsetType = UNSET
    include_private_notes: bool | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class ReplayRequest(Request, frozen=True):
    since: Annotated[datetime, Meta(tz=True)]


class ShownWebhook(Webhook, frozen=True):
    """A new webhook; `secret` is shown this once."""

    secret: str


class ShownSecret(Model, frozen=True):
    """A new secret, shown this once; the one before is good until then."""

    id: UUID
    secret: str
    previous_secret_valid_until: Timestamp


class TestOutcome(Model, frozen=True):
    """What came of a test; `response_status` is null when no answer came."""

    succeeded: bool
    response_status: int | None
    duration_milliseconds: int
    error: str | None


class Replayed(Model, frozen=True):
    """How many deliveries are pending again."""

    count: int


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def check_url(url: str, allowed_networks: Sequence[str]) -> None:
    """What can't work is refused at once; where a name leads is looked at in each attempt."""
    reason = _refusal(url, AddressRules(allowed_networks))
    if reason is not None:
        raise ValidationFailed.of("url", reason)


def _refusal(url: str, rules: AddressRules) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a bad port raises
    except ValueError:
        return "is not a valid URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must be like https://host/path, with http or https"
    if not url.isprintable() or any(character in url for character in ' "<>\\^`{|}'):
        return "must not contain spaces or control characters"
    if "@" in parts.netloc:
        return "must not contain a user name or password"
    if "#" in url:
        return "must not have a fragment"
    if "%" in parts.netloc:
        return "must not have a zone or escapes in its host"
    return rules.literal_refusal(host)


async def create_webhook(
    database: Database,
    webhooks: Webhooks,
    caller: Caller,
    request: NewWebhook,
    *,
    allowed_networks: Sequence[str],
) -> ShownWebhook:
    check_url(request.url, allowed_networks)
    secret = new_secret()
    webhook = await _patiently(
        lambda: queries.insert_webhook(
            database,
            url=request.url,
            description=request.description,
            events=list(dict.fromkeys(request.events)),
            include_private_notes=request.include_private_notes,
            secret=secret,
            created_by=caller.id,
        )
    )
    webhooks.wake()
    return ShownWebhook(**structs.asdict(webhook), secret=secret)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The first webhook and the end of the last wait for a moment without other writers."""
    for _ in range(TRIES_FOR_LOCK):
        try:
            return await call()
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(PAUSE_FOR_LOCK_SECONDS)
    raise Unavailable("The database is too busy; try again", retry_after_seconds=5)


async def fetch_webhook(database: Database, webhook_id: UUID) -> Webhook:
    webhook = await queries.fetch_webhook(database, webhook_id)
    if webhook is None:
        raise NotFound(NO_SUCH_WEBHOOK)
    return webhook


async def update_webhook(
    database: Database,
    webhooks: Webhooks,
    webhook_id: UUID,
    request: WebhookChanges,
    *,
    allowed_networks: Sequence[str],
) -> Webhook:
    """Enabling it begins anew: what has been waiting is due at once.

    One that is no longer told of private notes has no deliveries of them any more.
    """
    changes = {
        name: getattr(request, name)
        for name in request.__struct_fields__
        if getattr(request, name) is not UNSET
    }
    if "url" in changes:
        check_url(changes["url"], allowed_networks)
    if "events" in changes:
        changes["events"] = list(dict.fromkeys(changes["events"]))
    if not changes:
        return await fetch_webhook(database, webhook_id)
    without_notes = changes.get("include_private_notes") is False
    async with database.transaction():
        if without_notes:
            await outbox_queries.lock_outbox(database)
        webhook = await queries.update_webhook(database, webhook_id, changes)
        if webhook is None:
            raise NotFound(NO_SUCH_WEBHOOK)
        if without_notes:
            await queue_queries.forget_notes(database, webhook_id)
        if changes.get("enabled"):
            await queries.hurry_deliveries(database, webhook_id)
    webhooks.wake()
    return webhook


async def rotate_secret(database: Database, webhook_id: UUID) -> ShownSecret:
    """For a day both are good: deliveries are signed with both."""
    secret = new_secret()
    until = await queries.update_secret(
        database, webhook_id, secret, overlap_seconds=OVERLAP_SECONDS
    )
    if until is None:
        raise NotFound(NO_SUCH_WEBHOOK)
    return ShownSecret(id=webhook_id, secret=secret, previous_secret_valid_until=timestamp(until))


async def delete_webhook(database: Database, webhook_id: UUID) -> None:
    if not await _patiently(lambda: queries.delete_webhook(database, webhook_id)):
        raise NotFound(NO_SUCH_WEBHOOK)


async def test_webhook(database: Database, webhooks: Webhooks, webhook_id: UUID) -> TestOutcome:
    """Send `webhook.test` now, also to a disabled one; nothing of it is stored."""
    found = await queries.fetch_secrets(database, webhook_id)
    if found is None:
        raise NotFound(NO_SUCH_WEBHOOK)
    url, valid_secrets = found
    data = {"webhookId": webhook_id, "text": "This is a test."}
    attempt = await webhooks.sender.send(
        url,
        message_id=str(uuid7()),
        secrets=valid_secrets,
        body=encode("webhook.test", timestamp(datetime.now(UTC)), data),
    )
    return TestOutcome(
        succeeded=attempt.error is None,
        response_status=attempt.status,
        duration_milliseconds=round(attempt.seconds * 1000),
        error=attempt.error,
    )


async def retry_delivery(
    database: Database, webhooks: Webhooks, webhook_id: UUID, delivery_id: UUID
) -> WebhookDelivery:
    """Also of one that has succeeded; it has all its attempts again."""
    async with database.transaction():
        if not await queries.lock_webhook(database, webhook_id):
            raise NotFound(NO_SUCH_WEBHOOK)
        delivery = await queries.renew_delivery(database, webhook_id, delivery_id)
    if delivery is None:
        raise NotFound("No such delivery")
    webhooks.wake()
    return delivery


async def replay(
    database: Database, webhooks: Webhooks, webhook_id: UUID, request: ReplayRequest
) -> Replayed:
    """Everything since then once more, in order, with the same ids and bytes."""
    try:
        since = request.since.astimezone(UTC)
    except OverflowError:
        raise ValidationFailed.of("since", "is out of range") from None
    async with database.transaction():
        if not await queries.lock_webhook(database, webhook_id):
            raise NotFound(NO_SUCH_WEBHOOK)
        count = await queries.renew_deliveries_since(database, webhook_id, since)
    webhooks.wake()
    return Replayed(count=count)

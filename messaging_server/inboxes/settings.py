"""What an ADMIN decides about inboxes: names, origins, greetings, secrets."""

import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from msgspec import UNSET, Meta, UnsetType, structs

from messaging_server.database import Database
from messaging_server.errors import NotFound
from messaging_server.events import VisitorLost
from messaging_server.inboxes import queries
from messaging_server.inboxes.origins import Origins, checked_origin
from messaging_server.inboxes.service import ApiKeyCheck
from messaging_server.models import VISIBLE, Inbox, InboxKind, Model, Request

SECRET_PREFIX = "is_"  # noqa: S105  # a prefix
PREVIOUS_SECRET_STAYS = timedelta(hours=24)
NO_SUCH_INBOX = "No such inbox"

InboxName = Annotated[str, Meta(min_length=1, max_length=200, pattern=VISIBLE)]
Greeting = Annotated[str, Meta(min_length=1, max_length=1_000)]
AllowedOrigins = Annotated[tuple[Annotated[str, Meta(max_length=300)], ...], Meta(max_length=50)]


class NewInbox(Request, frozen=True):
    name: InboxName
    kind: InboxKind
    allowed_origins: AllowedOrigins = ()
    greeting: Greeting | None = None


class InboxChanges(Request, frozen=True):
    name: InboxName | UnsetType = UNSET
    allowed_origins: AllowedOrigins | UnsetType = UNSET
    greeting: Greeting | UnsetType | None = UNSET


class ShownInbox(Inbox, frozen=True):
    """An inbox with its new secret, which is shown this once."""

    secret: str


class PublicInbox(Model, frozen=True):
    """What a website's visitors may know of an inbox."""

    id: UUID
    name: str
    greeting: str | None


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


async def create_inbox(database: Database, origins: Origins, request: NewInbox) -> ShownInbox:
    secret = new_secret()
    inbox = await queries.insert_inbox(
        database,
        name=request.name,
        kind=request.kind,
        allowed_origins=checked_origins(request.allowed_origins),
        greeting=request.greeting,
        secret=secret,
    )
    origins.forget()
    return ShownInbox(**structs.asdict(inbox), secret=secret)


def checked_origins(texts: Iterable[str]) -> list[str]:
    """Each once, as browsers write them; raises `ValidationFailed` for the first bad one."""
    return list(dict.fromkeys(checked_origin(text) for text in texts))


async def fetch_inbox(database: Database, inbox_id: UUID) -> Inbox:
    inbox = await queries.fetch_inbox(database, inbox_id)
    if inbox is None:
        raise NotFound(NO_SUCH_INBOX)
    return inbox


async def fetch_public_inbox(database: Database, inbox_id: UUID) -> PublicInbox:
    """Raises `NotFound` for an API inbox too: visitors know only the others."""
    inbox = await queries.fetch_inbox(database, inbox_id)
    if inbox is None or inbox.kind is not InboxKind.WIDGET:
        raise NotFound(NO_SUCH_INBOX)
    return PublicInbox(id=inbox.id, name=inbox.name, greeting=inbox.greeting)


async def update_inbox(
    database: Database, origins: Origins, inbox_id: UUID, request: InboxChanges
) -> Inbox:
    changes: dict[str, Any] = {
        name: value for name, value in structs.asdict(request).items() if value is not UNSET
    }
    if "allowed_origins" in changes:
        changes["allowed_origins"] = checked_origins(changes["allowed_origins"])
    inbox = await queries.update_inbox(database, inbox_id, changes)
    if inbox is None:
        raise NotFound(NO_SUCH_INBOX)
    origins.forget()
    return inbox


async def rotate_secret(database: Database, inbox_id: UUID) -> ShownInbox:
    """A new secret; the one until now is good for 24 more hours, unless it is rotated again."""
    secret = new_secret()
    inbox = await queries.update_secret(
        database, inbox_id, secret, keep_previous=PREVIOUS_SECRET_STAYS
    )
    if inbox is None:
        raise NotFound(NO_SUCH_INBOX)
    return ShownInbox(**structs.asdict(inbox), secret=secret)


async def delete_inbox(
    database: Database, origins: Origins, keys: ApiKeyCheck, inbox_id: UUID
) -> None:
    """Its keys and sessions stop working at once; leads and conversations stay."""
    async with database.transaction():
        if not await queries.lock_inbox(database, inbox_id):
            raise NotFound(NO_SUCH_INBOX)
        lead_ids = await queries.fetch_lead_ids(database, inbox_id)
        await queries.delete_inbox(database, inbox_id)
        database.publish(VisitorLost(lead_ids=lead_ids))
    origins.forget()
    keys.forget()

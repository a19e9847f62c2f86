"""Leads: the people who write in."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from messaging_server.database import Database
from messaging_server.errors import NotFound, ValidationFailed
from messaging_server.events import ConversationsDeleted, LeadUpdated, VisitorLost
from messaging_server.leads import queries
from messaging_server.models import VISIBLE, Caller, Lead, LeadDetails, Request

ATTRIBUTES_MAX_BYTES = 16_384
ATTRIBUTES_MAX_DEPTH = 32

LeadName = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=VISIBLE, examples=["Ana García"])
]
LeadEmail = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=254,
        pattern=r"^\s*[^\s@]+@[^\s@]+\s*$",
        examples=["ana@example.com"],
    ),
]
LeadPhone = Annotated[str, Meta(min_length=1, max_length=50)]
Attributes = dict[Annotated[str, Meta(min_length=1, max_length=100)], Any]


class NewLead(Request, frozen=True):
    name: LeadName
    email: LeadEmail | None = None
    phone: LeadPhone | None = None
    attributes: Attributes | None = None


class LeadChanges(Request, frozen=True):
    name: LeadName | UnsetType = UNSET
    email: LeadEmail | UnsetType | None = UNSET
    phone: LeadPhone | UnsetType | None = UNSET
    attributes: Attributes | UnsetType = UNSET


def check_attributes(attributes: Any) -> None:
    """Within bounds that any JSON parser of any client can stand."""
    if attributes and is_deeper(attributes, ATTRIBUTES_MAX_DEPTH):
        raise ValidationFailed.of(
            "attributes", f"must not be nested deeper than {ATTRIBUTES_MAX_DEPTH} levels"
        )
    if attributes and written_bytes(attributes) > ATTRIBUTES_MAX_BYTES:
        raise ValidationFailed.of(
            "attributes", f"must not be longer than {ATTRIBUTES_MAX_BYTES} bytes as JSON"
        )


def written_bytes(attributes: Any) -> int:
    """As JSON without exponents, which is how Postgres writes it: 1e300 has 301 digits."""
    exponents = sum(
        len(f"{Decimal(str(each)):f}") - len(str(each)) for each in floats_in(attributes)
    )
    return len(msgspec.json.encode(attributes)) + exponents


def floats_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from floats_in(part)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists stand in each other more than `levels` deep."""
    layer = [value]
    for _ in range(levels):
        containers = [item for item in layer if isinstance(item, dict | list)]
        layer = [
            part
            for item in containers
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, dict | list) for item in layer)


async def create_lead(database: Database, caller: Caller, lead: NewLead) -> Lead:
    check_attributes(lead.attributes)
    return await queries.insert_lead(
        database,
        name=lead.name,
        email=lead.email.strip() if lead.email else None,
        phone=lead.phone,
        attributes=lead.attributes,
        created_by=caller.id,
    )


async def fetch_lead(database: Database, caller: Caller, lead_id: UUID) -> LeadDetails:
    """The lead, and others that may be the same person: nothing merges them by itself."""
    found = await queries.fetch_lead_details(database, caller, lead_id)
    if found is None:
        raise NotFound("No such lead")
    return found


async def update_lead(
    database: Database, caller: Caller, lead_id: UUID, changes: LeadChanges
) -> Lead:
    columns = {
        name: getattr(changes, name)
        for name in LeadChanges.__struct_fields__
        if getattr(changes, name) is not UNSET
    }
    check_attributes(columns.get("attributes"))
    updated = await queries.update_lead(database, caller, lead_id, columns)
    if updated is None:
        raise NotFound("No such lead")
    lead, conversation_ids = updated
    database.publish(LeadUpdated(lead_id=lead.id, conversation_ids=conversation_ids))
    return lead


async def delete_lead(database: Database, lead_id: UUID) -> None:
    async with database.transaction():
        erased = await queries.delete_lead(database, lead_id)
        if erased is None:
            raise NotFound("No such lead")
        database.publish(
            ConversationsDeleted(
                conversation_ids=erased.conversation_ids, agent_ids=erased.agent_ids
            )
        )
        database.publish(VisitorLost(lead_ids=frozenset({lead_id})))

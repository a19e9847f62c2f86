"""SQL about visitors: who a session speaks for, and how a lead comes to be known.

A visitor's token belongs to an anonymous lead, which has no `identity`; a verified lead is found
by the `identity` that the website's server signed, in its inbox only.
"""

from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.conversations.visitor_queries import SILENT_LIFETIME, VISITOR_LIFETIME
from messaging_server.database import Database
from messaging_server.models import Visitor


class Known(Struct, frozen=True):
    """Facts about a lead; None: nothing is said about it."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


class Changed(Struct, frozen=True):
    """A lead that looks different now, and its conversations."""

    lead_id: UUID
    conversation_ids: tuple[UUID, ...]


async def fetch_widget_secrets(database: Database, inbox_id: UUID) -> tuple[str, ...] | None:
    """With what a website may sign just now; None unless it is an inbox of kind WIDGET.

    The inbox then stays until the commit.
    """
    row = await database.fetch_row(
        """
        select secret, previous_secret, previous_secret_until > now() as previous_is_valid
        from inboxes
        where id = $1 and kind = 'WIDGET'
        for key share
        """,
        inbox_id,
    )
    if row is None:
        return None
    previous = (row["previous_secret"],) if row["previous_is_valid"] else ()
    return (row["secret"], *previous)


async def fetch_visitor(database: Database, lead_id: UUID, inbox_id: UUID) -> Visitor | None:
    """None when lead or inbox is gone."""
    row = await database.fetch_row(
        """
        select l.name, l.identity is not null as verified
        from leads l join inboxes i on i.id = l.inbox_id
        where l.id = $1 and i.id = $2 and i.kind = 'WIDGET'
        """,
        lead_id,
        inbox_id,
    )
    return Visitor(lead_id, inbox_id, row["name"], row["verified"]) if row else None


async def lock_identity(database: Database, inbox_id: UUID, identity: str) -> None:
    """Until the end of the transaction: two first sessions must not make two leads."""
    await database.execute(
        "select pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 3))",
        str(inbox_id),
        identity,
    )


async def lock_anonymous_lead(database: Database, inbox_id: UUID, token_hash: bytes) -> UUID | None:
    """The lead of a visitor's token that is known and valid, locked until the commit."""
    lead_id: UUID | None = await database.fetch_value(
        """
        select l.id
        from visitors v join leads l on l.id = v.lead_id
        where v.token_hash = $1 and v.inbox_id = $2 and v.expires_at > now()
            and l.identity is null
        for update of l -- the lead first, as everybody does: else two would wait for each other
        """,
        token_hash,
        inbox_id,
    )
    return lead_id


async def fetch_verified_lead(database: Database, inbox_id: UUID, identity: str) -> UUID | None:
    lead_id: UUID | None = await database.fetch_value(
        "select id from leads where inbox_id = $1 and identity = $2 for update",
        inbox_id,
        identity,
    )
    return lead_id


async def insert_lead(
    database: Database, inbox_id: UUID, *, identity: str | None, name: str, known: Known
) -> UUID:
    """A verified lead with an identity, else one whose contact is only claimed."""
    lead_id = uuid7()
    await database.execute(
        """
        insert into leads (id, inbox_id, identity, name, email, phone, contact_verified)
        values ($1, $2, $3::text, $4, $5, $6, $3 is not null)
        """,
        lead_id,
        inbox_id,
        identity,
        name,
        known.email,
        known.phone,
    )
    return lead_id


async def insert_visitor(
    database: Database, inbox_id: UUID, lead_id: UUID, token_hash: bytes
) -> None:
    await database.execute(
        """
        insert into visitors (id, inbox_id, lead_id, token_hash, expires_at)
        values ($1, $2, $3, $4, now() + $5)
        """,
        uuid7(),
        inbox_id,
        lead_id,
        token_hash,
        SILENT_LIFETIME,
    )


async def extend_visitor(database: Database, token_hash: bytes) -> None:
    """The token was used; for long it is only good when the visitor has written."""
    await database.execute(
        """
        update visitors v
        set expires_at = now() + case
            when exists (select 1 from conversations c where c.lead_id = v.lead_id)
            then $2::interval else $3 end
        where v.token_hash = $1
        """,
        token_hash,
        VISITOR_LIFETIME,
        SILENT_LIFETIME,
    )


async def update_lead(
    database: Database, lead_id: UUID, known: Known, *, identity: str | None
) -> Changed | None:
    """What a visitor says, or with `identity` the website's server; None when nothing changed.

    A visitor's word does not replace an agent's e-mail, and what only a visitor said stays
    unverified.
    """
    row = await database.fetch_row(
        """
        with wanted as (
            select l.id, coalesce($5, l.identity) as identity, coalesce($2, l.name) as name,
                case
                    when $5 is null and l.contact_changed_by_agent then l.email
                    else coalesce($3, l.email)
                end as email,
                coalesce($4, l.phone) as phone,
                l.contact_verified or (
                    $5 is not null and ($3 is not null or l.email is null)
                    and ($4 is not null or l.phone is null)
                ) as contact_verified
            from leads l
            where l.id = $1
        ),
        changed as (
            update leads l
            set identity = w.identity, name = w.name, email = w.email, phone = w.phone,
                contact_verified = w.contact_verified, updated_at = now()
            from wanted w
            where l.id = w.id
                and (l.identity, l.name, l.email, l.phone, l.contact_verified) is distinct from
                    (w.identity, w.name, w.email, w.phone, w.contact_verified)
            returning l.id
        )
        select l.id,
            array(select c.id from conversations c where c.lead_id = l.id) as conversation_ids
        from changed l
        """,
        lead_id,
        known.name,
        known.email,
        known.phone,
        identity,
    )
    return Changed(row["id"], tuple(row["conversation_ids"])) if row else None


async def delete_visitors(database: Database, lead_id: UUID) -> None:
    """The visitor's tokens of this lead open nothing any more."""
    await database.execute("delete from visitors where lead_id = $1", lead_id)


async def merge_lead(
    database: Database, inbox_id: UUID, *, anonymous_id: UUID, verified_id: UUID
) -> Changed:
    """Give everything of one lead to another and remove the first; both must be locked.

    The conversation that the visitor just had becomes the newest, so that it goes on there.
    """
    await database.execute(
        """
        update leads l set attributes = anonymous.attributes || l.attributes
        from leads anonymous
        where l.id = $2 and anonymous.id = $1
        """,
        anonymous_id,
        verified_id,
    )
    rows = await database.fetch(
        """
        with newest as (
            select id from conversations
            where lead_id = $1 and inbox_id = $3
            order by last_activity_at desc, id desc
            limit 1
        )
        update conversations c
        set lead_id = $2,
            last_activity_at = case
                when c.id in (select id from newest) then greatest(now(), c.last_activity_at)
                else c.last_activity_at end,
            version = c.version + 1,
            updated_at = now()
        where c.lead_id = $1
        returning c.id
        """,
        anonymous_id,
        verified_id,
        inbox_id,
    )
    conversation_ids = tuple(row["id"] for row in rows)
    await database.execute(
        """
        update messages set sender_id = $2
        where conversation_id = any($3) and sender_type = 'LEAD' and sender_id = $1
        """,
        anonymous_id,
        verified_id,
        list(conversation_ids),
    )
    await database.execute(
        "update attachments set lead_id = $2 where lead_id = $1", anonymous_id, verified_id
    )
    await database.execute("select record_lead_merge($1, $2)", anonymous_id, verified_id)
    await database.execute("delete from leads where id = $1", anonymous_id)
    return Changed(verified_id, conversation_ids)

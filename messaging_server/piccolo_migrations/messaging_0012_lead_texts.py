"""What a lead is found by, kept in its row and in the rows of its conversations.

A search for what many leads have goes through the newest conversations. To compare each with a
text of its own takes a quarter of looking up its lead (`docs/decisions/0002`). All white space is
one space in it, as in what is sought.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-30T00:00:00:000012"
VERSION = "1.38.0"
DESCRIPTION = "Lead texts"

# First of all both are locked, leads before conversations, as by those who change or receive one.
#
# `take_lead_text` reads the lead as it is when it has the lock; who changes the lead later finds
# this conversation. A transaction that goes on seeing what was there at its beginning would not.
LEAD_TEXTS = r"""
lock table leads, conversations in access exclusive mode;

create function lead_text(name text, email text, phone text) returns text
language sql immutable parallel safe
as $$
    select regexp_replace(
        translate(
            ' ' || lower(
                name || ' ' || coalesce(email, '') || ' ' || coalesce(phone, '') || ' '
                || regexp_replace(coalesce(phone, ''), '[^0-9]', '', 'g')
            ),
            E'\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005'
                || E'\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
            repeat(' ', 28)
        ),
        ' {2,}', ' ', 'g'
    )
$$;

alter table leads add column search_text text not null
    generated always as (lead_text(name, email, phone)) stored;
drop index leads_search;
create index leads_search on leads using gin (trigrams(search_text));
drop function lead_search_text(text, text, text);
analyze leads;

alter table conversations add column lead_text text not null default '';
update conversations c set lead_text = l.search_text from leads l where l.id = c.lead_id;

create or replace function show_changed_lead() returns trigger
language plpgsql
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'a lead can be changed only at the isolation level read committed'
            using errcode = 'feature_not_supported',
                detail = 'Its conversations that came meanwhile would go on showing it as it was.';
    end if;
    perform from conversations where lead_id = new.id order by id for no key update;
    update conversations
    set lead_text = new.search_text, version = version + 1, updated_at = now()
    where lead_id = new.id;
    return null;
end
$$;

alter function lock_lead rename to take_lead_text;
alter trigger conversations_lock_lead on conversations rename to conversations_take_lead_text;
create or replace function take_lead_text() returns trigger
language plpgsql
as $$
declare
    text_of_lead text;
begin
    select search_text into text_of_lead from leads where id = new.lead_id for no key update;
    update conversations set lead_text = text_of_lead where id = new.id;
    return null;
end
$$;
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def add_lead_texts() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        await transaction.connection.execute(LEAD_TEXTS)

    manager.add_raw(add_lead_texts)
    return manager

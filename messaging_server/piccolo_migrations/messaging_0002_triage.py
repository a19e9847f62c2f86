"""The ledger of the analyses: what each run took and cost, what people think of it, budgets.

A run is in the ledger before its first call. What it may cost at most is added to its day in
`analysis_spending` by the same statement, and corrected when the run has ended, so that the sum
of a day's costs and that day's row are always the same amount.
"""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from messaging_server.database import ENGINE

ID = "2026-11-23T00:00:00:000002"
VERSION = "1.38.0"
DESCRIPTION = "Triage"

LEDGER = """
alter table analyses
    drop constraint analyses_status_check,
    drop constraint analyses_conversation_id_fkey,
    alter column conversation_id drop not null,
    alter column latency_milliseconds drop not null,
    add column prompt_version text,
    add column fingerprint bytea,
    add column suggested_reply text,
    add column calls integer not null default 1,
    add column tokens_in integer not null default 0,
    add column tokens_out integer not null default 0,
    add column tokens_cached integer not null default 0,
    add column cost_micro_dollars bigint not null default 0,
    add column feedback_verdict text check (feedback_verdict in ('correct', 'wrong')),
    add column feedback_priority text,
    add column feedback_tags text[],
    add column feedback_by uuid references users (id),
    add column feedback_at timestamptz,
    add constraint analyses_status_check
        check (status in ('RUNNING', 'SUCCEEDED', 'FAILED', 'INTERRUPTED')),
    add constraint analyses_conversation_id_fkey
        foreign key (conversation_id) references conversations (id) on delete set null;
create index analyses_created on analyses (created_at);
create index analyses_feedback on analyses (feedback_at) where feedback_at is not null;

create table analysis_spending (
    day date primary key,
    micro_dollars bigint not null default 0,
    refused boolean not null default false
);
"""

# Erasing a lead erases what was read out of the conversations; what was spent stays.
ERASURE = """
create function erase_analyses() returns trigger
language plpgsql
as $$
begin
    update analyses
    set conversation_id = null,
        status = case when status = 'RUNNING' then 'INTERRUPTED' else status end,
        summary = null,
        priority = null,
        priority_reason = null,
        tags = '{}',
        language = null,
        suggested_reply = null,
        fingerprint = null,
        error = null,
        feedback_verdict = null,
        feedback_priority = null,
        feedback_tags = null,
        feedback_by = null,
        feedback_at = null
    where conversation_id = old.id;
    return old;
end
$$;
create trigger conversations_erased before delete on conversations
    for each row execute function erase_analyses();
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="messaging", description=DESCRIPTION)

    async def create_ledger() -> None:
        transaction = ENGINE.current_transaction.get()
        assert transaction is not None
        for script in (LEDGER, ERASURE):
            await transaction.connection.execute(script)

    manager.add_raw(create_ledger)
    return manager

"""Who needs a reply first: priority and waiting time as one time, `urgent_since`.

The SQL function of that name (a migration makes it) holds the formula; here is what is shown of
it. As the head start of a priority does not change, the order of conversations never changes by
itself, and it can be indexed and paged.
"""

from datetime import datetime, timedelta

from messaging_server.models import Priority, Status, Urgency

URGENT_SINCE = "urgent_since(c.waiting_since, c.priority)"
NEEDS_REPLY = "c.waiting_since is not null and c.status = 'OPEN'"

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def urgency_of(
    status: Status,
    priority: Priority | None,
    *,
    waiting_since: datetime | None,
    urgent_since: datetime | None,
    now: datetime,
) -> Urgency | None:
    """As of `now`, by the clock of the database; None unless the conversation needs a reply."""
    if waiting_since is None or urgent_since is None or status is not Status.OPEN:
        return None
    priority_text = f"{priority} priority" if priority else "No priority yet"
    return Urgency(
        score=max(0.0, round((now - urgent_since) / HOUR, 1)),
        reason=f"{priority_text}, {waiting_text(now - waiting_since)}",
    )


def waiting_text(waited: timedelta) -> str:
    """Rounded down; hours until there are two days."""
    if waited < MINUTE:
        return "waiting less than a minute"
    if waited < HOUR:
        return f"waiting {waited // MINUTE} min"
    if waited < 2 * DAY:
        return f"waiting {waited // HOUR} h"
    return f"waiting {waited // DAY} days"

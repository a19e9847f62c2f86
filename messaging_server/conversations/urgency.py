"""Who needs a reply first: priority and waiting time as one time, `urgent_since`.

The SQL function of that name (a migration makes it) holds the formula; here is what is shown of
it. As the head start of a priority does not change, the order of conversations never changes by
itself, and it can be indexed and paged.
"""

from msgspec import Struct

from messaging_server.models import Priority, Urgency

URGENT_SINCE = "urgent_since(c.waiting_since, c.priority)"
NEEDS_REPLY = "c.waiting_since is not null and c.status = 'OPEN'"

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Wait(Struct, frozen=True):
    """Of a conversation that needs a reply; times in seconds of Unix time, by the database."""

    priority_text: str
    since: float
    urgent_since: float

    @classmethod
    def of(cls, priority: Priority | None, since: float, urgent_since: float) -> "Wait":
        text = f"{priority} priority" if priority else "No priority yet"
        return cls(text, since, urgent_since)

    def urgency(self, now: float) -> Urgency:
        """Its score is in hours, to one decimal place."""
        tenths = int((now - self.urgent_since) / HOUR * 10 + 0.5)
        reason = f"{self.priority_text}, {waiting_text(int(now - self.since))}"
        return Urgency(score=tenths / 10 if tenths > 0 else 0.0, reason=reason)


def waiting_text(seconds: int) -> str:
    """Rounded down; hours until there are two days."""
    if seconds < MINUTE:
        return "waiting less than a minute"
    if seconds < HOUR:
        return f"waiting {seconds // MINUTE} min"
    if seconds < 2 * DAY:
        return f"waiting {seconds // HOUR} h"
    return f"waiting {seconds // DAY} days"

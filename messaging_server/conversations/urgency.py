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
UNITS = {MINUTE: "min", HOUR: "h", DAY: "days"}


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
        reason = f"{self.priority_text}, {waiting_text(int(now - self.since))}"
        return Urgency(score=self._tenths(now) / 10, reason=reason)

    def changes_after(self, now: float) -> float:
        """Until when the urgency of `now` is the one to show."""
        seconds = max(0, int(now - self.since))
        unit = unit_of(seconds)
        reason_changes = self.since + (seconds // unit + 1) * unit
        score_changes = self.urgent_since + (self._tenths(now) + 0.5) * HOUR / 10
        return min(reason_changes, score_changes)

    def _tenths(self, now: float) -> int:
        return max(0, int((now - self.urgent_since) / HOUR * 10 + 0.5))


def unit_of(seconds: int) -> int:
    """What a wait is counted in: hours until there are two days."""
    if seconds < HOUR:
        return MINUTE
    return HOUR if seconds < 2 * DAY else DAY


def waiting_text(seconds: int) -> str:
    """Rounded down."""
    if seconds < MINUTE:
        return "waiting less than a minute"
    unit = unit_of(seconds)
    return f"waiting {seconds // unit} {UNITS[unit]}"

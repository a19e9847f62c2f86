"""What happened so far, and who is told of it as it happens."""

from collections import Counter
from typing import Protocol

from msgspec import Struct, field

from messaging_server.demo.client import AiData


class Tally(Struct):
    """`deliveries` are those of the webhook that were verified, `events` what they told of."""

    conversations: int
    finished: int = 0
    sent: int = 0
    received: int = 0
    analyses: int = 0
    deliveries: int = 0
    events: Counter[str] = field(default_factory=Counter)
    visitor_wrote: int = 0
    visitor_read: int = 0
    in_order: bool = True
    seconds: float = 0.0


class Watcher(Protocol):
    """`kind` says who did it: LEAD, AGENT, NOTE, WEBSITE or WEBHOOK; `name` is the lead's."""

    def happened(self, kind: str, name: str, text: str) -> None: ...

    def analysis_arrived(self, name: str, ai: AiData) -> None: ...

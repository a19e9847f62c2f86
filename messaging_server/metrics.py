"""The Prometheus collectors; their names are part of the API and stand in docs/metrics.md."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

REQUESTS = Counter(
    "messaging_http_requests_total",
    "HTTP requests answered.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "messaging_http_request_seconds",
    "Time from the first byte of a request to the last of its answer.",
    ("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=REGISTRY,
)
MESSAGES = Counter(
    "messaging_messages_total", "Messages committed.", ("sender_type",), registry=REGISTRY
)
SOCKETS = Gauge("messaging_sockets", "Open authenticated sockets of users.", registry=REGISTRY)
VISITOR_SOCKETS = Gauge(
    "messaging_visitor_sockets", "Open authenticated sockets of visitors.", registry=REGISTRY
)
ROOMS = Gauge("messaging_rooms", "Conversations that a socket has joined.", registry=REGISTRY)
DELIVERIES = Counter(
    "messaging_deliveries_total", "Frames written to sockets.", ("event",), registry=REGISTRY
)
DROPPED = Counter(
    "messaging_dropped_frames_total",
    "Best-effort frames not sent because a socket was slow.",
    registry=REGISTRY,
)
SOCKET_CLOSES = Counter(
    "messaging_socket_closes_total", "Sockets closed, by close code.", ("code",), registry=REGISTRY
)
HOLES_FILLED = Counter(
    "messaging_room_holes_filled_total",
    "Messages that a room read from the database because their push was missing or late.",
    registry=REGISTRY,
)
ANALYSES = Counter(
    "messaging_analyses_total", "Analyses run.", ("provider", "status"), registry=REGISTRY
)
ANALYSIS_SECONDS = Histogram(
    "messaging_analysis_seconds",
    "Time an analyser took.",
    ("provider",),
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60),
    registry=REGISTRY,
)
ANALYSIS_TOKENS = Counter(
    "messaging_analysis_tokens_total",
    "Tokens that models used.",
    ("provider", "direction"),
    registry=REGISTRY,
)
ANALYSIS_COST = Counter(
    "messaging_analysis_cost_micro_dollars_total",
    "What models cost, in millionths of a dollar.",
    ("provider",),
    registry=REGISTRY,
)
BREAKER_OPEN = Gauge(
    "messaging_analysis_breaker_open",
    "1 while a provider is not asked because its calls failed several times in a row.",
    ("provider",),
    registry=REGISTRY,
)
ANALYSIS_QUEUE = Gauge(
    "messaging_analysis_queue",
    "Conversations by the state of their analysis: waiting, due, running, failed.",
    ("state",),
    registry=REGISTRY,
)
WEBHOOK_ATTEMPTS = Counter(
    "messaging_webhook_attempts_total",
    "Attempts to deliver to webhooks: succeeded, failed, gave_up.",
    ("outcome",),
    registry=REGISTRY,
)
WEBHOOK_SECONDS = Histogram(
    "messaging_webhook_attempt_seconds",
    "Time that an attempt to deliver took.",
    buckets=(0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 15),
    registry=REGISTRY,
)
WEBHOOK_PENDING = Gauge(
    "messaging_webhook_pending",
    "Deliveries to webhooks that are still to be attempted; 100,000 at most.",
    registry=REGISTRY,
)
WEBHOOK_DROPPED = Counter(
    "messaging_webhook_dropped_events_total",
    "Events that webhooks were not told of because of a defect.",
    registry=REGISTRY,
)
POOL_CONNECTIONS = Gauge(
    "messaging_database_pool_connections",
    "Connections of the database pool by state: idle, used.",
    ("state",),
    registry=REGISTRY,
)
LOOP_LAG = Gauge(
    "messaging_event_loop_lag_seconds",
    "How late the event loop woke up, at worst since the last scrape.",
    registry=REGISTRY,
)

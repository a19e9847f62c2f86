"""Configuration as frozen structs: every key, its type and its default.

Each stands, commented, in `config.toml`; `config_sources` reads it from there.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

PositiveInt = Annotated[int, Meta(ge=1, le=1_000_000_000)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=86_400)]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of config.toml."""


class ServerConfig(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 3000
    public_url: str = ""
    data_dir: str = ""
    allowed_origins: tuple[str, ...] = ()
    behind_proxy: tuple[str, ...] = ()
    max_body_bytes: PositiveInt = 1_048_576
    shutdown_seconds: PositiveSeconds = 5.0


class DatabaseConfig(Section, frozen=True):
    url: str = ""
    pool_size: Annotated[int, Meta(ge=2, le=500)] = 10


class AuthConfig(Section, frozen=True):
    registration: Literal["admin", "open"] = "admin"
    token_hours: Annotated[float, Meta(gt=0, le=8_760)] = 12.0
    secret: str = ""
    bcrypt_rounds: Annotated[int, Meta(ge=4, le=16)] = 12


class LimitsConfig(Section, frozen=True):
    enabled: bool = True
    logins_per_minute_per_address: PositiveInt = 30
    logins_per_minute_per_account: PositiveInt = 10
    writes_per_minute_per_user: PositiveInt = 1_200
    inbound_per_minute_per_key: PositiveInt = 12_000
    sessions_per_minute_per_address: PositiveInt = 30
    messages_per_minute_per_visitor: PositiveInt = 30
    messages_per_minute_per_address: PositiveInt = 120
    calls_per_minute_per_visitor: PositiveInt = 240
    visitor_commands_per_minute_per_address: PositiveInt = 1_200
    uploads_per_minute_per_user: PositiveInt = 120
    uploads_per_minute_per_visitor: PositiveInt = 20
    upload_megabytes_per_hour_per_address: PositiveInt = 200


class StorageConfig(Section, frozen=True):
    """Where attachments are kept; `url` empty: a folder of the data directory."""

    url: str = ""
    max_bytes: PositiveInt = 26_214_400
    reserve_megabytes: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 512
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""

    @property
    def reserve_bytes(self) -> int:
        return self.reserve_megabytes * 1_000_000


class RealtimeConfig(Section, frozen=True):
    ping_seconds: PositiveSeconds = 25.0
    pong_seconds: PositiveSeconds = 10.0
    auth_seconds: PositiveSeconds = 10.0
    typing_seconds: PositiveSeconds = 6.0
    sockets_per_user: PositiveInt = 10
    sockets_per_visitor: PositiveInt = 5
    visitor_sockets_per_address: PositiveInt = 100
    rooms_per_socket: PositiveInt = 128
    commands_per_second: PositiveInt = 20
    command_burst: PositiveInt = 40
    fast_path: bool = True


class AnalysisConfig(Section, frozen=True):
    enabled: bool = True
    quiet_seconds: PositiveSeconds = 10.0
    max_wait_seconds: PositiveSeconds = 60.0
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 4
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 6
    private_notes: bool = False


class TagConfig(Section, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=50)]
    description: str = ""


class PriceConfig(Section, frozen=True):
    """What a model's tokens cost, in dollars per million; `cached` is `input` if left out."""

    model: Annotated[str, Meta(min_length=1)]
    input: Dollars
    output: Dollars
    cached: Dollars | None = None


class AiConfig(Section, frozen=True):
    provider: Literal["local", "openai", "anthropic"] = "local"
    model: str = ""
    base_url: str = ""
    api_key: str = ""
    api_key_file: str = ""
    fallback: Literal["local", "none"] = "local"
    timeout_seconds: PositiveSeconds = 30.0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_output_tokens: Annotated[int, Meta(ge=64, le=20_000)] = 2_000
    language: Annotated[str, Meta(pattern="^(auto|[a-z]{2,3}(-[A-Za-z]{2,4})?)$")] = "auto"
    suggested_replies: bool = False
    daily_budget_dollars: Dollars = 0.0
    monthly_budget_dollars: Dollars = 0.0
    tags: tuple[TagConfig, ...] = ()
    prices: tuple[PriceConfig, ...] = ()

    @property
    def has_budget(self) -> bool:
        return bool(self.daily_budget_dollars or self.monthly_budget_dollars)

    @property
    def price(self) -> PriceConfig | None:
        """That of `model`, if the table has it."""
        return next((price for price in self.prices if price.model == self.model), None)


class ClusterConfig(Section, frozen=True):
    backplane: Literal["local"] = "local"


class WebhooksConfig(Section, frozen=True):
    allowed_networks: tuple[str, ...] = ()


class AdminConfig(Section, frozen=True):
    enabled: bool = False


class LogConfig(Section, frozen=True):
    level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "pretty", "json"] = "auto"


class Config(Section, frozen=True):
    """The whole configuration; a section per concern."""

    server: ServerConfig = field(default_factory=ServerConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    ai: AiConfig = field(default_factory=AiConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    webhooks: WebhooksConfig = field(default_factory=WebhooksConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    log: LogConfig = field(default_factory=LogConfig)

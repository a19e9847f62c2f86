"""The composition root: the only place where parts meet.

`create_app` takes a complete configuration (`database.url` and `auth.secret` filled in) and
returns the application; everything that runs has the lifetime of its lifespan.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from litestar import Litestar, Router, get
from litestar.config.cors import CORSConfig
from litestar.datastructures import State

from messaging_server.analysis import routes as analysis_routes
from messaging_server.analysis.service import Analysis
from messaging_server.analysis.suggestions import Suggestions
from messaging_server.config import Config
from messaging_server.conversations import routes as conversation_routes
from messaging_server.conversations.message_queries import Debounce
from messaging_server.conversations.view_cache import ViewCache
from messaging_server.dashboard import routes as dashboard_routes
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.health import Maintenance
from messaging_server.health import route_handlers as health_routes
from messaging_server.http import (
    EXCEPTION_HANDLERS,
    PREFIX,
    PUBLIC,
    Authenticator,
    Edge,
    Request,
    authorize,
)
from messaging_server.inboxes import routes as inbox_routes
from messaging_server.inboxes.service import ApiKeyCheck
from messaging_server.leads import routes as lead_routes
from messaging_server.limiter import Limiter
from messaging_server.models import Caller
from messaging_server.realtime import Realtime
from messaging_server.realtime.asyncapi import asyncapi_document
from messaging_server.security import Passwords, Tokens
from messaging_server.users import routes as user_routes
from messaging_server.users.service import UserTokens
from messaging_server.web import docs


def create_app(config: Config) -> Litestar:
    """The application, ready to be served by uvicorn; nothing runs before its lifespan."""
    bus = Bus()
    database = Database(config.database.url, pool_size=config.database.pool_size, bus=bus)
    tokens = Tokens(config.auth.secret, lifetime=timedelta(hours=config.auth.token_hours))
    passwords = Passwords(rounds=config.auth.bcrypt_rounds)
    user_tokens = UserTokens(database, tokens, bus)
    api_keys = ApiKeyCheck(database)
    analysis = Analysis(config, database, bus)
    suggestions = Suggestions(config.ai, database, bus)
    realtime = Realtime(config, database, bus, user_tokens)
    maintenance = Maintenance(database)
    limiter = Limiter(enabled=config.limits.enabled)

    async def caller_of(token: str) -> Caller:
        return (await user_tokens.authenticate(token)).caller

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await database.start()
        await realtime.start()
        await analysis.start()
        maintenance.start()
        try:
            yield
        finally:
            await maintenance.stop()
            await suggestions.aclose()
            await analysis.stop()
            await realtime.stop()
            await database.stop()
            passwords.close()

    app = Litestar(
        route_handlers=[
            Router(PREFIX, route_handlers=api_route_handlers()),
            *health_routes,
            *docs.route_handlers,
            describe_socket,
            *realtime.route_handlers,
            *admin_route_handlers(config, database, passwords, limiter, bus),
        ],
        lifespan=[lifespan],
        guards=[authorize],
        request_class=Request,
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=config.server.max_body_bytes,
        cors_config=cors(config),
        openapi_config=docs.openapi_config(),
        plugins=[docs.DocsPlugin()],
        logging_config=None,
        state=State(
            {
                "config": config,
                "database": database,
                "tokens": tokens,
                "passwords": passwords,
                "api_keys": api_keys,
                "authenticator": Authenticator(user=caller_of, api_key=api_keys.authenticate),
                "limiter": limiter,
                "debounce": Debounce(
                    quiet=timedelta(seconds=config.analysis.quiet_seconds),
                    max_wait=timedelta(seconds=config.analysis.max_wait_seconds),
                ),
                "view_cache": ViewCache(),
                "analysis": analysis,
                "suggestions": suggestions,
                "realtime": realtime,
                "maintenance": maintenance,
            }
        ),
    )
    app.asgi_handler = Edge(app.asgi_handler, access_log=config.log.level in ("TRACE", "DEBUG"))
    return app


@get("/docs/asyncapi.json", opt=PUBLIC, include_in_schema=False)
async def describe_socket() -> dict[str, Any]:
    """The AsyncAPI document of the socket; stands here because `web` knows no sockets."""
    return asyncapi_document(version=version("messaging-server"))


def api_route_handlers() -> list[Any]:
    return [
        *user_routes.route_handlers,
        *lead_routes.route_handlers,
        *conversation_routes.route_handlers,
        *inbox_routes.route_handlers,
        *analysis_routes.route_handlers,
        *dashboard_routes.route_handlers,
    ]


def admin_route_handlers(
    config: Config, database: Database, passwords: Passwords, limiter: Limiter, bus: Bus
) -> list[Any]:
    """The data browser is an optional dependency, imported only when it is enabled."""
    if not config.admin.enabled:
        return []
    from messaging_server.web.admin import admin_route

    return [admin_route(database, passwords, limiter, bus)]


def cors(config: Config) -> CORSConfig | None:
    """Only for origins that are configured; tokens travel in a header, so no credentials."""
    if not config.server.allowed_origins:
        return None
    return CORSConfig(
        allow_origins=list(config.server.allowed_origins),
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
        max_age=600,
    )

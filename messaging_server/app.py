"""The composition root: the only place where parts meet.

`create_app` takes a complete configuration (`database.url`, `auth.secret`, `server.data_dir` and
`server.public_url` filled in) and returns the application; everything that runs has the lifetime
of its lifespan. Whoever serves it may set `stop_by` in its state, a time of the event loop.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from litestar import Litestar, Router, get
from litestar.datastructures import State
from loguru import logger

from messaging_server.analysis import routes as analysis_routes
from messaging_server.analysis.service import Analysis
from messaging_server.analysis.suggestions import Suggestions
from messaging_server.attachments import routes as attachment_routes
from messaging_server.attachments.service import Uploads
from messaging_server.config import Config
from messaging_server.conversations import routes as conversation_routes
from messaging_server.conversations.append_queries import Debounce
from messaging_server.conversations.appender import Appender
from messaging_server.conversations.search import ConversationList
from messaging_server.cors import Cors
from messaging_server.dashboard import routes as dashboard_routes
from messaging_server.dashboard.service import Dashboard
from messaging_server.database import Database
from messaging_server.direct import Direct
from messaging_server.edge import EXCEPTION_HANDLERS, Edge
from messaging_server.events import Bus
from messaging_server.health import Maintenance
from messaging_server.health import route_handlers as health_routes
from messaging_server.http import (
    PREFIX,
    PUBLIC,
    Authenticator,
    Headers,
    Request,
    authorize,
)
from messaging_server.inboxes import public_routes
from messaging_server.inboxes import routes as inbox_routes
from messaging_server.inboxes.origins import PUBLIC_PREFIX, Origins
from messaging_server.inboxes.service import ApiKeyCheck
from messaging_server.inboxes.visitors import VisitorTokens
from messaging_server.leads import routes as lead_routes
from messaging_server.leads.search import LeadSearch
from messaging_server.limiter import Limiter
from messaging_server.models import Caller, Visitor
from messaging_server.realtime import Domain, Realtime, VisitorDomain
from messaging_server.realtime.asyncapi import asyncapi_document
from messaging_server.security import Links, Passwords, Tokens
from messaging_server.users import routes as user_routes
from messaging_server.users.service import UserTokens
from messaging_server.web import docs
from messaging_server.webhooks import routes as webhook_routes
from messaging_server.webhooks.delivery import Webhooks

GIVE_UP_SECONDS = 0.5


def create_app(config: Config) -> Litestar:
    """The application, ready to be served by uvicorn; nothing runs before its lifespan."""
    bus = Bus()
    database = Database(
        config.database.url,
        pool_size=config.database.pool_size,
        bus=bus,
        links=Links(config.auth.secret, public_url=config.server.public_url),
    )
    tokens = Tokens(config.auth.secret, lifetime=timedelta(hours=config.auth.token_hours))
    passwords = Passwords(rounds=config.auth.bcrypt_rounds)
    user_tokens = UserTokens(database, tokens, bus)
    api_keys = ApiKeyCheck(database)
    debounce = Debounce(
        quiet=timedelta(seconds=config.analysis.quiet_seconds),
        max_wait=timedelta(seconds=config.analysis.max_wait_seconds),
    )
    appender = Appender(database, debounce)
    analysis = Analysis(config, database, bus)
    suggestions = Suggestions(config.ai, database, bus)
    visitor_tokens = VisitorTokens(database, config.auth.secret, bus)
    origins = Origins(database)
    lead_search = LeadSearch(database)
    limiter = Limiter(enabled=config.limits.enabled)
    realtime = Realtime(
        config,
        bus,
        Domain(database, user_tokens),
        VisitorDomain(database, visitor_tokens, origins, limiter, config.limits),
    )
    uploads = Uploads(config.storage, database, data_dir=Path(config.server.data_dir))
    maintenance = Maintenance(database, uploads)
    webhooks = Webhooks(config.webhooks, database, bus)

    async def caller_of(token: str) -> Caller:
        return (await user_tokens.authenticate(token)).caller

    async def visitor_of(token: str, headers: Headers) -> Visitor:
        visitor = (await visitor_tokens.authenticate(token)).visitor
        await origins.check(headers, visitor.inbox_id)
        return visitor

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        await database.start()
        await realtime.start()
        await analysis.start()
        await webhooks.start()
        maintenance.start()
        try:
            yield
        finally:
            stop_by = app.state.get("stop_by")
            stops = (
                maintenance.stop,
                suggestions.aclose,
                functools.partial(analysis.stop, by=stop_by),
                webhooks.stop,
                realtime.stop,
                appender.stop,
                database.stop,
            )
            await stop_in_order(stops, by=stop_by, give_up=database.terminate)
            uploads.close()
            passwords.close()

    app = Litestar(
        route_handlers=[
            Router(PREFIX, route_handlers=api_route_handlers()),
            Router(PUBLIC_PREFIX, route_handlers=public_route_handlers()),
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
                "authenticator": Authenticator(
                    user=caller_of, api_key=api_keys.authenticate, visitor=visitor_of
                ),
                "visitor_tokens": visitor_tokens,
                "origins": origins,
                "limiter": limiter,
                "appender": appender,
                "uploads": uploads,
                "conversation_list": ConversationList(database, lead_search),
                "lead_search": lead_search,
                "dashboard": Dashboard(database, config.ai),
                "analysis": analysis,
                "suggestions": suggestions,
                "realtime": realtime,
                "webhooks": webhooks,
                "maintenance": maintenance,
            }
        ),
    )
    cors = Cors(
        config.server.allowed_origins, public_prefix=PUBLIC_PREFIX, public_origins=origins.allow
    )
    access_log = config.log.level in ("TRACE", "DEBUG")
    app.asgi_handler = Edge(Direct(app), cors, access_log=access_log)
    return app


async def stop_in_order(
    stops: Sequence[Callable[[], Awaitable[None]]], *, by: float | None, give_up: Callable[[], None]
) -> None:
    """One after the other; what has not stopped `by` then, a time of the loop, is left behind."""

    async def stop() -> None:
        for each in stops:
            await each()

    left_seconds = None if by is None else by - asyncio.get_running_loop().time()
    stopping = asyncio.create_task(stop())
    await asyncio.wait([stopping], timeout=left_seconds)
    if not stopping.done():
        logger.warning("Not everything could be put in order before the end")
        give_up()
        stopping.cancel()
        await asyncio.wait([stopping], timeout=GIVE_UP_SECONDS)
    elif error := stopping.exception():
        raise error


@get("/docs/asyncapi.json", opt=PUBLIC, include_in_schema=False)
async def describe_socket() -> dict[str, Any]:
    """The AsyncAPI document of the socket; stands here because `web` knows no sockets."""
    return asyncapi_document(version=version("messaging-server"))


def api_route_handlers() -> list[Any]:
    return [
        *user_routes.route_handlers,
        *lead_routes.route_handlers,
        *conversation_routes.route_handlers,
        *attachment_routes.route_handlers,
        *inbox_routes.route_handlers,
        *analysis_routes.route_handlers,
        *webhook_routes.route_handlers,
        *dashboard_routes.route_handlers,
    ]


def public_route_handlers() -> list[Any]:
    return [*public_routes.route_handlers, *attachment_routes.public_route_handlers]


def admin_route_handlers(
    config: Config, database: Database, passwords: Passwords, limiter: Limiter, bus: Bus
) -> list[Any]:
    """The data browser is an optional dependency, imported only when it is enabled."""
    if not config.admin.enabled:
        return []
    from messaging_server.web.admin import admin_route

    return [admin_route(database, passwords, limiter, bus)]

"""`/dashboard/metrics`."""

from typing import Any

from litestar import get

from messaging_server.dashboard import queries
from messaging_server.dashboard.queries import Metrics
from messaging_server.http import Direct, Request, Success


@get("/dashboard/metrics", middleware=[Direct], tags=["Dashboard"])
async def fetch_metrics(request: Request) -> Success[Metrics]:
    """Counts over the conversations that the caller may see, as of now."""
    config = request.app.state.config.ai
    return Success(data=await queries.fetch_metrics(request.database, request.caller, config))


route_handlers: list[Any] = [fetch_metrics]

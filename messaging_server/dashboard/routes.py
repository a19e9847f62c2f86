"""`/dashboard/metrics`."""

from typing import Any

from litestar import get

from messaging_server.dashboard.service import Metrics
from messaging_server.http import DIRECT, Request, Success


@get("/dashboard/metrics", opt=DIRECT, tags=["Dashboard"])
async def fetch_metrics(request: Request) -> Success[Metrics]:
    """Counts over the conversations that the caller may see, as of now."""
    return Success(data=await request.app.state.dashboard.fetch_metrics(request.caller))


route_handlers: list[Any] = [fetch_metrics]

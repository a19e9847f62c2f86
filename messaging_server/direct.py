"""The short way through the HTTP edge, for the calls that must cost little."""

from typing import Any

import litestar
import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send

from messaging_server.http import Request, authorize_caller, checked_query, query_parameters


class Direct:
    """Middleware that calls its handler itself.

    Litestar's parameter extraction, response classes and header maps cost such a call more than
    its own work. The handler takes `request`, its path and query parameters and `data`, and
    returns its answer, or a `Response` without headers of its own; everything around it stays:
    routing, guard, errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` would answer too; it is what the OpenAPI document describes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler: Any = scope["route_handler"]
        request = Request(scope, receive, send)
        query = checked_query(request, handler)
        await authorize_caller(request, handler)
        arguments = {"request": request, **scope["path_params"]}
        if handler.parsed_data_field is not None:
            arguments["data"] = await request.json()
        elif query:
            for name, field in query_parameters(handler).items():
                arguments[field.name] = query.get(name, field.default)
            read = handler.signature_model.parse_values_from_connection_kwargs
            arguments = read(request, arguments)
        answer = await handler.fn(**arguments)
        status = 200
        if isinstance(answer, litestar.Response):
            answer, status = answer.content, answer.status_code
        body = msgspec.json.encode(answer)
        length = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
            }
        )
        await send({"type": "http.response.body", "body": body, "more_body": False})

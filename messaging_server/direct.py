"""The short way through the HTTP edge, for the calls that must cost little."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import litestar
import msgspec
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from messaging_server.http import Request, authorize_caller
from messaging_server.query import FORMS, checked_query, query_parameters

KEPT_QUERIES = 1_000
KEPT_QUERY_BYTES = 200

_PARAMETER = re.compile(r"\{[^}]*\}")
_ID = re.compile(f"(?<=/){FORMS[UUID].pattern.pattern}(?![^/])", re.IGNORECASE)


class Direct:
    """Calls the handlers with `opt=DIRECT` itself, and leaves everything else to Litestar.

    Litestar's routing, parameter extraction, response classes and header maps cost such a call
    more than its own work. The handler returns its answer, or a `Response` without headers of its
    own, and has no guards or exception handlers beside those of the application. A path that is
    not in its plain form (with a slash at the end, say) goes Litestar's way to the same answer.
    """

    def __init__(self, app: Litestar) -> None:
        self._app = app.asgi_handler
        self._exception_handlers = app.exception_handlers
        self._routes = {
            (method, *_PARAMETER.split(route.path_format)): Route.of(route, handler)
            for route in app.routes
            if isinstance(route, HTTPRoute)
            for method, (handler, _) in route.route_handler_map.items()
            if handler.opt.get("direct")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope.get("method"), scope["path"]
        found = _ID.search(path)
        around = (path[: found.start()], path[found.end() :]) if found else (path,)
        route = self._routes.get((method, *around))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route_handler"], scope["path_template"] = route.handler, route.path_template
        path_params: Any = {route.id_parameter: UUID(found[0])} if found else {}
        scope["path_params"] = path_params
        request = Request(scope, receive, send)
        try:
            status, body = await route.answer(request)
        except Exception as error:  # noqa: BLE001  # the handlers have one for each, as Litestar's
            await self._refuse(request, error)
            return
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _refuse(self, request: Request, error: Exception) -> None:
        handlers = self._exception_handlers
        handle: Any = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
        response = handle(request, error).to_asgi_response(app=None, request=request)
        await response(request.scope, request.receive, request.send)


class Route(Struct):
    """A handler of Litestar's, with what it takes beside `request` and query parameters."""

    handler: Any
    path_template: str
    id_parameter: str
    """Empty for a path without an id."""
    has_body: bool
    queries: dict[bytes, Mapping[str, Any]]
    """What queries say: a team asks the same ones again and again."""

    @classmethod
    def of(cls, route: HTTPRoute, handler: Any) -> "Route":
        [id_parameter] = route.path_parameters or [""]
        has_body = handler.parsed_data_field is not None
        return cls(handler, route.path_format, id_parameter, has_body, queries={})

    async def answer(self, request: Request) -> tuple[int, bytes]:
        """Status and body."""
        arguments = {"request": request, **request.scope["path_params"]}
        query = request.scope["query_string"]
        values = self.queries.get(query)
        given = checked_query(request, self.handler) if values is None else {}
        await authorize_caller(request, self.handler)
        if values is None:
            values = self._read(request, given, arguments)
            self._keep(query, values)
        if self.has_body:
            arguments["data"] = await request.json()
        answer = await self.handler.fn(**arguments, **values)
        status = self.handler.status_code
        if isinstance(answer, litestar.Response):
            answer, status = answer.content, answer.status_code or status
        return status, msgspec.json.encode(answer)

    def _read(
        self, request: Request, given: Mapping[str, str], others: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The values by their names in Python; Litestar reads them together with all others.

        Raises its exceptions, which name a parameter and the rule.
        """
        if not given:
            return {}
        fields = query_parameters(self.handler)
        arguments = {
            **others,
            **{field.name: given.get(name, field.default) for name, field in fields.items()},
        }
        read = self.handler.signature_model.parse_values_from_connection_kwargs(request, arguments)
        return {field.name: read[field.name] for field in fields.values()}

    def _keep(self, query: bytes, values: Mapping[str, Any]) -> None:
        if len(query) <= KEPT_QUERY_BYTES:
            if len(self.queries) >= KEPT_QUERIES:
                self.queries.clear()
            self.queries[query] = values

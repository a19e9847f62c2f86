"""The API's documentation at `/docs`: the OpenAPI document and a page to read and try it.

The page works without internet: Swagger UI is vendored and everything comes from this host,
which its Content-Security-Policy enforces. It never states what the routes themselves state;
it only adds what `http` does around each of them: who may call, and which errors there are.
"""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from inspect import cleandoc
from pathlib import Path
from typing import Any

import litestar
from litestar import Response, Router, get
from litestar.enums import MediaType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityRequirement, SecurityScheme
from litestar.params import FromPath
from litestar.plugins import ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from msgspec import Struct

from messaging_server import errors
from messaging_server.errors import DomainError, NotFound
from messaging_server.http import PUBLIC, Failure, Request

PATH = "/docs"
DISTRIBUTION = "messaging_server"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Inline styles only: Swagger UI sets them on its elements, and its icons are `data:` URLs."""

DESCRIPTION = """\
A shared inbox that triages itself. Every answer is `{"status":"success","data":…}` or
`{"status":"error","error":{…}}`.

To try calls here, send `POST /api/v1/auth/login` first: the page keeps the token until it is
closed. The WebSockets at `/ws` and, for visitors, at `/ws/public` are described in
[asyncapi.json](/docs/asyncapi.json), this page's own source is
[openapi.json](/docs/openapi.json).
"""

TOKEN = SecurityScheme(
    type="http",
    scheme="bearer",
    bearer_format="JWT",
    description="The `token` of `POST /api/v1/auth/login`.",
)
API_KEY = SecurityScheme(
    type="http",
    scheme="bearer",
    description="The `key` of `POST /api/v1/api-keys`, like `ik_…`; an ADMIN makes it.",
)
SESSION = SecurityScheme(
    type="http",
    scheme="bearer",
    bearer_format="JWT",
    description="The `sessionToken` of `POST /api/public/v1/inboxes/{inbox_id}/sessions`.",
)


# --- Files ------------------------------------------------------------------------------------


class Asset(Struct, frozen=True, kw_only=True):
    """A file of the page, compressed, as nearly every client takes it."""

    gzipped: bytes
    media_type: str


def _load_assets() -> dict[str, Asset]:
    here = Path(__file__).parent
    vendor, page = here / "vendor" / "swagger-ui", here / "docs_page"
    script, style = "text/javascript", "text/css"
    return {
        "swagger-ui-bundle.js": Asset(
            gzipped=(vendor / "swagger-ui-bundle.js.gz").read_bytes(), media_type=script
        ),
        "swagger-ui.css": Asset(
            gzipped=(vendor / "swagger-ui.css.gz").read_bytes(), media_type=style
        ),
        "page.js": Asset(
            gzipped=gzip.compress((page / "page.js").read_bytes(), mtime=0), media_type=script
        ),
        "page.css": Asset(
            gzipped=gzip.compress((page / "page.css").read_bytes(), mtime=0), media_type=style
        ),
    }


def _digest(assets: Mapping[str, Asset]) -> str:
    digest = hashlib.sha256()
    for asset in assets.values():
        digest.update(asset.gzipped)
    return digest.hexdigest()[:12]


ASSETS = _load_assets()
ASSETS_PATH = f"{PATH}/assets/{_digest(ASSETS)}"
"""Names the content, so that browsers may keep it forever and a new version is fetched at once."""

PAGE = (
    (Path(__file__).parent / "docs_page" / "index.html")
    .read_text(encoding="utf-8")
    .replace("@assets", ASSETS_PATH)
    .encode()
)


@get(f"{ASSETS_PATH}/{{name:str}}", opt=PUBLIC, include_in_schema=False)
async def fetch_asset(request: Request, name: FromPath[str]) -> Response[bytes]:
    """A script or style of the page."""
    asset = ASSETS.get(name)
    if asset is None:
        raise NotFound("Not found")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    content = asset.gzipped
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        content = gzip.decompress(content)
    return Response(content, media_type=asset.media_type, headers=headers)


route_handlers: list[Any] = [fetch_asset]


# --- Page and document ------------------------------------------------------------------------


class PagePlugin(OpenAPIRenderPlugin):
    """The page; the document it shows is fetched by its script."""

    def render(
        self,
        request: litestar.Request[Any, Any, Any],  # noqa: ARG002  # Litestar's signature
        openapi_schema: dict[str, Any],  # noqa: ARG002
    ) -> bytes:
        return PAGE


async def refuse_unknown_page(response: Response[Any]) -> Response[Any]:
    """Litestar's router answers an unknown path below its own with a 404 page of its own."""
    if response.status_code == NotFound.status:
        raise NotFound("Not found")
    return response


def openapi_config() -> OpenAPIConfig:
    """What `Litestar(openapi_config=…)` needs; `route_handlers` and `DocsPlugin` go with it."""
    router = Router(
        PATH,
        route_handlers=[],
        opt=PUBLIC,
        include_in_schema=False,
        after_request=refuse_unknown_page,
        response_headers={"Content-Security-Policy": PAGE_POLICY},
    )
    return OpenAPIConfig(
        title="messaging_server",
        version=_version(),
        description=DESCRIPTION,
        components=Components(
            security_schemes={"token": TOKEN, "apiKey": API_KEY, "session": SESSION}
        ),
        security=[{"token": []}],
        openapi_router=router,
        render_plugins=[
            PagePlugin(path="/"),
            JsonRenderPlugin(path="/openapi.json", media_type=MediaType.JSON),
        ],
    )


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+uninstalled"


# --- What the edge adds to every route --------------------------------------------------------


class DocsPlugin(ReceiveRoutePlugin):
    """Documents each route by its docstring, its `opt` keys and the contract's errors.

    What a route states itself (a summary, a description, a status) stays.
    """

    def receive_route(self, route: BaseRoute) -> None:
        if not isinstance(route, HTTPRoute):
            return
        for handler in route.route_handlers:
            summary, _, description = cleandoc(handler.fn.__doc__ or "").partition("\n\n")
            handler.summary = handler.summary or " ".join(summary.split()) or None
            handler.description = handler.description or description or None
            handler.security = _security(handler)
            failures = {error.status: _response(error) for error in _failures(route, handler)}
            handler.responses = {**failures, **(handler.responses or {})}


def _security(handler: HTTPRouteHandler) -> list[SecurityRequirement]:
    if handler.opt.get("public"):
        return [{}]
    if handler.opt.get("visitor"):
        return [{"session": []}]
    return [{"apiKey": []}] if handler.opt.get("api_key") else [{"token": []}]


def _failures(route: HTTPRoute, handler: HTTPRouteHandler) -> Iterator[type[DomainError]]:
    has_body = "data" in handler.parsed_fn_signature.parameters
    yield errors.ValidationFailed
    if has_body or not handler.opt.get("public"):
        yield errors.Unauthenticated
        yield errors.Forbidden
    if route.path_parameters:
        yield errors.NotFound
    if has_body:
        yield from (errors.Conflict, errors.TooLarge, errors.UnsupportedMediaType)
    yield from (errors.RateLimited, errors.Unavailable)


def _response(error: type[DomainError]) -> ResponseSpec:
    description = f"`{error.code}`: {cleandoc(error.__doc__ or '')}"
    return ResponseSpec(Failure, description=description, generate_examples=False)

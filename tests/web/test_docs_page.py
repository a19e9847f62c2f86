"""`/docs` is public, complete and asks no other host for anything."""

import gzip
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from litestar import Litestar, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from messaging_server import edge, errors, http
from messaging_server.cors import Cors
from messaging_server.http import ADMIN_ONLY, API_KEY, PREFIX, PUBLIC, Success
from messaging_server.web import docs

URL_ATTRIBUTE = re.compile(r'(?:src|href|action)="([^"]*)"')


class Note(msgspec.Struct):
    text: str


@get("/notes", opt=ADMIN_ONLY)
async def list_notes() -> Success[list[Note]]:
    """All notes."""
    return Success(data=[])


@post("/notes/{note_id:int}", opt=API_KEY)
async def write_note(note_id: FromPath[int], data: JSONBody[Note]) -> Success[Note]:
    """Write a note.

    The **older** one is lost.
    """
    return Success(data=data)


@get("/weather", opt=PUBLIC)
async def fetch_weather() -> Success[str]:
    return Success(data="sunny")


async def refuse(*_: object) -> Any:
    raise errors.Unauthenticated("no")


def create_app() -> edge.Edge:
    authenticator = http.Authenticator(user=refuse, api_key=refuse, visitor=refuse)
    app = Litestar(
        [
            Router(PREFIX, route_handlers=[list_notes, write_note, fetch_weather]),
            *docs.route_handlers,
        ],
        guards=[http.authorize],
        exception_handlers=edge.EXCEPTION_HANDLERS,
        request_class=http.Request,
        plugins=[docs.DocsPlugin()],
        openapi_config=docs.openapi_config(),
        state=State({"authenticator": authenticator}),
    )
    return edge.Edge(app, Cors(public_prefix="/public", public_origins=refuse), access_log=False)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http_client:
        yield http_client
    server.should_exit = True
    thread.join()


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/docs/openapi.json")
    assert response.headers["content-type"] == "application/json"
    document: dict[str, Any] = response.json()
    return document


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_page_is_public_html_with_its_own_policy(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    [policy] = response.headers.get_list("content-security-policy")
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert directives["connect-src"] == "'self'"
    assert "http" not in policy


def test_page_refers_to_this_host_only_and_has_no_inline_script(client: httpx.Client) -> None:
    page = client.get("/docs").text
    urls = URL_ATTRIBUTE.findall(page)
    assert len(urls) >= 5
    assert all(url == "data:," or re.match(r"/docs/", url) for url in urls), urls
    assert "//" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=", page)


def test_every_asset_of_the_page_is_served_for_good(client: httpx.Client) -> None:
    urls = [url for url in URL_ATTRIBUTE.findall(client.get("/docs").text) if "/assets/" in url]
    assert {url.rsplit("/", 1)[1] for url in urls} == set(docs.ASSETS)
    for url in urls:
        response = client.get(url)
        assert response.status_code == 200
        kind = "text/javascript" if url.endswith(".js") else "text/css"
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["content-encoding"] == "gzip"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_asset_for_a_client_without_gzip(client: httpx.Client) -> None:
    url = f"{docs.ASSETS_PATH}/page.js"
    response = client.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in response.headers
    assert response.content == gzip.decompress(docs.ASSETS["page.js"].gzipped)


def test_own_scripts_and_styles_name_no_other_host() -> None:
    for name in ("page.js", "page.css"):
        assert b"//" not in re.sub(rb"\s// .*", b"", gzip.decompress(docs.ASSETS[name].gzipped))
    style = gzip.decompress(docs.ASSETS["swagger-ui.css"].gzipped)
    assert not re.search(rb"@import|url\((?![\"']?data:)", style)


@pytest.mark.parametrize("path", ["nope", "nope.json", "assets/0123/page.js", "assets/page.js"])
def test_unknown_path_is_the_contracts_404(client: httpx.Client, path: str) -> None:
    response = client.get(f"/docs/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_document_says_who_may_call(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {(s["type"], s["scheme"]) for s in schemes.values()} == {("http", "bearer")}
    paths = document["paths"]
    assert paths[f"{PREFIX}/notes"]["get"]["security"] == [{"token": []}]
    assert paths[f"{PREFIX}/notes/{{note_id}}"]["post"]["security"] == [{"apiKey": []}]
    assert paths[f"{PREFIX}/weather"]["get"]["security"] == [{}]
    assert not [path for path in paths if path.startswith("/docs")]


def test_document_describes_routes_by_their_docstrings(document: dict[str, Any]) -> None:
    write = document["paths"][f"{PREFIX}/notes/{{note_id}}"]["post"]
    assert write["summary"] == "Write a note."
    assert write["description"] == "The **older** one is lost."
    assert "description" not in document["paths"][f"{PREFIX}/notes"]["get"]


def test_document_has_the_contracts_errors(document: dict[str, Any]) -> None:
    responses = document["paths"][f"{PREFIX}/notes/{{note_id}}"]["post"]["responses"]
    failures = {"400", "401", "403", "404", "409", "413", "415", "429", "503"}
    assert set(responses) == failures | {"201"}
    for status in failures:
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Failure"}
    weather = document["paths"][f"{PREFIX}/weather"]["get"]["responses"]
    assert set(weather) == {"200", "400", "429", "503"}

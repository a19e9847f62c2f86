"""The documentation says what the code does: names are compared, examples run."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec import Struct
from prometheus_client.metrics import MetricWrapperBase

from messaging_server import metrics, models
from messaging_server.__main__ import main
from messaging_server.analysis.ledger_queries import UsageItem
from messaging_server.analysis.service import AnalysisUsage, BudgetState
from messaging_server.app import create_app
from messaging_server.config import Config
from messaging_server.config_sources import (
    CONVENTIONAL_VARIABLES,
    ENVIRONMENT_PREFIX,
    load_config,
)
from messaging_server.conversations.receipts import Receipt, ReceiptsResult
from messaging_server.dashboard.service import AiState, Metrics, PriorityBreakdown
from messaging_server.errors import DomainError
from messaging_server.events import Event
from messaging_server.inboxes.service import InboundResult, ShownApiKey
from messaging_server.inboxes.settings import PublicInbox
from messaging_server.inboxes.visitors import SessionLead, VisitorSession
from messaging_server.postgres import EmbeddedPostgres
from messaging_server.realtime import protocol, public_protocol
from messaging_server.users.service import Login
from tests.conftest import live_server, make_config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PAGE_PARTS = re.compile(r"/docs/(assets/.+|\{\})")
"""What the page at /docs is made of; nobody calls it by hand."""

Routes = dict[tuple[str, str], HTTPRouteHandler | None]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(text: str, level: int) -> dict[str, str]:
    """What stands under each heading of this level."""
    parts = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows whose first cell is one name in backticks."""
    lines = re.findall(r"^\| `[^`]+` \|.*$", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def name_of(cell: str) -> str:
    return cell.strip("` ")


def names_in(text: str) -> set[str]:
    """All words in backticks, those inside of `{a,b}` too."""
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}


def fields_of(struct: Any) -> set[str]:
    """The field names as they stand in JSON."""
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def subclasses(kind: type) -> Iterator[type]:
    for direct in kind.__subclasses__():
        yield direct
        yield from subclasses(direct)


def template(path: str) -> str:
    """`path` with its parameters' names and types left out."""
    return re.sub(r"\{[^}]*\}", "{}", path)


# --- Routes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def application() -> Litestar:
    return create_app(make_config("postgresql://nowhere/nothing"))


@pytest.fixture(scope="module")
def routes(application: Litestar) -> Routes:
    found: Routes = {}
    for route in application.routes:
        path = template(route.path_format)
        if not isinstance(route, HTTPRoute):
            found["GET", path] = None
        elif not PAGE_PARTS.fullmatch(path):
            for handler in route.route_handlers:
                for method in handler.http_methods - {"OPTIONS"}:
                    found[method, path] = handler
    return found


@pytest.fixture(scope="module")
def documented() -> dict[tuple[str, str], str]:
    found = {}
    for heading, text in sections(read("docs/api.md"), 3).items():
        method, _, path = heading.partition(" ")
        if path:
            found[method, template(path)] = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return found


def test_every_route_is_documented_and_exists(
    routes: Routes, documented: dict[tuple[str, str], str]
) -> None:
    optional = {("GET", "/admin")}
    assert set(documented) - optional == set(routes) - optional
    assert optional <= set(documented)


OPTIONS = (
    ("public", "anyone"),
    ("api_key", "API key"),
    ("visitor", "visitor"),
    ("admin_only", "ADMIN"),
)


def test_routes_say_who_may_call_them(
    routes: Routes, documented: dict[tuple[str, str], str]
) -> None:
    for key, handler in routes.items():
        if handler is None:
            continue
        who = "any user"
        for option, word in OPTIONS:
            if handler.opt.get(option):
                who = word
        assert documented[key].strip().startswith(f"Who: {who}"), key


def test_routes_say_their_status_parameters_and_fields(
    application: Litestar, routes: Routes, documented: dict[tuple[str, str], str]
) -> None:
    query_names = {
        (method.upper(), template(path)): [
            parameter["name"]
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query"
        ]
        for path, operations in application.openapi_schema.to_schema()["paths"].items()
        for method, operation in operations.items()
    }
    for key, handler in routes.items():
        if handler is None or not key[1].startswith("/api/"):
            continue
        text = documented[key]
        assert f" {handler.status_code} with" in text.splitlines()[1], key
        expected = set(query_names[key])
        if handler.parsed_data_field is not None:
            expected |= fields_of(handler.parsed_data_field.annotation)
        assert not expected - names_in(text), key


@pytest.mark.parametrize(
    ("heading", "shapes"),
    [
        ("User", [models.User]),
        ("Lead", [models.Lead]),
        ("Inbox", [models.Inbox]),
        ("PublicMessage", [models.PublicMessage, models.PublicSender]),
        ("POST /api/v1/receipts", [ReceiptsResult, Receipt]),
        (
            "POST /api/public/v1/inboxes/{inbox_id}/sessions",
            [VisitorSession, SessionLead],
        ),
        ("GET /api/public/v1/inboxes/{inbox_id}", [PublicInbox]),
        (
            "Conversation",
            [
                models.Conversation,
                models.AiView,
                models.LastMessage,
                models.AssignedAgent,
                models.Urgency,
            ],
        ),
        ("Message", [models.Message, models.Sender]),
        ("Analysis", [models.Analysis, models.Feedback]),
        ("ApiKey", [models.ApiKey]),
        ("Webhook", [models.Webhook]),
        ("WebhookDelivery", [models.WebhookDelivery]),
        ("GET /api/v1/dashboard/metrics", [Metrics, PriorityBreakdown, AiState]),
        ("GET /api/v1/analysis/usage", [AnalysisUsage, BudgetState, UsageItem]),
        ("POST /api/v1/inbound", [InboundResult]),
        ("POST /api/v1/api-keys", [ShownApiKey]),
        ("POST /api/v1/auth/login", [Login, models.UserIdentity]),
    ],
)
def test_shapes_have_all_their_fields(heading: str, shapes: list[type[Struct]]) -> None:
    text = sections(read("docs/api.md"), 3)[heading]
    for shape in shapes:
        assert not fields_of(shape) - names_in(text), shape


# --- Tables -----------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A default as TOML writes it."""
    return "[]" if value == () else msgspec.json.encode(value).decode()


def test_every_configuration_key_is_documented() -> None:
    documented = {
        (section, *row[:3])
        for section, text in sections(read("docs/config.md"), 2).items()
        for row in rows(text)
    }
    conventional: dict[tuple[str, str], list[str]] = {}
    for variable, name in CONVENTIONAL_VARIABLES.items():
        conventional.setdefault(name, []).append(f"`{variable}`")
    expected = set()
    for section in Config.__struct_fields__:
        default = getattr(Config(), section)
        for key in default.__struct_fields__:
            variables = [f"`{ENVIRONMENT_PREFIX}{section}__{key}`".upper()]
            variables += conventional.get((section, key), [])
            value = f"`{shown(getattr(default, key))}`"
            expected.add((f"[{section}]", f"`{key}`", value, ", ".join(variables)))
    assert documented == expected


def test_documented_variables_reach_their_keys() -> None:
    config = load_config(
        None,
        {
            "MESSAGING_ANALYSIS__QUIET_SECONDS": "2",
            "MESSAGING_SERVER__ALLOWED_ORIGINS": "https://a.example, https://b.example",
            "MESSAGING_AI__TAGS": '[{"name":"billing"}]',
            "DATABASE_URL": "postgresql://the-usual/one",
            "MESSAGING_DATABASE__URL": "postgresql://ours/wins",
        },
        {},
    )
    assert config.analysis.quiet_seconds == 2
    assert config.server.allowed_origins == ("https://a.example", "https://b.example")
    assert config.ai.tags[0].name == "billing"
    assert config.database.url == "postgresql://ours/wins"


def test_config_toml_has_every_key_at_its_default() -> None:
    text = re.sub(r"^# (\w+ = |\[\[)", r"\1", read("config.toml"), flags=re.MULTILINE)
    values = tomllib.loads(text)
    tag, price = values["ai"].pop("tags")[0], values["ai"].pop("prices")[0]
    assert set(tag) == {"name", "description"}
    assert set(price) == {"model", "input", "output", "cached"}
    expected = msgspec.to_builtins(Config())
    del expected["ai"]["tags"], expected["ai"]["prices"]
    assert values == {
        section: {key: list(value) if value == () else value for key, value in keys.items()}
        for section, keys in expected.items()
    }


def test_every_error_code_is_documented() -> None:
    documented = {}
    table, _, _ = read("docs/errors.md").partition("## ")
    for code, status, _, retry in rows(table):
        documented[name_of(code)] = (int(status), retry.startswith("yes"))
    kinds = [kind for kind in subclasses(DomainError) if "code" in vars(kind)]
    assert documented == {kind.code: (kind.status, kind.retryable) for kind in kinds}  # type: ignore[attr-defined]
    assert {code.value for code in protocol.ErrorCode} <= set(documented)


def test_every_event_is_documented() -> None:
    documented = {name_of(row[0]): row for row in rows(read("docs/events.md")) if len(row) == 4}
    events = {
        kind.__name__: kind
        for kind in subclasses(Event)
        if kind.__module__.startswith("messaging_server.")
    }
    assert set(documented) == set(events)
    for name, kind in events.items():
        assert names_in(documented[name][2]) >= set(kind.__struct_fields__), name  # type: ignore[attr-defined]


def test_every_metric_is_documented() -> None:
    documented = {}
    for row in rows(read("docs/metrics.md")):
        documented[name_of(row[0])] = (row[1], tuple(re.findall(r"`(\w+)`", row[2])))
    expected = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            name = f"{metric._name}_total" if metric._type == "counter" else metric._name
            expected[name] = (metric._type, metric._labelnames)
    assert documented == expected


def test_every_socket_event_and_close_code_is_documented() -> None:
    text = read("docs/socket.md")
    for_visitors = sections(text, 2)["For visitors"]
    public = (*public_protocol.PUBLIC_COMMANDS, *public_protocol.PUBLIC_PUSHES)
    agents = (*protocol.COMMANDS, *protocol.PUSHES)
    for kinds, where in ((agents, text.replace(for_visitors, "")), (public, for_visitors)):
        events = {str(kind.__struct_config__.tag) for kind in kinds}
        assert not {event for event in events if f"`{event}`" not in where}
    numbers = set(re.findall(r"\b\d{4}\b", text))
    assert not {code.name for code in protocol.Close if str(code.value) not in numbers}


def test_every_command_is_documented() -> None:
    text = read("README.md") + read("docs/operations.md") + read("docs/config.md")
    for command in main.commands:
        assert command == "serve" or f"messaging_server {command}" in text, command


def test_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    block = "\n".join(contracts[0]["layers"])
    assert f"```\n{block}\n```" in read("docs/architecture.md")


# --- Pages ------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and GitLab make it."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {ROOT / "README.md"}
    waiting = list(linked)
    while waiting:
        page = waiting.pop()
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            found = target.glob("*.md") if target.is_dir() else [target]
            new = {each for each in found if each in PAGES} - linked
            linked |= new
            waiting += new
    assert linked == set(PAGES)


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < 150


# --- Examples ---------------------------------------------------------------------------------


def shell_examples(name: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", read(name), flags=re.DOTALL | re.MULTILINE)


def run_shell(script: str) -> str:
    """With the `python` that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_readmes_first_steps_work(dsn: str) -> None:
    *steps, look = (example for example in shell_examples("README.md") if "curl" in example)
    assert len(steps) == 3
    until_analysed = f"""
        look() {{ {look} }}
        until look | grep -q '"summary":"'; do sleep 0.2; done
        look
    """
    with live_server(dsn) as server:
        script = "".join([*steps, until_analysed])
        assert "http://127.0.0.1:3000/" in script
        output = run_shell(script.replace("http://127.0.0.1:3000/", f"{server.url}/"))
    _registered, sent, found = output.replace("}{", "}\n{").splitlines()
    assert msgspec.json.decode(sent)["data"]["seq"] == 2
    (conversation,) = msgspec.json.decode(found)["data"]["items"]
    assert conversation["ai"]["provider"] == "local"
    assert conversation["waitingSince"] is None


def test_the_backup_can_be_made_and_restored(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    dump, restore = (
        example
        for example in shell_examples("docs/operations.md")
        if "pg_dump" in example or "pg_restore" in example
    )
    data = Path(postgres.connect_arguments()["host"]).parent.parent
    script = f"cd {tmp_path}\n{dump}\n{restore}"
    assert "DATA=/var/lib/messaging_server\n" in script
    run_shell(script.replace("DATA=/var/lib/messaging_server\n", f"DATA={data}\n"))
    assert (tmp_path / "messaging.dump").read_bytes().startswith(b"PGDMP")

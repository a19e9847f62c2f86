"""What analyses used and cost, as ADMINs and the dashboard see it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.client import Api, LiveServer
from tests.conftest import live_server

TODAY = datetime.now(UTC).date()

ENTRY = """
    insert into analyses (
        conversation_id, status, trigger, provider, model, through_seq, attempt, calls,
        tokens_in, tokens_out, tokens_cached, cost_micro_dollars, created_at
    )
    values (null, $1, $2, $3, $4, 1, 1, $5, $6, $7, 10, $8, $9)
"""


@pytest.fixture(scope="module")
def priced(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A provider with a price and a budget that nobody ever asks."""
    path = tmp_path_factory.mktemp("usage") / "key"
    path.write_text("sk-from-a-file\n")
    settings = {
        "MESSAGING_AI__PROVIDER": "anthropic",
        "MESSAGING_AI__MODEL": "m",
        "MESSAGING_AI__API_KEY_FILE": str(path),
        "MESSAGING_AI__PRICES": '[{"model":"m","input":2,"output":8}]',
        "MESSAGING_AI__DAILY_BUDGET_DOLLARS": "0.000001",
        "MESSAGING_AI__MONTHLY_BUDGET_DOLLARS": "5",
    }
    with live_server(module_dsn, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def admin(priced: LiveServer, module_dsn: str) -> Iterator[Api]:
    asyncio.run(insert(module_dsn))
    with Api.first_admin(priced.url) as admin:
        yield admin


def at(days_ago: int, hour: int = 12) -> datetime:
    return datetime(TODAY.year, TODAY.month, TODAY.day, hour, tzinfo=UTC) - timedelta(days_ago)


async def insert(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    for row in (
        ("SUCCEEDED", "message", "openai", "m", 1, 100, 10, 280, at(0, 0)),
        ("FAILED", "message", "openai", "m", 2, 200, 20, 560, at(0, 23)),
        ("SUCCEEDED", "manual", "openai", "m", 1, 50, 5, 140, at(0)),
        ("SUCCEEDED", "message", "local", "local-1", 1, 0, 0, 0, at(1)),
        ("INTERRUPTED", "message", "openai", "m2", 1, 0, 0, 9_000, at(40)),
    ):
        await connection.execute(ENTRY, *row)
    await connection.close()


def only_costly(usage: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in usage["items"] if item["provider"] != "local"]


def test_usage_by_day_model_and_trigger(admin: Api) -> None:
    usage = admin.get("/analysis/usage")
    assert (usage["from"], usage["to"]) == (str(TODAY - timedelta(29)), str(TODAY))
    manual, message = only_costly(usage)
    assert manual["trigger"] == "manual"
    assert message == {
        "day": str(TODAY),
        "provider": "openai",
        "model": "m",
        "trigger": "message",
        "analyses": 2,
        "calls": 3,
        "tokensIn": 300,
        "tokensOut": 30,
        "tokensCached": 20,
        "costMicroDollars": 840,
        "costDollars": 0.00084,
    }
    assert usage["total"]["costMicroDollars"] == 980
    assert usage["budget"]["monthlyDollars"] == 5


@pytest.mark.parametrize(
    ("first", "last", "cost"),
    [
        (TODAY, TODAY, 980),
        (TODAY - timedelta(1), TODAY - timedelta(1), 0),
        (TODAY - timedelta(40), TODAY, 9_980),
        (TODAY - timedelta(365), TODAY - timedelta(40), 9_000),
    ],
)
def test_both_days_are_included(admin: Api, first: date, last: date, cost: int) -> None:
    usage = admin.get("/analysis/usage", **{"from": str(first), "to": str(last)})
    assert usage["total"]["costMicroDollars"] == cost


def test_a_time_stands_for_its_day_in_utc(admin: Api) -> None:
    late = f"{TODAY}T23:30:00-02:00"
    usage = admin.get("/analysis/usage", **{"from": f"{TODAY}T00:00:00Z", "to": late})
    assert (usage["from"], usage["to"]) == (str(TODAY), str(TODAY + timedelta(1)))


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"to": "2026-02-30"},
        {"from": "2026-01-02", "to": "2026-01-01"},
        {"from": "2020-01-01", "to": "2026-01-01"},
        {"to": "0001-01-01T00:00:00+23:00"},
        {"to": "0001-01-02"},
        {"since": "2026-01-01"},
    ],
)
def test_bad_periods(admin: Api, query: dict[str, str]) -> None:
    assert admin.get("/analysis/usage", expect=400, **query)["code"] == "validation_error"


def test_only_admins(admin: Api) -> None:
    with admin.new_user() as agent:
        assert agent.get("/analysis/usage", expect=403)["code"] == "forbidden"
    with Api(admin.url) as stranger:
        stranger.get("/analysis/usage", expect=401)


def test_over_budget_local_goes_on_and_the_dashboard_says_so(
    admin: Api, priced: LiveServer
) -> None:
    assert admin.get("/dashboard/metrics")["ai"]["budgetSpent"] is False
    conversation_id = admin.new_conversation()["id"]
    admin.send(conversation_id, "You charged me twice")
    with admin.socket() as socket:
        socket.call("conversation:join", conversation_id)
        admin.post(f"/conversations/{conversation_id}/analyze")
        socket.wait_event("conversation:ai:update")
    assert admin.get(f"/conversations/{conversation_id}")["ai"]["provider"] == "local"
    assert admin.get("/dashboard/metrics")["ai"] == {
        "provider": "anthropic",
        "model": "m",
        "fallback": "local",
        "budgetSpent": True,
    }
    budget = admin.get("/analysis/usage")["budget"]
    assert (budget["spent"], budget["spentTodayDollars"]) == (True, 0)
    priced.assert_no_defects()

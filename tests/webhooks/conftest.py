"""Servers that may send to this machine, and receivers on it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client import Api, LiveServer
from tests.conftest import live_server
from tests.webhooks.receiver import Receiver

LOCAL = {"MESSAGING_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def server(module_dsn: str) -> Iterator[LiveServer]:
    with live_server(module_dsn, **LOCAL) as running:
        yield running
        running.assert_no_defects()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().serving() as serving:
        yield serving


class Hooks:
    """Makes webhooks and deletes them again."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.made: list[str] = []

    def make(self, url: str, **fields: Any) -> dict[str, Any]:
        webhook: dict[str, Any] = self.api.post("/webhooks", {"url": url, **fields}, expect=201)
        self.made.append(webhook["id"])
        return webhook

    def deliveries(self, webhook_id: str, **query: Any) -> list[dict[str, Any]]:
        path = f"/webhooks/{webhook_id}/deliveries"
        items: list[dict[str, Any]] = []
        found = self.api.get(path, limit=100, **query)
        items += found["items"]
        while found["nextCursor"]:
            found = self.api.get(path, limit=100, cursor=found["nextCursor"], **query)
            items += found["items"]
        return items


@pytest.fixture
def hooks(api: Api) -> Iterator[Hooks]:
    hooks = Hooks(api)
    yield hooks
    for webhook_id in hooks.made:
        api.delete(f"/webhooks/{webhook_id}")

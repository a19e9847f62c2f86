"""Schemathesis makes calls of the OpenAPI document: no 5xx, and each answer as it is described."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.client import Api, LiveServer
from tests.conftest import live_server

SECONDS = 15
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]
ENDS_THE_TOKEN = "^/api/v1/(auth/(logout|password)|users/)"
"""It finds the caller's id, and demotes the caller."""


@pytest.fixture(scope="module")
def server(module_dsn: str) -> Iterator[LiveServer]:
    """One of its own: it also finds and deletes inboxes, with the keys of other tests."""
    with live_server(module_dsn) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: LiveServer) -> Iterator[Api]:
    with Api.first_admin(server.url) as admin:
        yield admin


def test_the_document_is_true(server: LiveServer, api: Api, tmp_path: Path) -> None:
    document = httpx.get(f"{server.url}/docs/openapi.json")
    assert document.status_code == 200
    with api.new_user("ADMIN") as caller:
        url = f"{server.url}/docs/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", url]
        command += ["--header", f"Authorization: Bearer {caller.token}", "--no-color"]
        command += ["--checks", ",".join(CHECKS), "--max-time", str(SECONDS)]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "20"]
        command += ["--exclude-path-regex", ENDS_THE_TOKEN, "--generation-deterministic"]
        command += ["--warnings", "off"]
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-2_000:]
        assert "/api/v1/conversations" in document.text
        caller.get("/auth/me", expect=200)
    server.assert_no_defects()

"""The same over S3: a real server of its protocol (moto), on loopback."""

import time
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from messaging_server.postgres import EmbeddedPostgres
from tests.api.test_contract import assert_failure
from tests.attachments.files import MIB, forget_peak, image, peak_bytes
from tests.client import Api, LiveServer, together, wait_until
from tests.conftest import fresh_database, live_server

BUCKET = "inbox-files"
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(store: str) -> Any:
    s3 = boto3.resource(
        "s3",
        endpoint_url=store,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    return s3.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def s3_server(postgres: EmbeddedPostgres, store: str, bucket: Any) -> Iterator[LiveServer]:
    environment = {
        "MESSAGING_STORAGE__URL": f"s3://{BUCKET}/some/prefix",
        "AWS_ENDPOINT_URL": store,
        "AWS_REGION": "us-east-1",
        **KEYS,
    }
    with fresh_database(postgres) as dsn, live_server(dsn, **environment) as server:
        yield server
        server.assert_no_defects()


@pytest.fixture(scope="module")
def s3_api(s3_server: LiveServer) -> Iterator[Api]:
    with Api.first_admin(s3_server.url) as admin:
        yield admin


def keys_of(bucket: Any, attachment: dict[str, Any]) -> list[str]:
    return [entry.key for entry in bucket.objects.all() if attachment["id"] in entry.key]


def test_a_file_is_stored_and_read(s3_api: Api, bucket: Any) -> None:
    attachment = s3_api.upload(image("PNG"), "a.png")
    keys = keys_of(bucket, attachment)
    assert len(keys) == 2
    assert all(key.startswith("some/prefix/") for key in keys)
    assert httpx.get(attachment["url"]).content == image("PNG")
    assert httpx.get(attachment["thumbnailUrl"]).headers["content-type"] == "image/webp"
    part = httpx.get(attachment["url"], headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


def test_a_large_file_goes_in_parts(s3_api: Api, bucket: Any) -> None:
    content = bytes(range(256)) * (20 * MIB // 256)
    attachment = s3_api.upload(content)
    (key,) = keys_of(bucket, attachment)
    assert bucket.Object(key).content_length == len(content)
    assert bucket.Object(key).e_tag.strip('"').endswith("-4")
    assert httpx.get(attachment["url"]).content == content
    part = httpx.get(attachment["url"], headers={"Range": f"bytes={6 * MIB}-{6 * MIB + 9}"})
    assert part.content == content[:10]


def test_many_at_once_need_little_memory(s3_server: LiveServer, s3_api: Api) -> None:
    s3_api.upload(b"x" * 12 * MIB)
    forget_peak(s3_server.pid)
    before = peak_bytes(s3_server.pid)
    uploads = together([lambda: s3_api.upload(b"x" * 12 * MIB)] * 16, threads=16)
    assert len({attachment["id"] for attachment in uploads}) == 16
    assert peak_bytes(s3_server.pid) - before < 16 * 12 * MIB / 2


def test_erasing_a_lead_removes_the_objects(s3_api: Api, bucket: Any) -> None:
    conversation = s3_api.new_conversation()
    attachment = s3_api.upload(image("PNG"), "a.png")
    s3_api.send(conversation["id"], attachmentIds=[attachment["id"]])
    s3_api.delete(f"/leads/{conversation['lead']['id']}")
    wait_until(lambda: not keys_of(bucket, attachment), 25)


def test_a_lost_object_is_a_404(s3_api: Api, bucket: Any) -> None:
    attachment = s3_api.upload()
    for key in keys_of(bucket, attachment):
        bucket.Object(key).delete()
    assert_failure(httpx.get(attachment["url"]), 404)


def test_a_store_that_is_away_is_a_503(dsn: str) -> None:
    environment = {
        "MESSAGING_STORAGE__URL": f"s3://{BUCKET}",
        "MESSAGING_STORAGE__ENDPOINT": "http://127.0.0.1:9",
        "MESSAGING_STORAGE__ACCESS_KEY_ID": "a-key",
        "MESSAGING_STORAGE__SECRET_ACCESS_KEY": "a-secret-key",
    }
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        started = time.monotonic()
        response = admin.http.post("/attachments", files={"file": ("a", b"x")}, timeout=60)
        assert_failure(response, 503)
        assert time.monotonic() - started < 40
        admin.send(admin.new_conversation()["id"])
        assert "a-secret-key" not in server.log()
        server.assert_no_defects()


def test_a_bucket_that_is_not_there_is_a_503(dsn: str, store: str) -> None:
    environment = {
        "MESSAGING_STORAGE__URL": "s3://no-such-bucket",
        "AWS_ENDPOINT_URL": store,
        **KEYS,
    }
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        response = admin.http.post("/attachments", files={"file": ("a", b"x")}, timeout=60)
        assert_failure(response, 503)
        assert "no-such-bucket" in server.log()
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in server.log()

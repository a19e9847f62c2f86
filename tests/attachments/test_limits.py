"""How much, how large, how many at once, and what happens when the disk is full."""

import contextlib
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.api.test_contract import assert_failure
from tests.attachments.files import (
    FORM_TYPE,
    MIB,
    endless_form,
    forget_peak,
    image,
    part,
    peak_bytes,
    resident_bytes,
)
from tests.attachments.test_forms import open_drafts
from tests.client import Api, LiveServer, together, wait_until
from tests.conftest import fresh_database, live_server
from tests.public.site import PublicApi, Site

GIB = 1_024 * MIB
LIMIT = 26_214_400
NO_RESERVE = {"MESSAGING_STORAGE__RESERVE_MEGABYTES": "0"}
A_FILE = {"file": ("a.txt", b"hello")}


@pytest.fixture(scope="module")
def measured(postgres: EmbeddedPostgres) -> Iterator[tuple[LiveServer, Api]]:
    """A server of its own, whose memory nobody else uses, warmed up."""
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as admin,
    ):
        together([lambda: admin.upload(image("PNG"), "a.png")] * 20)
        yield server, admin
        server.assert_no_defects()


# --- Size -------------------------------------------------------------------------------------


def test_the_largest_file(api: Api) -> None:
    content = b"x" * LIMIT
    assert api.upload(content)["sizeBytes"] == LIMIT
    error = api.upload(content + b"x", expect=413)
    assert str(LIMIT) in error["message"]


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
def test_a_gigabyte_is_refused_without_memory(
    measured: tuple[LiveServer, Api], announced: bool
) -> None:
    server, admin = measured
    sent: list[int] = []
    headers = {"Content-Type": FORM_TYPE}
    if announced:
        size_bytes = sum(map(len, endless_form(0, []))) + GIB
        headers["Content-Length"] = str(size_bytes)
    forget_peak(server.pid)
    before = peak_bytes(server.pid)
    response = admin.http.post("/attachments", content=endless_form(GIB, sent), headers=headers)
    error = assert_failure(response, 413)
    assert str(LIMIT) in error["message"]
    assert response.headers["connection"] == "close"
    assert sent[0] < 100 * MIB
    assert peak_bytes(server.pid) - before < 16 * MIB
    assert open_drafts(server) == 0


def test_fifty_uploads_at_once_need_little_memory(measured: tuple[LiveServer, Api]) -> None:
    server, admin = measured
    block = bytes(range(256)) * (MIB // 256)

    def upload() -> int:
        def content() -> Iterator[bytes]:
            pieces = endless_form(20 * MIB, [])
            yield next(pieces)
            for _ in range(20):
                yield block
            yield b"\r\n--the-boundary--\r\n"

        headers = {"Content-Type": FORM_TYPE, "Authorization": f"Bearer {admin.token}"}
        url = f"{server.url}/api/v1/attachments"
        response = httpx.post(url, content=content(), headers=headers, timeout=120)
        assert response.json()["data"]["sizeBytes"] == 20 * MIB
        return response.status_code

    forget_peak(server.pid)
    before = resident_bytes(server.pid)
    assert together([upload] * 50, threads=50) == [201] * 50
    growth = peak_bytes(server.pid) - before
    print(f"50 uploads of 20 MiB at once: {growth / MIB:.1f} MiB more at the peak")
    assert growth < 64 * MIB


def test_fifty_downloads_at_once_need_little_memory(measured: tuple[LiveServer, Api]) -> None:
    server, admin = measured
    content = bytes(range(256)) * (20 * MIB // 256)
    url = admin.upload(content)["url"]
    forget_peak(server.pid)
    before = resident_bytes(server.pid)

    def download() -> int:
        with httpx.stream("GET", url, timeout=120) as answer:
            return sum(map(len, answer.iter_raw()))

    assert together([download] * 50, threads=50) == [20 * MIB] * 50
    assert peak_bytes(server.pid) - before < 64 * MIB


def test_a_reader_that_stops_costs_no_memory(measured: tuple[LiveServer, Api]) -> None:
    server, admin = measured
    url = admin.upload(b"x" * 20 * MIB)["url"]
    forget_peak(server.pid)
    before = resident_bytes(server.pid)
    with httpx.Client() as client:
        opened = [client.send(client.build_request("GET", url), stream=True) for _ in range(10)]
        admin.get("/auth/me")
        assert peak_bytes(server.pid) - before < 32 * MIB
        for answer in opened:
            answer.close()


# --- How many ---------------------------------------------------------------------------------


def test_uploads_of_a_user_are_counted(dsn: str) -> None:
    limits = {
        "MESSAGING_LIMITS__ENABLED": "true",
        "MESSAGING_LIMITS__UPLOADS_PER_MINUTE_PER_USER": "3",
    }
    with live_server(dsn, **limits) as server, Api.first_admin(server.url) as admin:
        statuses = [
            admin.http.post("/attachments", files={"file": ("a", b"x")}).status_code
            for _ in range(5)
        ]
        assert statuses[-1] == 429
        assert 3 <= statuses.count(201) <= 4  # a new minute may have begun
        agent = admin.new_user()
        assert agent.upload()["sizeBytes"] == 5


def test_uploads_of_a_visitor_are_counted(dsn: str) -> None:
    limits = {
        "MESSAGING_LIMITS__ENABLED": "true",
        "MESSAGING_LIMITS__UPLOADS_PER_MINUTE_PER_VISITOR": "2",
    }
    with live_server(dsn, **limits) as server, Api.first_admin(server.url) as admin:
        site = Site(admin)
        pages = [site.visitor(), site.visitor()]
        for page in pages:
            answers = [page.http.post("/attachments", files=A_FILE) for _ in range(4)]
            assert_failure(answers[-1], 429)
            assert int(answers[-1].headers["retry-after"]) >= 1
            assert answers[0].status_code == 201
        site.close()


def test_bytes_of_a_network_of_visitors_are_counted(dsn: str, tmp_path: Path) -> None:
    """Of all visitors together; users are not among them."""
    environment = {
        "MESSAGING_LIMITS__ENABLED": "true",
        "MESSAGING_LIMITS__UPLOAD_MEGABYTES_PER_HOUR_PER_ADDRESS": "3",
        "MESSAGING_SERVER__DATA_DIR": str(tmp_path),
    }
    two_megabytes = {"file": ("a.bin", b"x" * 2_000_000)}
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        site = Site(admin)
        assert site.visitor().http.post("/attachments", files=two_megabytes).status_code == 201
        answer = site.visitor().http.post("/attachments", files=two_megabytes)
        assert_failure(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 3_600
        assert_failure(site.visitor().http.post("/attachments", files=A_FILE), 429)
        assert admin.upload(b"x" * 4_000_000)["sizeBytes"] == 4_000_000
        stored = [path for path in (tmp_path / "attachments").rglob("*") if path.is_file()]
        assert len(stored) == 2
        assert open_drafts(server) == 0
        site.close()


def test_a_slow_sender_is_cut_off(server: LiveServer, api: Api) -> None:
    """Never idle for long, but below 16 KiB a second after ten seconds."""
    head = (
        f"POST /api/v1/attachments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n"
        f"Content-Type: {FORM_TYPE}\r\nContent-Length: 100000\r\n\r\n"
    )
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=1) as connection:
        connection.sendall(head.encode() + part(b"")[:-2])
        started = time.monotonic()
        answer = b""
        while not answer:
            assert time.monotonic() - started < 45
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65_536)
        assert time.monotonic() - started > 8
        assert answer.startswith(b"HTTP/1.1 400")
    wait_until(lambda: open_drafts(server) == 0)


def test_more_than_fit_at_once_wait(server: LiveServer, api: Api) -> None:
    """Forty senders stop in the middle; visitors are served meanwhile, then everyone."""
    resume = threading.Event()
    headers = {"Content-Type": FORM_TYPE, "Authorization": f"Bearer {api.token}"}

    def content() -> Iterator[bytes]:
        pieces = endless_form(65_536, [])
        yield next(pieces)
        resume.wait(10)
        yield from pieces

    def upload() -> int:
        url = f"{server.url}/api/v1/attachments"
        return httpx.post(url, content=content(), headers=headers, timeout=60).status_code

    site = Site(api)
    with ThreadPoolExecutor(40) as executor:
        uploads = [executor.submit(upload) for _ in range(40)]
        wait_until(lambda: open_drafts(server) == 32)
        assert site.visitor().http.post("/attachments", files=A_FILE).status_code == 201
        assert open_drafts(server) == 32
        resume.set()
        assert [each.result() for each in uploads] == [201] * 40
    site.close()


def test_one_network_does_not_take_all_places_of_visitors(server: LiveServer, api: Api) -> None:
    resume = threading.Event()
    site = Site(api)
    pages = [site.visitor() for _ in range(9)]

    def content() -> Iterator[bytes]:
        pieces = endless_form(65_536, [])
        yield next(pieces)
        resume.wait(10)
        yield from pieces

    def upload(page: PublicApi) -> int:
        headers = {"Content-Type": FORM_TYPE}
        return page.http.post("/attachments", content=content(), headers=headers).status_code

    with ThreadPoolExecutor(8) as executor:
        uploads = [executor.submit(upload, page) for page in pages[:8]]
        wait_until(lambda: open_drafts(server) == 8)
        assert_failure(pages[8].http.post("/attachments", files=A_FILE), 429)
        resume.set()
        assert [each.result() for each in uploads] == [201] * 8
    assert pages[8].http.post("/attachments", files=A_FILE).status_code == 201
    site.close()


# --- Full disks -------------------------------------------------------------------------------


def upload_until_full(admin: Api) -> list[dict[str, Any]]:
    """One MiB each, until there is no room; what was taken."""
    taken = []
    for _ in range(20):
        response = admin.http.post("/attachments", files={"file": ("a.bin", b"\1" * MIB)})
        if response.status_code != 201:
            assert_failure(response, 507)
            return taken
        taken.append(response.json()["data"])
    raise AssertionError("the disk did not get full")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="small-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        folder.rmdir()
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_loses_nothing(dsn: str, small_disk: Path) -> None:
    environment = {"MESSAGING_SERVER__DATA_DIR": str(small_disk), **NO_RESERVE}
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        conversation = admin.new_conversation()
        taken = upload_until_full(admin)
        assert len(taken) >= 4
        free = shutil.disk_usage(small_disk).free
        for size_bytes in (MIB, 2 * MIB, 20 * MIB):
            error = admin.upload(b"\1" * size_bytes, expect=507)
            assert error["code"] == "insufficient_storage"
        assert shutil.disk_usage(small_disk).free == free
        assert open_drafts(server) == 0
        message = admin.send(conversation["id"], attachmentIds=[taken[0]["id"]])
        for attachment in (*taken, *message["attachments"]):
            assert httpx.get(attachment["url"]).content == b"\1" * MIB
        admin.delete(f"/leads/{conversation['lead']['id']}")
        wait_until(lambda: shutil.disk_usage(small_disk).free > free, 25)
        assert admin.upload(b"x")["sizeBytes"] == 1
        server.assert_no_defects()


def test_uploads_leave_a_reserve(dsn: str, small_disk: Path) -> None:
    environment = {
        "MESSAGING_SERVER__DATA_DIR": str(small_disk),
        "MESSAGING_STORAGE__RESERVE_MEGABYTES": "4",
    }
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        assert 1 <= len(upload_until_full(admin)) <= 4
        assert shutil.disk_usage(small_disk).free >= 4_000_000
        admin.upload(b"\1" * 20 * MIB, expect=507)
        assert open_drafts(server) == 0
        server.assert_no_defects()


def test_a_reserve_that_no_disk_has(dsn: str, tmp_path: Path) -> None:
    environment = {
        "MESSAGING_SERVER__DATA_DIR": str(tmp_path),
        "MESSAGING_STORAGE__RESERVE_MEGABYTES": "1000000000",
    }
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        assert_failure(admin.http.post("/attachments", files=A_FILE), 507)
        assert list(tmp_path.rglob("attachments/*")) == []
        admin.send(admin.new_conversation()["id"])
        server.assert_no_defects()


def test_a_store_that_is_full_loses_nothing(dsn: str, small_disk: Path, tmp_path: Path) -> None:
    """The drafts have room, the folder of the store has none."""
    environment = {
        "MESSAGING_SERVER__DATA_DIR": str(tmp_path),
        "MESSAGING_STORAGE__URL": f"file://{small_disk}/store",
        **NO_RESERVE,
    }
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        taken = upload_until_full(admin)
        assert len(taken) >= 6
        files = sorted(path.name for path in (small_disk / "store").rglob("*") if path.is_file())
        assert files == sorted(attachment["id"] for attachment in taken)
        server.assert_no_defects()


def test_a_file_size_limit_of_the_system_is_a_507(dsn: str) -> None:
    """`ulimit -f`: for who can't mount; the write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        with live_server(dsn) as server:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            with Api.first_admin(server.url) as admin:
                assert admin.upload(b"x" * MIB)["sizeBytes"] == MIB
                admin.upload(b"x" * 3 * MIB, expect=507)
                server.assert_no_defects()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made_is_a_503(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file is in the way")
    environment = {"MESSAGING_SERVER__DATA_DIR": str(tmp_path)}
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:
        response = admin.http.post("/attachments", files={"file": ("a", b"x")})
        assert_failure(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        server.assert_no_defects()

"""What nobody has any more is removed: first the row, then the object."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.attachments.conftest import Execute
from tests.attachments.files import FORM_TYPE, MIB, form, image, part
from tests.attachments.test_forms import open_drafts
from tests.client import Api, wait_until
from tests.conftest import live_server

REMOVAL_SECONDS = 25.0


def objects_of(data_dir: Path, attachment: dict[str, Any]) -> list[Path]:
    return list((data_dir / "attachments").rglob(f"{attachment['id']}*"))


def make_old(execute: Execute, attachment: dict[str, Any], hours: float) -> None:
    execute(
        "update attachments set created_at = now() - $2 * interval '1 hour' where id = $1",
        attachment["id"],
        hours,
    )


@pytest.fixture
def waiting(execute: Execute) -> Callable[[], int]:
    """How many objects are due for removal now."""
    return lambda: execute("select count(*) from attachment_removals where due_at <= now()")[0][0]


def test_unused_uploads_go_after_a_day(
    api: Api, execute: Execute, data_dir: Path, waiting: Callable[[], int]
) -> None:
    old, young = api.upload(image("PNG"), "a.png"), api.upload()
    used = api.upload()
    api.send(api.new_conversation()["id"], attachmentIds=[used["id"]])
    for attachment, hours in ((old, 24.1), (young, 23.9), (used, 99)):
        make_old(execute, attachment, hours)
    assert len(objects_of(data_dir, old)) == 2
    wait_until(lambda: not objects_of(data_dir, old), REMOVAL_SECONDS)
    api.get(f"/attachments/{old['id']}", expect=404)
    assert httpx.get(old["url"]).status_code == 404
    assert httpx.get(old["thumbnailUrl"]).status_code == 404
    for kept in (young, used):
        assert httpx.get(kept["url"]).content == b"hello"
    wait_until(lambda: waiting() == 0)


def test_a_removed_upload_cannot_be_sent(api: Api, execute: Execute) -> None:
    attachment = api.upload()
    execute("delete from attachments where id = $1", attachment["id"])
    body = {"contentText": "x", "attachmentIds": [attachment["id"]]}
    api.post(f"/conversations/{api.new_conversation()['id']}/messages", body, expect=400)


def test_erasing_a_lead_erases_the_objects(
    api: Api,
    execute: Execute,
    data_dir: Path,
    waiting: Callable[[], int],
    remove_unused: Callable[[], None],
) -> None:
    conversation, other = api.new_conversation(), api.new_conversation()
    sent, kept = api.upload(image("JPEG"), "a.jpg"), api.upload()
    api.send(conversation["id"], attachmentIds=[sent["id"]])
    api.send(other["id"], attachmentIds=[kept["id"]])
    api.delete(f"/leads/{conversation['lead']['id']}")
    assert execute("select 1 from attachments where id = $1", sent["id"]) == []
    assert httpx.get(sent["url"]).status_code == 404
    api.get(f"/attachments/{sent['id']}", expect=404)
    remove_unused()
    wait_until(lambda: not objects_of(data_dir, sent), REMOVAL_SECONDS)
    assert httpx.get(kept["url"]).content == b"hello"
    wait_until(lambda: waiting() == 0)


def test_a_lost_object_is_a_404_and_its_removal_succeeds(
    api: Api,
    execute: Execute,
    data_dir: Path,
    waiting: Callable[[], int],
    remove_unused: Callable[[], None],
) -> None:
    attachment = api.upload()
    for path in objects_of(data_dir, attachment):
        path.unlink()
    assert httpx.get(attachment["url"]).status_code == 404
    make_old(execute, attachment, 25)
    remove_unused()
    wait_until(
        lambda: not execute("select 1 from attachments where id = $1", attachment["id"]),
        REMOVAL_SECONDS,
    )
    wait_until(lambda: waiting() == 0)


def test_what_a_crash_left_in_the_store_is_removed(
    api: Api, execute: Execute, data_dir: Path, remove_unused: Callable[[], None]
) -> None:
    """An object without a row: stored, and then the server was killed."""
    api.upload()
    orphan = data_dir / "attachments" / "ff" / "orphan"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    execute("insert into attachment_removals (storage_key) values ('ff/orphan')")
    remove_unused()
    wait_until(lambda: not orphan.exists(), REMOVAL_SECONDS)


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing(dsn: str, tmp_path: Path) -> None:
    environment = {"MESSAGING_SERVER__DATA_DIR": str(tmp_path)}
    with live_server(dsn, **environment) as server, Api.first_admin(server.url) as admin:

        def content() -> Iterator[bytes]:
            yield part(b"x" * MIB)
            wait_until(lambda: open_drafts(server) == 1)
            server.kill()
            yield form()

        headers = {"Content-Type": FORM_TYPE}
        with pytest.raises(httpx.TransportError):
            admin.http.post("/attachments", content=content(), headers=headers)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        server.start()
        assert httpx.get(admin.upload()["url"]).content == b"hello"


def test_nothing_waits_for_removal_after_an_upload(api: Api, execute: Execute) -> None:
    attachment = api.upload(image("PNG"), "a.png")
    keys = execute(
        "select storage_key from attachment_removals where storage_key like $1",
        f"%{attachment['id']}%",
    )
    assert keys == []

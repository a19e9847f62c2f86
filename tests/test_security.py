"""Secrets: tokens, passwords, keys, and the file of the signing key."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging_server.errors import StartupError, Unauthenticated, ValidationFailed
from messaging_server.models import Role
from messaging_server.security import (
    Passwords,
    Tokens,
    check_password_rules,
    hash_key,
    load_or_make_secret,
    new_api_key,
)

SECRET = "a-secret-for-tests-of-at-least-32-bytes"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(rounds=4)
    yield made
    made.close()


# --- Tokens -----------------------------------------------------------------------------------


def test_a_token_says_what_was_put_in() -> None:
    tokens = Tokens(SECRET, lifetime=timedelta(hours=1))
    user_id = uuid4()
    token, expires_at = tokens.issue(user_id, role=Role.ADMIN, version=7)
    claims = tokens.read(token)
    assert (claims.user_id, claims.version, claims.expires_at) == (user_id, 7, expires_at)
    assert timedelta(minutes=59) < expires_at - datetime.now(UTC) <= timedelta(hours=1)
    again, _ = tokens.issue(user_id, role=Role.ADMIN, version=7)
    assert again != token


def test_tokens_of_another_secret_and_expired_ones() -> None:
    tokens = Tokens(SECRET, lifetime=timedelta(hours=1))
    others = Tokens(SECRET + "!", lifetime=timedelta(hours=1))
    expired = Tokens(SECRET, lifetime=timedelta(seconds=-1))
    for bad in (others, expired):
        token, _ = bad.issue(uuid4(), role=Role.ADMIN, version=0)
        with pytest.raises(Unauthenticated):
            tokens.read(token)


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, lifetime=timedelta(hours=1)).read(text)


@given(st.data())
def test_no_changed_token_is_one(data: st.DataObject) -> None:
    tokens = Tokens(SECRET, lifetime=timedelta(hours=1))
    token, _ = tokens.issue(uuid4(), role=Role.SALES_AGENT, version=0)
    position = data.draw(st.integers(0, len(token) - 2))  # the last one holds unused bits
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    changed = token[:position] + other + token[position + 1 :]
    if changed != token:
        with pytest.raises(Unauthenticated):
            tokens.read(changed)


# --- Passwords --------------------------------------------------------------------------------


@given(st.text(max_size=80))
def test_password_rules(password: str) -> None:
    good = len(password) >= 8 and len(password.encode("utf-8", "surrogatepass")) <= 72
    if good:
        check_password_rules(password)
        return
    with pytest.raises(ValidationFailed) as raised:
        check_password_rules(password, field="newPassword")
    assert [detail.field for detail in raised.value.details] == ["newPassword"]


def test_a_password_matches_only_itself(passwords: Passwords) -> None:
    async def check() -> None:
        longest = "ñ" * 36
        for password in ("correct horse", longest):
            stored = await passwords.hash(password)
            assert await passwords.verify(password, stored)
            for wrong in (password[:-1], password + "x", password.upper(), ""):
                assert not await passwords.verify(wrong, stored)
            assert await passwords.hash(password) != stored
        for stored_badly in ("", "plain", "$2b$04$x", "\0"):
            assert not await passwords.verify("correct horse", stored_badly)
        assert not await passwords.verify("correct horse", None)

    asyncio.run(check())


def test_an_unknown_user_costs_as_much_as_a_wrong_password(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same password is compared with a hash of the same cost."""
    compared = []
    compare = bcrypt.checkpw

    def record(password: bytes, password_hash: bytes) -> bool:
        compared.append((password, password_hash[: len(b"$2b$04$")]))
        return compare(password, password_hash)

    async def log_in_twice() -> None:
        stored = await passwords.hash("correct horse")
        for password_hash in (None, stored):
            assert not await passwords.verify("wrong horse", password_hash)

    monkeypatch.setattr(bcrypt, "checkpw", record)
    asyncio.run(log_in_twice())
    assert compared == [(b"wrong horse", b"$2b$04$")] * 2


def test_hashing_leaves_the_event_loop_free(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hashes waits here for what the loop does meanwhile."""
    loop_is_free = threading.Event()

    def hash_slowly(_password: bytes, _salt: bytes) -> bytes:
        return b"done" if loop_is_free.wait(30) else b"the loop stood still"

    async def hash_meanwhile() -> str:
        hashing = asyncio.create_task(passwords.hash("correct horse"))
        await asyncio.sleep(0.01)
        loop_is_free.set()
        return await hashing

    monkeypatch.setattr(bcrypt, "hashpw", hash_slowly)
    assert asyncio.run(hash_meanwhile()) == "done"


# --- Keys and the file ------------------------------------------------------------------------


def test_api_keys_are_long_and_differ() -> None:
    keys = {new_api_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("ik_")
        assert len(key) >= 43
        assert key.encode() not in hash_key(key)
    assert hash_key("ik_a") == hash_key("ik_a") != hash_key("ik_b")


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "jwt.secret"
    secret = load_or_make_secret(path)
    assert len(secret) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_secret(path) == secret
    assert [file.name for file in tmp_path.iterdir()] == ["jwt.secret"]


def test_many_first_starts_agree_on_one_secret(tmp_path: Path) -> None:
    """All of them wait for a line, so that they make it at the same moment."""
    program = """
import pathlib, sys
from messaging_server.security import load_or_make_secret
input()
print(load_or_make_secret(pathlib.Path(sys.argv[1])))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "jwt.secret")]
    pipe = subprocess.PIPE
    starts = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    secrets = {start.communicate(timeout=30)[0] for start in starts}
    assert len(secrets) == 1
    assert len(secrets.pop().strip()) >= 32


def test_a_bad_secret_file_stops_the_start(tmp_path: Path) -> None:
    for content in (b"", b"short\n", b"\xff" * 40):
        path = tmp_path / "jwt.secret"
        path.write_bytes(content)
        with pytest.raises(StartupError, match=r"jwt\.secret"):
            load_or_make_secret(path)
    with pytest.raises(StartupError, match="folder"):
        load_or_make_secret(tmp_path / "no" / "folder" / "jwt.secret")
    with pytest.raises(StartupError):
        load_or_make_secret(tmp_path)

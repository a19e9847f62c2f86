"""Secrets: signed tokens, password hashes, API keys, and the file that holds the signing key.

Nothing here touches the database; whether a valid token is still good is for `users` to say.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import bcrypt
import jwt
from msgspec import Struct

from messaging_server.errors import Forbidden, StartupError, Unauthenticated, ValidationFailed
from messaging_server.models import Role

P = TypeVar("P")
R = TypeVar("R")

ALGORITHM = "HS256"
SECRET_BYTES = 32
PASSWORD_MIN_CHARACTERS = 8
PASSWORD_MAX_BYTES = 72
API_KEY_PREFIX = "ik_"
LINK_STEP_SECONDS = 1_800
LINK_SECONDS = 5_400


class Claims(Struct, frozen=True):
    """What a token says: for whom, of which version of the user's tokens, until when."""

    user_id: UUID
    version: int
    expires_at: datetime


class Tokens:
    """Issues and reads the JSON Web Tokens of users (RFC 7519, HS256)."""

    def __init__(self, secret: str, *, lifetime: timedelta) -> None:
        self._secret = secret
        self._lifetime = lifetime

    def issue(self, user_id: UUID, *, role: Role, version: int) -> tuple[str, datetime]:
        """A token and when it ends."""
        now = datetime.now(UTC).replace(microsecond=0)
        expires_at = now + self._lifetime
        claims = {
            "sub": str(user_id),
            "role": role.value,
            "iat": now,
            "exp": expires_at,
            "jti": uuid4().hex,
            "ver": version,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM), expires_at

    def read(self, token: str) -> Claims:
        """Raises `Unauthenticated` for anything but a token of ours that has not expired."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                options={
                    "require": ["sub", "role", "iat", "exp", "jti", "ver"],
                    "enforce_minimum_key_length": True,
                },
            )
            expires_at = datetime.fromtimestamp(claims["exp"], UTC)
            return Claims(UUID(claims["sub"]), int(claims["ver"]), expires_at)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("The token is not valid") from None


class Links:
    """Addresses of attachments' content that anybody may read for a while.

    An address stays the same for half an hour, so that browsers can keep what it names, and
    holds for an hour at least.
    """

    def __init__(self, secret: str, *, public_url: str) -> None:
        self._key = hmac.digest(secret.encode(), b"attachment", "sha256")
        self._prefix = f"{public_url.rstrip('/')}/api/v1/attachments"

    def content(self, attachment_id: UUID, *, thumbnail: bool = False) -> str:
        expires = int(time.time()) // LINK_STEP_SECONDS * LINK_STEP_SECONDS + LINK_SECONDS
        signature = self._sign(attachment_id, expires, thumbnail=thumbnail)
        query = f"expires={expires}&signature={signature}"
        return f"{self._prefix}/{attachment_id}/content?{query}{'&thumbnail=true' * thumbnail}"

    def check(self, attachment_id: UUID, *, expires: int, signature: str, thumbnail: bool) -> None:
        """Raises `Forbidden` for an address that is not ours, or too old."""
        expected = self._sign(attachment_id, expires, thumbnail=thumbnail)
        good = hmac.compare_digest(expected.encode(), signature.encode())
        if not good or expires <= time.time():
            raise Forbidden("This address is not valid, or has expired: ask for a new one")

    def _sign(self, attachment_id: UUID, expires: int, *, thumbnail: bool) -> str:
        text = f"{attachment_id} {expires} {'thumbnail' if thumbnail else 'content'}"
        digest = hmac.digest(self._key, text.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Passwords:
    """bcrypt in two threads of its own: it takes long and releases the GIL."""

    def __init__(self, *, rounds: int) -> None:
        self._rounds = rounds
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="bcrypt")
        self._decoy: str | None = None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str, *, field: str = "password") -> str:
        """Raises `ValidationFailed`, for this field, when the password breaks the rules."""
        check_password_rules(password, field=field)
        return await self._run(_hash, password.encode(), self._rounds)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Without a hash (an unknown user) it is False after the same time as a wrong one."""
        if self._decoy is None:
            self._decoy = await self._run(_hash, secrets.token_bytes(16), self._rounds)
        encoded = password.encode()
        matches = await self._run(_matches, encoded, password_hash or self._decoy)
        return matches and password_hash is not None

    async def _run(self, function: Callable[[bytes, P], R], password: bytes, other: P) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, password, other)


def _hash(password: bytes, rounds: int) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(rounds)).decode()


def _matches(password: bytes, password_hash: str) -> bool:
    """False too for a password that bcrypt would cut off, and for a hash it can't read."""
    try:
        matches = bcrypt.checkpw(password[:PASSWORD_MAX_BYTES], password_hash.encode())
    except ValueError:
        return False
    return matches and len(password) <= PASSWORD_MAX_BYTES


def check_password_rules(password: str, *, field: str = "password") -> None:
    """8 characters to 72 UTF-8 bytes: bcrypt sees no more than that."""
    if len(password) < PASSWORD_MIN_CHARACTERS:
        raise ValidationFailed.of(field, f"must have at least {PASSWORD_MIN_CHARACTERS} characters")
    if len(password.encode()) > PASSWORD_MAX_BYTES:
        raise ValidationFailed.of(
            field, f"must not be longer than {PASSWORD_MAX_BYTES} bytes in UTF-8"
        )


def new_api_key() -> str:
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """SHA-256; enough for a key of 256 random bits."""
    return hashlib.sha256(key.encode()).digest()


def load_or_make_secret(path: Path) -> str:
    """The signing key in `path`, made with mode 0600 when there is none yet."""
    try:
        secret = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _make_secret(path)
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: the signing key can't be read ({error})") from None
    if len(secret) < SECRET_BYTES:
        raise StartupError(f"{path}: the signing key is too short; delete it to make a new one")
    return secret


def _make_secret(path: Path) -> str:
    """Written beside and linked into place: a crash halfway, or a second process, harms nothing."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret + "\n")
            os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        return load_or_make_secret(path)
    except OSError as error:
        raise StartupError(f"{path}: the signing key can't be written ({error})") from None
    finally:
        draft.unlink(missing_ok=True)
    return secret

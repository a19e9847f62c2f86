"""One attempt to deliver: signs a body, posts it, and says what came of it.

It follows no redirect, keeps no cookie, uses no proxy, unpacks nothing, and reads at most a few
kilobytes of an answer. It knows neither the database nor when to try again.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING

from msgspec import Struct
from standardwebhooks import Webhook as Signer

from messaging_server.webhooks.addresses import AddressRules, ForbiddenAddress

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

TIMEOUT_SECONDS = 15.0
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
LARGEST_ANSWER_BYTES = 4_096
ANSWER_SECONDS = 1.0
LONGEST_ERROR = 300
DNS_SECONDS = 10
IDLE_SECONDS = 2.0  # many servers close an idle connection after 5, some after 2
USER_AGENT = "messaging_server-webhooks"
KEEPS_RETRY_AFTER = (429, 503)


class Attempt(Struct, frozen=True, kw_only=True):
    """What came of one call: `error` is None when it succeeded, `status` when none came."""

    status: int | None
    error: str | None
    seconds: float
    retry_after_seconds: float | None = None


class Sender:
    """The HTTP client of all webhooks; its connections live until `aclose`."""

    def __init__(
        self,
        allowed_networks: Sequence[str],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        resolver: "AbstractResolver | None" = None,
    ) -> None:
        self._rules = AddressRules(allowed_networks)
        self._timeout_seconds = timeout_seconds
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self, url: str, *, message_id: str, secrets: Sequence[str], body: str
    ) -> Attempt:
        """Never raises but for a cancellation; takes `timeout_seconds` at most."""
        session = await self._open_session()
        import aiohttp

        started = time.perf_counter()
        status, error, retry_after = None, None, None
        try:
            headers = signed_headers(message_id, secrets, body)
            async with session.post(
                url, data=body.encode(), headers=headers, allow_redirects=False
            ) as response:
                status = response.status
                error = _refusal(status)
                if status in KEEPS_RETRY_AFTER:
                    retry_after = retry_after_seconds(response.headers.get("Retry-After"))
                await _read_little(response)
        except TimeoutError:
            error = f"no answer within {self._timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = _reason(failure)
        return Attempt(
            status=status,
            error=error[:LONGEST_ERROR] if error else None,
            seconds=time.perf_counter() - started,
            retry_after_seconds=retry_after,
        )

    async def _open_session(self) -> "aiohttp.ClientSession":
        """Made when first needed: aiohttp takes a third of a second to import, in a thread."""
        if self._session is None:
            await asyncio.to_thread(import_module, "aiohttp")
        if self._session is None:
            import aiohttp

            connector = aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=IDLE_SECONDS,
                ttl_dns_cache=DNS_SECONDS,
                resolver=self._resolver,
                socket_factory=self._rules.open_socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
                auto_decompress=False,
                trust_env=False,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            )
        return self._session


async def _read_little(response: "aiohttp.ClientResponse") -> None:
    """Enough to use the connection again after a short answer; any other one is cut off."""
    import aiohttp

    size = 0
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while chunk := await response.content.readany():
                size += len(chunk)
                if size > LARGEST_ANSWER_BYTES:
                    response.close()
                    return
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()


def _refusal(status: int) -> str | None:
    """What is wrong with such an answer."""
    if 200 <= status < 300:
        return None
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""
    return f"answered {status}{redirect}"


def _reason(failure: Exception) -> str:
    """In words of our own: what the other side said is not repeated to anybody."""
    import aiohttp

    if isinstance(failure, aiohttp.ClientConnectorError):
        return _no_connection(failure)
    if isinstance(failure, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return "the answer is not valid HTTP"
    if isinstance(failure, aiohttp.ClientConnectionError | OSError):
        return "no answer: the connection was closed"
    return "no connection: the URL or the secret can't be used"


def _no_connection(failure: "aiohttp.ClientConnectorError") -> str:
    import aiohttp

    cause = failure.os_error
    if isinstance(cause, ForbiddenAddress):
        return str(cause)
    if isinstance(failure, aiohttp.ClientConnectorDNSError):
        reason = "the name can't be resolved"
    elif isinstance(failure, aiohttp.ClientConnectorCertificateError):
        reason = "the certificate is not valid"
    elif isinstance(failure, aiohttp.ClientSSLError):
        reason = "TLS failed"
    elif isinstance(cause, ConnectionRefusedError):
        reason = "refused"
    else:
        reason = (
            os.strerror(cause.errno).lower()
            if cause.errno
            else "none of its addresses can be reached"
        )
    return f"no connection: {reason}"


def signed_headers(message_id: str, secrets: Sequence[str], body: str) -> dict[str, str]:
    """Those of Standard Webhooks; one signature for each secret that is valid."""
    now = datetime.now(UTC)
    signatures = (Signer(secret).sign(message_id, now, body) for secret in secrets)
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3), a day at most; None for what can't be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_RETRY_AFTER_SECONDS)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)

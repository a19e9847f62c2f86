"""Where webhooks may not go, however the address is written and whatever a name leads to."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from messaging_server.errors import ValidationFailed
from messaging_server.webhooks.addresses import AddressRules
from messaging_server.webhooks.sender import Attempt, Sender
from messaging_server.webhooks.service import check_url
from tests.webhooks.receiver import Receiver, Reply

SECRET = "whsec_" + "A" * 43 + "="
SETTING = "webhooks.allowed_networks"

PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "2a00:1450:4001:81b::200e", "64:ff9b::808:808"]
FORBIDDEN = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",  # noqa: S104  # refused, not bound
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "::ffff:168.63.129.16",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001::1",
    "2001:db8::1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert AddressRules(()).permits(ip_address(address))


@pytest.mark.parametrize("address", FORBIDDEN)
def test_other_addresses_are_not(address: str) -> None:
    assert not AddressRules(()).permits(ip_address(address))


def test_networks_can_be_opened() -> None:
    rules = AddressRules(("10.1.0.0/16", "fd00::/8"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "8.8.8.8"):
        assert rules.permits(ip_address(address)), address
    for address in ("10.2.0.1", "::ffff:10.2.0.1", "fe80::1", "127.0.0.1", "64:ff9b::a01:203"):
        assert not rules.permits(ip_address(address)), address


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_literal_that_cannot_work_is_refused_at_once(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValidationFailed) as refused:
        check_url(f"https://{host}/hook", ())
    assert refused.value.details[0].field == "url"
    assert SETTING in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "example.com/hook",
        "https://",
        "https:///hook",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com:99999/",
        "https://example.com:port/",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com/\x7f",
        "https://example.com/#part",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
    ],
)
def test_urls_that_cannot_work(url: str) -> None:
    with pytest.raises(ValidationFailed):
        check_url(url, ())


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0X7F000001"])
def test_an_address_in_another_form_than_usual(host: str) -> None:
    """Also where its network is open: it could never be delivered to."""
    with pytest.raises(ValidationFailed) as refused:
        check_url(f"http://{host}:8080/", ("127.0.0.0/8",))
    assert refused.value.details[0].field == "url"
    assert "127.0.0.1" in refused.value.message
    check_url("http://127.0.0.1:8080/", ("127.0.0.0/8",))


@pytest.mark.parametrize(
    "url", ["https://example.com/a?b=c%20d", "http://example.com:8080", "https://bücher.example/"]
)
def test_good_urls(url: str) -> None:
    check_url(url, ())


# --- At connect time --------------------------------------------------------------------------


class ScriptedResolver(AbstractResolver):
    """Answers each look-up with the next of its lists of addresses, the last one for good."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.lookups = 0

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  # the interface has it
    ) -> list[ResolveResult]:
        self.lookups += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


def send(
    url: str, *, allowed: tuple[str, ...] = (), resolver: AbstractResolver | None = None
) -> Attempt:
    async def run() -> Attempt:
        sender = Sender(allowed, timeout_seconds=3, resolver=resolver)
        try:
            return await sender.send(url, message_id="1", secrets=[SECRET], body="{}")
        finally:
            await sender.aclose()

    return asyncio.run(run())


@contextmanager
def no_connection(receiver: Receiver) -> Iterator[None]:
    """Not even one that says nothing."""
    before = receiver.connections
    yield
    assert receiver.connections == before


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "①②⑦.⓪.⓪.①",
    ],
)
def test_this_machine_by_any_other_name(receiver: Receiver, host: str) -> None:
    with no_connection(receiver):
        attempt = send(f"http://{host}:{receiver.port}/hook")
    assert attempt.status is None
    assert attempt.error


def test_the_error_names_the_setting() -> None:
    attempt = send("http://localhost:1/")
    assert attempt.error is not None
    assert SETTING in attempt.error


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_that_leads_there(address: str) -> None:
    attempt = send("http://a.example:9/", resolver=ScriptedResolver([address]))
    assert attempt.status is None
    assert attempt.error is not None
    assert SETTING in attempt.error


def test_the_metadata_address_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real: Callable[..., Any] = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> Any:
        opened.append(address)
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    send("http://169.254.169.254/latest/meta-data/")
    send("http://a.example/", resolver=ScriptedResolver(["169.254.169.254"]))
    assert opened == []


def send_to_another_protocol(scheme: str, greeting: bytes) -> Attempt:
    """To a server that says something before it is asked."""

    async def run() -> Attempt:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            left.set()

        left = asyncio.Event()
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        sender = Sender(("127.0.0.0/8",), timeout_seconds=3)
        port = server.sockets[0].getsockname()[1]
        try:
            url = f"{scheme}://127.0.0.1:{port}/path"
            return await sender.send(url, message_id="1", secrets=[SECRET], body="{}")
        finally:
            await sender.aclose()
            await left.wait()
            server.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-secret\r\n", b"220 secret ESMTP\r\n", b"HTTP/1.1 secret\r\n\r\n"],
)
def test_what_is_no_http_is_not_quoted(greeting: bytes) -> None:
    attempt = send_to_another_protocol("http", greeting)
    assert (attempt.status, attempt.error) == (None, "the answer is not valid HTTP")
    attempt = send_to_another_protocol("https", greeting)
    assert (attempt.status, attempt.error) == (None, "no connection: TLS failed")


class NoSuchName(ScriptedResolver):
    async def resolve(
        self,
        host: str,
        port: int = 0,  # noqa: ARG002  # the interface has it
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  # the interface has it
    ) -> list[ResolveResult]:
        raise OSError(f"secret {host}")


def test_errors_are_in_our_own_words(receiver: Receiver) -> None:
    local = ("127.0.0.0/8",)
    receiver.decide = lambda _: Reply(cut=True)
    assert send(receiver.url, allowed=local).error == "no answer: the connection was closed"
    receiver.go_away()
    assert send(receiver.url, allowed=local).error == "no connection: refused"
    resolver = NoSuchName()
    error = send("http://a.example/", resolver=resolver).error
    assert error == "no connection: the name can't be resolved"


def test_a_name_that_changes_its_mind(receiver: Receiver) -> None:
    """Checked is the address that is connected to, not one that was looked up before."""
    resolver = ScriptedResolver(["192.0.2.1"], ["127.0.0.1"])
    url = f"http://rebinding.example:{receiver.port}/hook"
    with no_connection(receiver):
        for _ in range(3):
            attempt = send(url, resolver=resolver)
            assert attempt.status is None
            assert SETTING in str(attempt.error)
    assert resolver.lookups >= 3


def test_a_name_with_one_good_address(receiver: Receiver) -> None:
    """Whichever way the addresses are tried, only the one that is open is connected to."""
    resolver = ScriptedResolver(["127.0.0.2", "127.0.0.1", "::1"])
    url = f"http://mixed.example:{receiver.port}/hook"
    attempt = send(url, allowed=("127.0.0.1/32",), resolver=resolver)
    assert attempt.status == 200
    assert receiver.connections == 1


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    target = f"http://127.0.0.1:{receiver.port}/elsewhere"
    for status in (301, 302, 303, 307, 308):
        receiver.decide = lambda _, status=status: Reply(
            status=status, headers=(("location", target),)
        )
        attempt = send(receiver.url, allowed=("127.0.0.0/8",))
        assert (attempt.status, attempt.error) == (
            status,
            f"answered {status}; redirects are not followed",
        )
    assert {each.path for each in receiver.requests} == {"/hook"}


def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{receiver.port}")
    attempt = send("http://192.0.2.1/")
    assert SETTING in str(attempt.error)
    assert receiver.requests == []

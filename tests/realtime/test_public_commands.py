"""Visitors' commands are limited together with their calls over REST."""

from contextlib import AbstractContextManager

import pytest

from messaging_server.http import network_of
from tests.client import Api, Socket
from tests.public.site import PublicApi, Site
from tests.realtime.conftest import unknown_visitor, visitor_socket
from tests.realtime.test_public_socket import talking

ENVIRONMENT = {
    "MESSAGING_LIMITS__ENABLED": "true",
    "MESSAGING_LIMITS__CALLS_PER_MINUTE_PER_VISITOR": "10",
    "MESSAGING_LIMITS__VISITOR_COMMANDS_PER_MINUTE_PER_ADDRESS": "25",
    "MESSAGING_SERVER__BEHIND_PROXY": "127.0.0.1",
    "MESSAGING_ANALYSIS__ENABLED": "false",
}
LIMITED = {"code": "rate_limited", "message": "Too many requests", "retryable": True}


def socket_from(address: str, api: Api, page: PublicApi) -> AbstractContextManager[Socket]:
    return visitor_socket(api, page, additional_headers={"X-Forwarded-For": address})


def error_of(reply: dict[str, object]) -> object:
    return None if reply["ok"] else reply["error"]


def test_commands_count_with_the_calls_of_the_visitor(api: Api, site: Site) -> None:
    """On all of its sockets; what is told and what costs nothing goes on."""
    page, conversation_id = talking(site)
    with (
        socket_from("192.0.2.1", api, page) as phone,
        socket_from("192.0.2.2", api, page) as laptop,
    ):
        assert phone.call("conversation:join")["ok"]
        for seq in range(3):
            assert phone.call("message:delivered", {"seq": seq})["ok"]
            assert laptop.call("message:seen", {"seq": seq})["ok"]
        page.get("/messages")
        token = {"token": page.session["sessionToken"]}
        assert phone.call("auth", token)["ok"]
        commands = {
            "auth": token,
            "conversation:join": None,
            "message:delivered": {"seq": 1},
            "message:seen": {"seq": 1},
        }
        for event, data in commands.items():
            assert error_of(phone.call(event, data)) == LIMITED
            assert error_of(laptop.call(event, data)) == LIMITED
        assert page.get("/messages", expect=429)["code"] == "rate_limited"
        assert phone.call("typing:start")["ok"]
        api.send(conversation_id, "still heard")
        assert phone.wait_event("message:new")["seq"] == 2
        assert phone.call("conversation:leave")["ok"]
    other, _ = talking(site)
    with socket_from("192.0.2.1", api, other) as socket:
        assert socket.call("conversation:join")["ok"]


def test_commands_of_a_network(api: Api, site: Site) -> None:
    """However many visitors it has; the addresses of an IPv6 /64 are one."""
    for number in range(3):
        with socket_from(f"2001:db8:1:1:{number}::1", api, site.visitor()) as socket:
            replies = [socket.call("conversation:join") for _ in range(10)]
            errors = [error_of(reply) for reply in replies]
            assert errors == ([None] * 10 if number < 2 else [None] * 2 + [LIMITED] * 8)
    for token in (site.visitor().session["sessionToken"], "forged"):  # nobody has been asked
        forwarded = {"X-Forwarded-For": "2001:db8:1:1::2"}
        with unknown_visitor(api, additional_headers=forwarded) as stranger:
            stranger.send({"id": 1, "event": "auth", "data": {"token": token}})
            assert stranger.read()["error"] == LIMITED
            assert stranger.close_code() == 4029
    with socket_from("2001:db8:1:2::1", api, site.visitor()) as elsewhere:
        assert elsewhere.call("conversation:join")["ok"]


def test_a_visitor_over_its_limit_costs_its_network_nothing(api: Api, site: Site) -> None:
    with socket_from("192.0.2.9", api, site.visitor()) as flood:
        replies = [flood.call("conversation:join") for _ in range(30)]
        assert [reply["ok"] for reply in replies] == [True] * 10 + [False] * 20
    with socket_from("192.0.2.9", api, site.visitor()) as neighbour:
        assert neighbour.call("conversation:join")["ok"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:1:2:3:4:5", "2001:db8:1:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "unknown"),
    ],
)
def test_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network

"""Which network addresses a webhook may be sent to: public ones, and what the operator opens.

An address is judged where a connection to it is about to be opened, so no name, no other way to
write a number and no change of a name's address gets around it.
"""

import socket
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

SETTING = "webhooks.allowed_networks"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

AZURE_METADATA = "168.63.129.16/32"  # a public address that answers on every virtual machine

# IANA's special-purpose registries; Python's own lists differ from version to version.
SPECIAL = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        AZURE_METADATA,
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "2001::/23",
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """A webhook's name or address leads where webhooks may not go."""


class AddressRules:
    """Public addresses, and those in the networks that the operator has opened."""

    def __init__(self, allowed_networks: Sequence[str]) -> None:
        self._allowed = tuple(ip_network(network) for network in allowed_networks)

    def permits(self, address: Address) -> bool:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if mapped is not None:
            return self.permits(mapped)
        return _is_in(address, self._allowed) or is_public(address)

    def open_socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """A socket for one entry of `getaddrinfo`; raises `ForbiddenAddress`.

        It is called for every connection, with the very address that is connected to next.
        """
        family, kind, protocol, _, destination = address_info
        text = str(destination[0])
        if not self.permits(ip_address(text.partition("%")[0])):
            raise ForbiddenAddress(refusal(text))
        return socket.socket(family=family, type=kind, proto=protocol)

    def literal_refusal(self, host: str) -> str | None:
        """Why an address in place of a name can't be used, None for names and good addresses."""
        address = literal(host)
        if address is None:
            return None
        if not self.permits(address):
            return refusal(host)
        if isinstance(address, IPv4Address) and host != str(address):
            return f"must have its address in the usual form: {address}"
        return None


def refusal(address: str) -> str:
    return f"{address} is not a public address; {SETTING} can open its network"


def literal(host: str) -> Address | None:
    """The address that `host` is, also in the old ways: `127.1`, `0x7f000001`, `017700000001`."""
    text = host.partition("%")[0]
    try:
        return ip_address(text)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(text))
    except (OSError, UnicodeError, ValueError):
        return None


def is_public(address: Address) -> bool:
    """Reachable from everywhere, and nothing inside of it leads to another network."""
    if _is_in(address, SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in GLOBAL_UNICAST and address.is_global


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)

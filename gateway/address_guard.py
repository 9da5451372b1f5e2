"""Decides which addresses the gateway may connect to on behalf of a stranger.

The question is asked for every address that a socket is about to connect to, after name resolution: what a URL looks
like (odd spellings of 127.0.0.1, names that resolve differently the second time) does not matter then.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The IANA special-purpose registries, beyond what `is_global` knows in every supported version of Python.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "100.64.0.0/10",  # shared by carriers
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "240.0.0.0/4",  # reserved, broadcast
        "64:ff9b:1::/48",  # local-use translation
        "100::/64",  # discard
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fec0::/10",  # site local
    )
)
# IPv6 addresses that stand for an IPv4 one, and how many bits are behind that (RFC 4291, 2765, 6052, 3056).
_TRANSLATED = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::/96", 0),  # compatible
        ("::ffff:0:0/96", 0),  # mapped
        ("::ffff:0:0:0/96", 0),  # translated
        ("64:ff9b::/96", 0),  # NAT64
        ("2002::/16", 80),  # 6to4
    )
)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
"""Third quarter of an address of any prefix whose last quarter is an IPv4 address (RFC 5214)."""
_ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Allows public addresses, and those of `allowed` networks."""

    allowed: tuple[Network, ...] = ()

    def allows(self, host: str) -> bool:
        """Say whether a socket may connect to `host`, an address in text as in a sockaddr."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return all(self._allows(each) for each in _with_embedded(address))

    def _allows(self, address: Address) -> bool:
        return any(address in network for network in self.allowed) or _is_public(address)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and _translated(address) is not None:
        return True  # decided by the IPv4 address inside it
    if address.is_multicast or address.is_link_local or not address.is_global:
        return False
    return not any(address in network for network in _SPECIAL)


def _with_embedded(address: Address) -> Iterator[Address]:
    inner = _embedded(address) if isinstance(address, ipaddress.IPv6Address) else None
    return chain([address], [inner] if inner is not None else [])


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to `address` would end at, or go through, if there is one."""
    if (int(address) >> 32) & _ALL_ONES in _ISATAP:
        return ipaddress.IPv4Address(int(address) & _ALL_ONES)
    return _translated(address)


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if int(address) <= 1:
        return None  # unspecified and loopback, which are no IPv4 addresses
    return next(
        (
            ipaddress.IPv4Address((int(address) >> shift) & _ALL_ONES)
            for network, shift in _TRANSLATED
            if address in network
        ),
        None,
    )

"""Which addresses are public."""

import ipaddress

import pytest

from gateway.address_guard import AddressGuard

PRIVATE = [
    "127.0.0.1",
    "127.255.0.9",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:10.0.0.1",
    "::ffff:0:169.254.169.254",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:127.0.0.1",
    "fe80::5efe:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001::1",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "100::1",
    "3fff::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700::1111"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    assert not AddressGuard().allows(address)


@pytest.mark.parametrize(
    "address",
    [*PUBLIC, "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2606:4700::5efe:8.8.8.8"],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressGuard().allows(address)


@pytest.mark.parametrize("text", ["", "localhost", "/run/socket", "1.2.3", "2130706433"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert not AddressGuard().allows(text)


def test_an_allowed_network_lets_its_own_addresses_through_and_no_others() -> None:
    guard = AddressGuard((ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("fd00::/8")))
    assert guard.allows("127.0.0.1")
    assert guard.allows("fd00::5")
    assert guard.allows("8.8.8.8")
    assert not guard.allows("10.0.0.1")
    assert not guard.allows("::1")


def test_a_mapped_address_needs_both_of_its_faces_allowed() -> None:
    """Allowing the IPv4 network allows its mapped form too, since the packets go to the same place."""
    guard = AddressGuard((ipaddress.ip_network("127.0.0.0/8"),))
    assert guard.allows("::ffff:127.0.0.1")
    assert not guard.allows("::ffff:10.0.0.1")

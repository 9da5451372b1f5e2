"""What a service's process may do to its host, and a stranger on the network to a service: nothing."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import nats
import nats.errors
import pytest
import redis.asyncio
import redis.exceptions

_NO_CAPABILITY = "0" * 16
_NOBODY = "\t".join(["10001"] * 4)
_NONE = {
    "Uid": _NOBODY,
    "Gid": _NOBODY,
    "CapPrm": _NO_CAPABILITY,
    "CapEff": _NO_CAPABILITY,
    "CapBnd": _NO_CAPABILITY,
    "NoNewPrivs": "1",
}
PLACES = ("/new", "/usr/new", "/secrets/new", "/etc/broker-pipeline/new", "/artifacts/new")
"""Where no service may make a file."""


def check_rights_of(pid: int) -> None:
    """Hold what the kernel says of a process against what compose files give: no root, no capability, none to gain."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {name: facts[name] for name in _NONE} == _NONE
    assert facts["Groups"].strip() in ("", "10001")


def no_proof() -> ssl.SSLContext:
    """Return how somebody encrypts who has no certificate and wants none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def check_that_servers_are_shut(broker: str, gateway: str) -> None:
    """For a stranger who reaches all ports, encrypts, and has no secret. Takes addresses."""
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(f"tls://{broker}:4222", tls=no_proof(), allow_reconnect=False)
    async with redis.asyncio.Redis(host=broker, ssl=True, ssl_cert_reqs="none") as client:
        with pytest.raises(redis.exceptions.RedisError):
            await client.get("anything")
    async with aiohttp.ClientSession() as http:
        for path in ("/v1/jobs", "/v1/status", "/v1/models", "/metrics"):
            async with http.get(f"http://{gateway}:8080{path}") as answer:
                assert answer.status == 401, path

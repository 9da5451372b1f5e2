"""Tells URLs of the ends of batches, as OpenAI's webhooks do (standard-webhooks.com): signed, to be believed.

webhook-id         evt_BATCH, the same at each try: who is told twice can see it
webhook-timestamp  when this try was made
webhook-signature  v1,BASE64(HMAC-SHA256(secret, id.timestamp.body))
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from broker_pipeline.errors import ConfigurationError, MediaFetchError
from gateway.address_guard import AddressGuard
from gateway.batches.records import Batch
from gateway.intake.image_url import parse_url
from gateway.outgoing import GuardedSockets
from gateway.settings import WebhookSettings

TIMEOUT_S = 10.0
_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24


class BatchReference(msgspec.Struct, frozen=True, kw_only=True):
    """The batch that an event is about."""

    id: str


class BatchEvent(msgspec.Struct, frozen=True, kw_only=True):
    """That a batch has ended; `type` is `batch.` and its status."""

    id: str
    object: str = "event"
    created_at: int | None
    type: str
    data: BatchReference

    @classmethod
    def of(cls, batch: Batch) -> BatchEvent:
        """Return the event of a batch's end."""
        kind = f"batch.{batch.status}"
        return cls(id=f"evt_{batch.id}", created_at=batch.ended_at, type=kind, data=BatchReference(id=batch.id))


def signed_headers(secret: bytes, event_id: str, body: bytes, now_s: int) -> dict[str, str]:
    """Return the headers that say who sends a body, and when."""
    signed = b"%b.%d.%b" % (event_id.encode(), now_s, body)
    signature = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    return {"webhook-id": event_id, "webhook-timestamp": str(now_s), "webhook-signature": f"v1,{signature}"}


class Webhook:
    """The URL, and the secret that whoever answers there knows."""

    def __init__(self, url: URL, secret: bytes, guard: AddressGuard) -> None:
        """Connect to addresses that `guard` allows only."""
        self._url = url
        self._secret = secret
        self._guard = guard

    async def tell(self, batch: Batch) -> str | None:
        """Tell of a batch's end; return None once it is heard (an answer of 2xx), or else why it was not."""
        event = BatchEvent.of(batch)
        body = msgspec.json.encode(event)
        headers = signed_headers(self._secret, event.id, body, int(time.time()))
        sockets = GuardedSockets(self._guard)
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                sockets.session({"Content-Type": "application/json"} | headers) as session,
                session.post(self._url, data=body, allow_redirects=False) as answer,
            ):
                return None if 200 <= answer.status < 300 else f"it answered {answer.status}"
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if sockets.was_refused:
                return "it leads to an address that is not public; `--allow-private-urls` lets networks through"
            return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Who is told of whose batches."""

    of_all: Webhook | None
    of_tenants: Mapping[str, Webhook]

    def __bool__(self) -> bool:
        """Say whether anybody is told of anything."""
        return self.of_all is not None or bool(self.of_tenants)

    def of(self, tenant: str) -> Webhook | None:
        """Return whom to tell of a tenant's batches."""
        return self.of_tenants.get(tenant, self.of_all)


def make_webhooks(settings: WebhookSettings, guard: AddressGuard) -> Webhooks:
    """Build the webhooks; raises `ConfigurationError` for what cannot be one."""
    if (settings.url is None) != (settings.secret_file is None):
        missing = "webhook_url" if settings.url is None else "webhook_secret_file"
        raise ConfigurationError("a webhook has a URL and a file with its secret", field=missing)
    of_all = None
    if settings.url is not None and settings.secret_file is not None:
        of_all = _webhook(settings.url, settings.secret_file, guard, ("webhook_url", "webhook_secret_file"))
    names = ("tenant_webhook", "tenant_webhook")
    of_tenants = {tenant: _webhook(url, path, guard, names) for tenant, url, path in settings.of_tenants}
    return Webhooks(of_all, of_tenants)


def _webhook(url: str, path: str, guard: AddressGuard, names: tuple[str, str]) -> Webhook:
    try:
        return Webhook(parse_url(url, names[0]), _secret(path, names[1]), guard)
    except MediaFetchError as error:
        flag = names[0].replace("_", "-")
        raise ConfigurationError(f"--{flag}: {error.message}", field=names[0]) from error


def _secret(path: str, name: str) -> bytes:
    try:
        prefix, _, text = Path(path).read_text().strip().partition("_")
        secret = base64.b64decode(text, validate=True)
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", field=name) from error
    if f"{prefix}_" != _PREFIX or len(secret) < _MIN_SECRET_BYTES:
        wanted = f"{_PREFIX} and {_MIN_SECRET_BYTES} random bytes or more in base64"
        raise ConfigurationError(f"{path} does not hold {wanted}", field=name)
    return secret

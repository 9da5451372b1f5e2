"""What nats-py tells of a connection, by callbacks and nowhere else: as events, and as typed errors of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from broker_pipeline.errors import SubjectDeniedError, TransportError
from broker_pipeline.security.tls_failures import tls_failure

log = structlog.get_logger()

_HINT = "are its secrets (--secrets) those of its role, and does the server have them (`broker-pipeline secrets show`)?"
NATS_ERRORS = (nats.errors.Error, OSError, asyncio.TimeoutError)


@dataclass(slots=True)
class ConnectionState:
    """Whether a connection is being opened, stands, is lost for a while, or for good."""

    name: str
    client: Client
    on_lost: Callable[[], None]
    """Called whenever the connection is lost, also for good: what was in flight may be gone."""
    on_failed: Callable[[TransportError], None]
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the connection stands, and once it is closed: whoever waits for it has to look."""
    num_reconnects: int = 0
    reconnect_listeners: list[Callable[[], None]] = field(default_factory=list)
    last_error: Exception | None = None
    is_opening: bool = True
    is_closing: bool = False
    _told: str = ""

    def callbacks(self) -> dict[str, Any]:
        """Return what nats-py is to call."""
        return {
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }

    def fail(self, error: TransportError) -> None:
        """Give the connection up for good."""
        self.on_lost()
        self.connected.set()
        self.on_failed(error)

    def fail_unhandled(self, error: Exception) -> None:
        """Give the connection up for what a callback raised, which is a bug."""
        log.error("message_not_handled", connection=self.name, exc_info=error)
        self.fail(TransportError(f"{self.name}: a message was not handled: {error!r}"))

    async def _on_error(self, error: Exception) -> None:
        self.last_error = error
        text = str(error).lower()
        if "authorization" in text:
            refusal = SubjectDeniedError(f"the NATS server refused {self.name}: {error}; {_HINT}")
            if self.is_opening:
                raise refusal from error
            self.fail(refusal)  # else nats-py would ask for ever: its secrets are good no more
            return
        if failure := tls_failure(error, f"the NATS server of {self.name}"):
            if self.is_opening:
                raise failure from error
            if failure.message != self._told:  # at each attempt to connect again, twenty a second
                log.error("nats_not_encrypted", connection=self.name, reason=failure.message)
                self._told = failure.message
        if "permissions violation" in text:
            log.error("nats_permission_denied", connection=self.name, reason=str(error))
            # An answer to somebody whom this role does not answer is the asker's fault.
            if "publish" not in text or "_inbox." not in text:
                self.fail(SubjectDeniedError(f"{self.name} may not do this: {error}; {_HINT}"))
        elif not isinstance(error, NATS_ERRORS):
            self.fail_unhandled(error)

    async def _on_disconnected(self) -> None:
        self.connected.clear()
        self._end_requests()
        if not (self.is_closing or self.is_opening):
            log.warning("nats_disconnected", connection=self.name, reason=str(self.last_error or ""))
            self.on_lost()

    def _end_requests(self) -> None:
        """Tell whoever waits for an answer that none comes: it was for the connection that is lost."""
        for answer in list(self.client._resp_map.values()):  # noqa: SLF001 - nats-py lets their timeouts pass
            if not answer.done():
                answer.set_exception(nats.errors.TimeoutError())
                answer.exception()  # nobody waits where its request could not even be sent: that is no error to log

    async def _on_reconnected(self) -> None:
        self.num_reconnects += 1
        self._told = ""
        self.connected.set()
        log.info("nats_reconnected", connection=self.name, max_payload=self.client.max_payload)
        for listener in self.reconnect_listeners:
            listener()

    async def _on_closed(self) -> None:
        if not (self.is_closing or self.is_opening):
            reason = self.client.last_error or self.last_error
            self.fail(TransportError(f"{self.name} was closed by the server for good: {reason}"))

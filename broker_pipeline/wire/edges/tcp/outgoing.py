"""The sender's end of a `tcp` edge, and who makes it."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from broker_pipeline.errors import EdgeFullError, EdgeLostError
from broker_pipeline.messages.edges import EdgeKind, EdgeOffer, EdgeRef, TcpOffer
from broker_pipeline.security.tls_failures import tls_failure
from broker_pipeline.subjects import host_of
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.tcp.identity import EdgeIdentity, dialing_context
from broker_pipeline.wire.edges.tcp.layout import CHANNELS, channel_for
from broker_pipeline.wire.edges.tcp.outlet import Outlet

CONNECT_TIMEOUT_S = 3.0


class TcpOutgoingEdge:
    """One connection a channel, to one receiver."""

    kind: EdgeKind = "tcp"

    def __init__(self) -> None:
        """Carry nothing yet: `TcpDialer` opens it."""
        self.lost: asyncio.Future[EdgeLostError] = asyncio.get_running_loop().create_future()
        self.outlets: list[Outlet] = []
        self.name = ""
        self._ended = [asyncio.Event() for _ in CHANNELS]

    def place(self, num_bytes: int) -> memoryview | None:  # noqa: ARG002
        """Return None: a payload goes from where it is."""
        return None

    async def send(self, frame: Frame) -> EdgeRef:
        """Send a payload on the channel for its size; see `OutgoingEdge`."""
        num_bytes = frame.num_payload_bytes
        if (channel := channel_for(num_bytes)) is None:
            raise EdgeFullError(f"a payload of {num_bytes} bytes; an edge carries {CHANNELS[-1].max_payload_bytes}")
        return EdgeRef(self.name, await self.outlets[channel].send(frame.pieces, num_bytes), num_bytes)

    async def close(self) -> None:
        """Close when what was sent has gone."""
        for outlet in self.outlets:
            outlet.close()
        for ended in self._ended[: len(self.outlets)]:
            await ended.wait()

    def abort(self, error: EdgeLostError) -> None:
        """End at once: with one channel, all are lost."""
        if not self.lost.done():
            self.lost.set_result(error)
        for outlet in self.outlets:
            outlet.abort(error)

    def on_ended(self, channel: int, error: EdgeLostError) -> None:
        """Hear of the end of a channel."""
        self._ended[channel].set()
        self.abort(error)


class TcpDialer:
    """Makes `tcp` edges from offers."""

    kind: EdgeKind = "tcp"

    def __init__(
        self,
        *,
        is_encrypted: bool = True,
        identity: EdgeIdentity | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """With `is_encrypted`, offers of edges that are not encrypted are not taken, and the other way round.

        Without an `identity` the dialer shows no certificate, and takes one that no authority signed.
        """
        self._context = (identity.edge_dialer if identity else dialing_context()) if is_encrypted else None
        self._is_vouched = is_encrypted and identity is not None
        self._timeout_s = connect_timeout_s

    async def connect(self, offer: EdgeOffer, root: str = "") -> TcpOutgoingEdge | None:
        """Return an edge to the first address where somebody answers; see `EdgeDialer`."""
        if offer.tcp is None:
            return None
        if bool(offer.tcp.certificate) != (self._context is not None):
            raise EdgeLostError("one end has --edge-tls on, the other one off")
        host = host_of(root) if self._is_vouched else None
        for address in offer.tcp.addresses:
            if (edge := await self._try(address, offer.tcp, host)) is not None:
                return edge
        return None

    async def _try(self, address: str, offer: TcpOffer, host: str | None) -> TcpOutgoingEdge | None:
        """Return an edge to `address`, of a worker of `host`; None where nobody can be reached."""
        edge = TcpOutgoingEdge()
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in CHANNELS:
                    edge.outlets.append(await self._dial(address, offer, host, edge))
                [edge.name] = {await outlet.welcome for outlet in edge.outlets}
        except EdgeLostError as error:
            raise self._failed(edge, address, str(error)) from error
        except ssl.SSLError as error:
            unfit = tls_failure(error, address)
            raise self._failed(edge, address, unfit.message if unfit else str(error)) from error
        except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
            raise self._failed(edge, address, f"it could not be encrypted: {error}") from error
        except ValueError as error:
            raise self._failed(edge, address, "the address or the answer cannot be used") from error
        except OSError as error:  # also TimeoutError, and names that nobody knows
            failure = self._failed(edge, address, str(error) or "it did not answer in time")
            if edge.outlets:
                raise failure from error
            return None
        except asyncio.CancelledError:
            edge.abort(EdgeLostError("nobody waits for the edge any more"))
            raise
        return edge

    async def _dial(self, address: str, offer: TcpOffer, host: str | None, edge: TcpOutgoingEdge) -> Outlet:
        parts, channel = urlsplit(f"//{address}"), len(edge.outlets)
        _, outlet = await asyncio.get_running_loop().create_connection(
            lambda: Outlet(offer, channel, lambda error: edge.on_ended(channel, error), host),
            parts.hostname or "",
            parts.port or 0,
            ssl=self._context,
        )
        await outlet.connected
        return outlet

    @staticmethod
    def _failed(edge: TcpOutgoingEdge, address: str, reason: str) -> EdgeLostError:
        error = EdgeLostError(f"no edge to {address}: {reason}")
        edge.abort(error)
        return error

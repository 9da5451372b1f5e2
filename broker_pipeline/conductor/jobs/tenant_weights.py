"""What share of the pipeline each tenant has beside the others, as its keys to the gateway say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from broker_pipeline.process.outage_log import OutageLog
from broker_pipeline.state.access.gateway_keys import GatewayKeys

_EVERY_S = 5.0


@dataclass(slots=True, eq=False)
class TenantWeights:
    """The weights of one namespace, looked up again and again."""

    keys: GatewayKeys
    every_s: float = _EVERY_S
    _weights: dict[str, float] = field(default_factory=dict, init=False)

    def of(self, tenant: str) -> float:
        """Return a tenant's weight: 1 unless a key of its says otherwise."""
        return self._weights.get(tenant, 1.0)

    async def run(self) -> None:
        """Look until cancelled; through an outage, or where a key cannot be read, what was last known holds."""
        outages = OutageLog("weights_unknown")
        while True:
            with outages.outlasting():
                self._weights = await self.keys.weights()
            await asyncio.sleep(self.every_s)

"""A further stage of a running pipeline, whose computations fail, or take long, when a test says so."""

from __future__ import annotations

from pathlib import Path

from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.place import LOOPBACK, Place
from broker_pipeline.tools.local.service import LocalService
from trials.soak.faults import sickness


class SickStage(LocalService):
    """The product's command, in `sick_worker`."""

    def __init__(self, cluster: LocalCluster, directory: Path, name: str, blocks: str) -> None:
        self._sickness = directory / f"{name}.sickness"
        arguments = ["stage", "--model", str(cluster.settings.model), "--name", name, "--blocks", blocks]
        arguments += ["--kv-tokens", str(cluster.settings.kv_tokens), "--device", "cpu", "--threads", "1"]
        arguments += ["--nats-url", cluster.nats_url, "--redis-url", cluster.redis_url, "--log-format", "json"]
        super().__init__(
            name,
            arguments,
            log_path=directory / f"{name}.log",
            ready_path=directory / f"{name}.ready",
            env={},
            start_timeout_s=60,
            place=Place(LOOPBACK.host, sickness.command(self._sickness)),
        )

    def sicken(self, how: str) -> None:
        """Fall ill: `fail`, or seconds."""
        sickness.sicken(self._sickness, how)

    def heal(self) -> None:
        """Be well again."""
        sickness.heal(self._sickness)

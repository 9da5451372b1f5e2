"""What servers, or services of theirs, have said of things that somebody was not allowed."""

from __future__ import annotations

from broker_pipeline.tools.local.cluster import LocalCluster

_SAID = ("Violation", "nats_permission_denied", "Redis does not allow it", "result_forged", "NOPERM")


def denials(cluster: LocalCluster) -> list[str]:
    """Return lines of a pipeline's logs that tell of a denial: in a pipeline by itself there are none."""
    logs = sorted((cluster.settings.data_dir / "logs").glob("*.log"))
    lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
    return [line for line in lines if any(word in line for word in _SAID)]

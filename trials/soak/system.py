"""What a soak runs: a pipeline with more than one of everything that may be several.

gateway-0, gateway-1     conductor-0 active, conductor-1 stands by     vision-0, vision-1
stage-0 … stage-(S-1)    the model once        stage-S …    spares: further workers for some of the ranges
nats, redis              one of each
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.local.cuts import balanced_cut
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.processes import run_python

_WRITE_CHECKPOINT = """
import sys
from pathlib import Path
from export.synthetic.random_checkpoint import write_random_checkpoint
write_random_checkpoint(Path(sys.argv[1]))
"""


async def random_model(directory: Path) -> Path:
    """Export a small model of random weights into `directory`, and return the artifact.

    A process of its own does it: this one does without torch.
    """
    checkpoint = directory / "checkpoint"
    await run_python("checkpoint", ["-c", _WRITE_CHECKPOINT, str(checkpoint)], log_path=directory / "checkpoint.log")
    return await make_artifact(directory, checkpoint)


def soak_system(
    model: Path,
    directory: Path,
    *,
    num_stages: int,
    num_spares: int = 2,
    has_shares: bool = False,
    device: str = "cpu",
    is_deterministic: bool = False,
    extra_arguments: Mapping[str, tuple[str, ...]] | None = None,
) -> LocalSettings:
    """Return the settings of a model cut into `num_stages`, of which the last `num_spares` have a second worker.

    The last ones, since losing the stage that samples hurts most. With `has_shares` the spares, as many as there are
    stages, are the second of two shares. Raises `ConfigurationError`.
    """
    if has_shares and num_spares != num_stages:
        raise ConfigurationError(f"--shares takes two whole copies: give --spares {num_stages}", field="spares")
    stages = balanced_cut(model, num_stages)
    return LocalSettings(
        model=model.absolute(),
        stages=(*stages, *stages[::-1][:num_spares]),
        data_dir=directory,
        shares=("0",) * num_stages + ("1",) * num_spares if has_shares else (),
        num_gateways=2,
        num_conductors=2,
        num_vision_workers=2,
        num_threads=1,
        kv_tokens=8192,
        device=device,
        is_deterministic=is_deterministic or None,
        namespace="soak",
        drain_s=5.0,
        start_timeout_s=120.0,
        extra_arguments=extra_arguments or {},
    )


def components(system: LocalSettings) -> tuple[str, ...]:
    """Return the names of everything that a fault may hit."""
    return ("nats", "redis", *system.services)

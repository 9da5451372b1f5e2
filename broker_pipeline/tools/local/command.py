"""The command `broker-pipeline up`: everything on one machine."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.config import option
from broker_pipeline.errors import ConfigurationError, GatewayUnreachableError
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import balanced_cut, parse_cut
from broker_pipeline.tools.local.gpus.devices import count_cuda_devices, vision_shares_gpu
from broker_pipeline.tools.local.gpus.mps import mps_service
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.preflight import check_start
from broker_pipeline.tools.local.run import run_cluster
from broker_pipeline.tools.local.view import LiveView, local_view
from broker_pipeline.tools.operate.status_view import describe_work
from broker_pipeline.tools.terminal import make_console

_POSITIVE = click.IntRange(min=1)
_DEFAULT_NUM_STAGES = 3
_MOST_GATEWAY_PROCESSES = 4
_SHOW_JOBS_S = 2.0
_SAME_NAMES = (
    *("host", "port", "nats_url", "redis_url", "namespace", "pipeline"),
    *("device", "dtype", "kv_tokens", "default_max_tokens", "drain_s", "log_level", "verify_weights", "on_other_model"),
    "edges",
)


@click.command()
@option(
    "--model",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory that `broker-pipeline export` made.",
)
@option("--stages", type=_POSITIVE, help="Number of stages. [default: one per GPU, else 3]")
@option("--cut", help="First layer of every stage but the first, such as 2,10. [default: stages of equal size]")
@option("--vision-workers", default=1, type=_POSITIVE, help="Number of vision workers.")
@option(
    "--vision-process",
    default="auto",
    type=click.Choice(["auto", "shared", "separate"]),
    help="Where the first vision worker runs: in the process of the first stage, where visual rows need not leave the "
    "GPU, or in one of its own. auto shares a process where it would share the GPU.",
)
@option("--mps", is_flag=True, help="Workers on one GPU share it through NVIDIA's MPS, instead of time slicing.")
@option("--host", default="127.0.0.1", help="Address of the gateway; 0.0.0.0 for all.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="Port of the gateway; 0 picks a free one.")
@option(
    "--gateway-processes",
    type=_POSITIVE,
    help="Processes of the gateway, on one port. [default: one per four cores, up to 4]",
)
@option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where jobs, results and logs are kept between runs. [default: broker-pipeline in $XDG_STATE_HOME]",
)
@option("--nats-url", help="Use this NATS server. [default: one of its own]")
@option("--redis-url", help="Use this Redis. [default: one of its own]")
@option("--namespace", default="bp", help="Prefix of every subject, stream and key.")
@option("--pipeline", default="main", help="Name of the pipeline.")
@option("--device", help="Device of every worker, such as cpu. [default: the GPUs round-robin, else the CPU]")
@option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), help="Dtype of the workers. [default: auto]")
@option(
    "--deterministic",
    is_flag=True,
    help="Compute batch-invariantly: what shares a session's batches changes none of its tokens; slower.",
)
@option(
    "--verify-weights/--no-verify-weights",
    default=True,
    help="Compare weights with the artifact's hashes while they are read; once, unless a file changes.",
)
@option(
    "--edges",
    default="auto",
    type=click.Choice(["auto", "nats", "shm", "tcp"]),
    help="How hidden states and visual rows pass between workers: the best way that works, NATS alone, shared memory "
    "(shm), or connections of their own (tcp).",
)
@option("--threads", type=_POSITIVE, help="Threads of each worker. [default: the cores, shared out]")
@option("--kv-tokens", type=_POSITIVE, help="KV cache of each stage, in tokens. [default: what fits]")
@option(
    "--on-other-model",
    default="restart",
    type=click.Choice(["restart", "fail"]),
    help="What becomes of jobs under way with tokens of another model: they begin again with this one from token 0, or "
    "fail.",
)
@option(
    "--default-max-tokens",
    type=_POSITIVE,
    help="Output limit of jobs that ask for none. [default: the model's own, else a share of the KV cache]",
)
@option(
    "--drain-s",
    default=10.0,
    type=click.FloatRange(min=0),
    help="Seconds that each service has to drain.",
)
@option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Lowest level logged.",
)
@option(
    "--profile",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write a trace of every service into; see `broker-pipeline trace --help`.",
)
def command(**options: Any) -> None:
    """Run a whole pipeline on this machine, each service in a process of its own.

    With one GPU, the vision worker shares the process of the first stage.

    Starts NATS, Redis, a gateway, a conductor, vision workers and stages, shows what is ready, restarts what dies, and
    stops all of it in order at Ctrl-C. Jobs that are not finished by then are taken up at the next start.

    \b
    Exit codes: 0 stopped in order, 2 wrong usage or setting (a taken port, a directory that cannot be made),
    69 a part did not start, 75 a worker's name is taken, 78 the artifact is incomplete, 130 killed by a second signal.

    \b
    Examples:
      broker-pipeline up --model ./artifacts/8b --stages 3
      broker-pipeline up --model ./artifacts/8b --cut 2,10 --vision-workers 2 --port 9000
    """
    sys.exit(asyncio.run(_up(options)))


async def _up(options: dict[str, Any]) -> int:
    settings = local_settings(options, num_cuda_devices=await count_cuda_devices())
    check_start(settings)
    if not options["mps"]:
        return await _serve(settings)
    async with mps_service(settings.data_dir / "mps") as env:
        return await _serve(replace(settings, worker_env=env))


async def _serve(settings: LocalSettings) -> int:
    console = make_console(may_vanish=True)
    view = local_view(console)

    async def serve(cluster: LocalCluster) -> None:
        view.say(_welcome(cluster))
        while True:
            await asyncio.sleep(_SHOW_JOBS_S)
            if isinstance(view, LiveView):
                view.say(_welcome(cluster) + await _jobs(cluster.gateway_url))

    code = await run_cluster(settings, view, serve)
    console.print(f"stopped; jobs, results and logs are in {settings.data_dir}", markup=False, soft_wrap=True)
    return code


def local_settings(options: dict[str, Any], *, num_cuda_devices: int) -> LocalSettings:
    """Turn the command's options into settings; raises `ConfigurationError` and `ArtifactError`."""
    model = options["model"].absolute()
    stages = choose_stages(model, options["stages"], options["cut"], num_cuda_devices)
    num_vision_workers = options["vision_workers"]
    shares_vision = options["vision_process"] == "shared" or (
        options["vision_process"] == "auto"
        and vision_shares_gpu(len(stages), num_vision_workers, num_cuda_devices, options["device"])
    )
    return LocalSettings(
        model=model,
        stages=stages,
        data_dir=options["data_dir"] or _default_data_dir(options["pipeline"]),
        num_gateway_processes=options["gateway_processes"] or default_gateway_processes(len(os.sched_getaffinity(0))),
        num_vision_workers=num_vision_workers - shares_vision,
        shares_vision=shares_vision,
        num_cuda_devices=num_cuda_devices,
        num_threads=options["threads"],
        is_deterministic=options["deterministic"],
        profile=options["profile"] and options["profile"].absolute(),
        **{name: options[name] for name in _SAME_NAMES},
    )


def default_gateway_processes(num_cores: int) -> int:
    """Return how many processes of the gateway leave enough cores to everybody else."""
    return min(max(1, num_cores // 4), _MOST_GATEWAY_PROCESSES)


def choose_stages(
    model: Path, num_stages: int | None, cut: str | None, num_cuda_devices: int
) -> tuple[BlockRange, ...]:
    """Return the block ranges that `--stages` and `--cut` ask for."""
    num_layers = read_model_facts(model).num_layers
    if cut is None:
        default = min(num_cuda_devices or _DEFAULT_NUM_STAGES, num_layers)
        return balanced_cut(model, num_stages or default)
    stages = parse_cut(cut, num_layers)
    if num_stages not in {None, len(stages)}:
        raise ConfigurationError(
            f"--cut {cut} makes {len(stages)} stages and --stages says {num_stages}: leave one of them out", field="cut"
        )
    return stages


async def _jobs(gateway_url: str) -> str:
    try:
        status = await fetch_status(gateway_url)
    except GatewayUnreachableError:
        return "jobs    unknown: the gateway does not answer"
    return describe_work(status)


def _default_data_dir(pipeline: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigurationError("no home directory: say where with --data-dir", field="data_dir") from error
    return base / "broker-pipeline" / pipeline


def _welcome(cluster: LocalCluster) -> str:
    url = cluster.gateway_url
    return (
        f"\nready: {url}\n\n"
        f"  broker-pipeline caption PICTURES --gateway {url}\n"
        f"  broker-pipeline status --gateway {url}\n\n"
        f"logs in {cluster.settings.data_dir / 'logs'}; Ctrl-C stops everything\n"
    )

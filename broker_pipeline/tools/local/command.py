"""The command `broker-pipeline up`: everything on one machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from broker_pipeline import exit_codes
from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.client.operator_token import state_home
from broker_pipeline.config import (
    MEDIA_ROOTS_OPTION,
    SECRETS_OPTION,
    PathType,
    add_options,
    flag_of,
    option,
    refuse_unread,
)
from broker_pipeline.errors import ConfigurationError, GatewayUnreachableError
from broker_pipeline.planning.planner import choose_plan
from broker_pipeline.planning.summary import describe_plan
from broker_pipeline.planning.workload import Workload
from broker_pipeline.process.terminal import make_console
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.gpus.devices import CudaDevice, check_device, cuda_devices, with_memory, without_fp8
from broker_pipeline.tools.local.gpus.mps import mps_service
from broker_pipeline.tools.local.layouts import (
    layout_request,
    layout_settings,
    read_sizes,
    served_dtype,
    site_of,
    used_gpus,
)
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.preflight import check_start
from broker_pipeline.tools.local.run import run_cluster
from broker_pipeline.tools.local.view import LiveView, local_view
from broker_pipeline.tools.operate.status_view import describe_work
from broker_pipeline.wire.edges.options import EDGE_NAMES, EDGE_OPTIONS, refuse_unread_edge_options

_POSITIVE = click.IntRange(min=1)
_MOST_GATEWAY_PROCESSES = 4
_SHOW_JOBS_S = 2.0
_WORTH_SAYING = 1.1  # times the captions, by what is predicted
_SAME_NAMES = (
    *("host", "port", "nats_url", "nats_replicas", "redis_url", "namespace", "pipeline"),
    *(
        "dtype",
        "gpu_memory_gb",
        "kv_tokens",
        "kv_dtype",
        "default_max_tokens",
        "drain_s",
        "log_level",
        "verify_weights",
        "on_other_model",
    ),
    *("otlp_endpoint", "media_roots"),
)


def edge_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about edges, in the place where this stands."""
    return add_options(function, EDGE_OPTIONS)


@click.command()
@option(
    "--model",
    required=True,
    type=PathType(path_type=Path, file_okay=False),
    help="Directory that `broker-pipeline export` made.",
)
@option(
    "--layout",
    default="auto",
    help="Copies of the model, stages of each, or both: auto, copies=4, stages=4, copies=2,stages=2. auto takes what "
    "gives the most captions per second on the GPUs there are.",
)
@option("--stages", type=_POSITIVE, help="Number of stages of one copy. [default: as --layout says; 3 on a CPU]")
@option("--cut", help="First layer of every stage but the first, such as 2,10. [default: the slowest stage is fastest]")
@option("--vision-workers", type=_POSITIVE, help="Number of vision workers. [default: as the layout needs]")
@option(
    "--vision-process",
    default="auto",
    type=click.Choice(["auto", "shared", "every", "beside", "separate"]),
    help="Where vision runs: in the process of each copy's first stage, in that of every stage, in one beside every "
    "stage on its device, or in processes on further devices. auto takes what gives most captions.",
)
@option("--plan", "only_plan", is_flag=True, help="Say what would run and what it would give, and start nothing.")
@option(
    "--conductors",
    type=_POSITIVE,
    help="Conductors, each with some of the copies; they take over from each other, and further ones stand "
    "by. [default: what the layout's rate needs]",
)
@option("--mps", is_flag=True, help="Workers on one GPU share it through NVIDIA's MPS, instead of time slicing.")
@option("--host", default="127.0.0.1", help="Address of the gateway; 0.0.0.0 for all. Others then need a key.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="Port of the gateway; 0 picks a free one.")
@option(
    "--insecure",
    is_flag=True,
    help="With another --host: serve everybody who reaches it, as long as there are no keys.",
)
@option(
    "--gateway-processes",
    type=_POSITIVE,
    help="Processes of the gateway, on one port. [default: what the layout's rate needs; without GPUs one per four "
    "cores, up to 4]",
)
@option(
    "--data-dir",
    type=PathType(path_type=Path, file_okay=False),
    help="Where jobs, results and logs are kept between runs. [default: broker-pipeline in $XDG_STATE_HOME]",
)
@option("--nats-url", help="Use this NATS server. [default: one of its own]")
@option("--nats-replicas", default=1, type=click.IntRange(1, 5), help="Servers of that one's cluster for each stream.")
@option("--redis-url", help="Use this Redis. [default: one of its own]")
@SECRETS_OPTION
@option("--namespace", default="bp", help="Prefix of every subject, stream and key.")
@option("--pipeline", default="main", help="Name of the pipeline.")
@option("--device", help="Device of every worker, such as cpu. [default: the GPUs round-robin, else the CPU]")
@option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), help="Dtype of the workers. [default: auto]")
@option(
    "--deterministic/--no-deterministic",
    default=None,
    help="Compute batch-invariantly: what shares a session's batches changes none of its tokens.  [default: on GPUs, "
    "unless weights are in FP8]",
)
@option(
    "--verify-weights/--no-verify-weights",
    default=True,
    help="Compare weights with the artifact's hashes while they are read; once, unless a file changes.",
)
@edge_options
@option(
    "--threads",
    type=_POSITIVE,
    help="Threads of each worker. [default: 1 where GPUs do the work, else the cores, shared out]",
)
@option(
    "--gpu-memory-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Take the GPUs for such of so many GB (10^9 bytes), to see what smaller ones would do. "
    "[default: all they have]",
)
@option("--kv-tokens", type=_POSITIVE, help="KV cache of each stage, in tokens. [default: what fits]")
@option(
    "--kv-dtype",
    default="auto",
    type=click.Choice(["auto", "fp8"]),
    help="Dtype of the KV cache: auto is that of --dtype, fp8 half of bfloat16's bytes.",
)
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
    help="Seconds to drain in, at the end.",
)
@option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Lowest level logged.",
)
@option(
    "--profile",
    type=PathType(path_type=Path, file_okay=False),
    help="Directory to write a trace of every service into; see `broker-pipeline trace --help`.",
)
@option(
    "--otlp-endpoint",
    default="",
    help="OpenTelemetry collector (http://HOST:4318) that is sent a trace of every job; needs the extra otel.",
)
@MEDIA_ROOTS_OPTION
def command(**options: Any) -> None:
    """Run a whole pipeline on this machine, each service in a process of its own.

    On GPUs the layout is what the planner expects the most captions of: copies where the model fits, stages where it
    does not. It is said in two lines before anything starts.

    Starts NATS, Redis, a gateway, a conductor, vision workers and stages, shows what is ready, restarts what dies, and
    stops all of it in order at Ctrl-C. Jobs that are not finished by then are taken up at the next start.

    \b
    Exit codes: 0 stopped in order, 2 wrong usage or setting (a taken port, a directory that cannot be made),
    69 a part did not start, 75 a worker's name is taken, 78 the artifact is incomplete, 130 killed by a second signal.

    \b
    Examples:
      broker-pipeline up --model ./artifacts/8b
      broker-pipeline up --model ./artifacts/8b --layout copies=2,stages=2 --plan
      broker-pipeline up --model ./artifacts/8b --cut 2,10 --vision-workers 2 --port 9000
    """
    sys.exit(asyncio.run(_up(options)))


async def _up(options: dict[str, Any]) -> int:
    refuse_unread_edge_options(options["edges"])
    if options["nats_url"] is None:
        refuse_unread("nats_replicas", why="is for a cluster: give its --nats-url")
    settings, lines = local_settings(options, await cuda_devices(options["device"]))
    if not options["only_plan"]:
        check_start(settings)
    console = make_console(may_vanish=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options["only_plan"]:
        return exit_codes.OK
    if not options["mps"]:
        return await _serve(settings, console)
    async with mps_service(settings.data_dir / "mps") as env:
        return await _serve(replace(settings, worker_env=env), console)


async def _serve(settings: LocalSettings, console: Console) -> int:
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


def local_settings(options: dict[str, Any], gpus: Sequence[CudaDevice]) -> tuple[LocalSettings, tuple[str, str]]:
    """Turn the command's options into settings, and into two lines that say what was chosen and why.

    Raises `ConfigurationError` and `ArtifactError`.
    """
    if options["device"] is not None:
        check_device(options["device"], len(gpus))
    used = with_memory(used_gpus(gpus, options["device"]), options["gpu_memory_gb"])
    if options["mps"] and not used:
        raise ConfigurationError("--mps has no effect without GPUs: leave it out", field="mps")
    model = options["model"].absolute()
    if (kv_in_fp8 := options["kv_dtype"] == "fp8") and (older := without_fp8(used)):
        problem = f"{older.name} has no FP8, which GPUs have from Ada and Hopper on; leave it out"
        raise ConfigurationError(f"--kv-dtype fp8: {problem}", field="kv_dtype")
    read = partial(read_sizes, model, served_dtype(options["dtype"]), on_gpus=bool(used))
    sizes, request = read(kv_in_fp8=kv_in_fp8), layout_request(options, has_gpus=bool(used))
    site, work = site_of(used, options["edges"]), Workload()
    plan = choose_plan(sizes, site, work, request)
    everywhere = gpus and options["device"] in {"auto", "cuda"}
    settings = LocalSettings(
        model=model,
        data_dir=options["data_dir"] or state_home() / options["pipeline"],
        num_gateway_processes=options["gateway_processes"]
        or (plan.num_gateways if used else default_gateway_processes(len(os.sched_getaffinity(0)))),
        num_cuda_devices=len(gpus),
        device=None if everywhere else options["device"],
        num_threads=options["threads"],
        is_deterministic=options["deterministic"],
        profile=options["profile"] and options["profile"].absolute(),
        **layout_settings(plan, options["vision_workers"], options["conductors"], has_gpus=bool(used)),
        is_insecure=options["insecure"],
        secrets=Path(options["secrets"]).absolute() if options["secrets"] else None,
        edge_flags={flag_of(name): options[name] for name in EDGE_NAMES},
        **{name: options[name] for name in _SAME_NAMES},
    )
    chosen, predicted = describe_plan(sizes, site, work, plan)
    if used and not kv_in_fp8 and plan.forecast.is_full and not without_fp8(used):
        in_fp8 = choose_plan(read(kv_in_fp8=True), site, work, request).forecast.captions_per_s
        if in_fp8 > _WORTH_SAYING * plan.forecast.captions_per_s:
            predicted += f"; with --kv-dtype fp8 {in_fp8:.3g}"
    return settings, (chosen, predicted)


def default_gateway_processes(num_cores: int) -> int:
    """Return how many processes of the gateway leave enough cores to everybody else on the same processor."""
    return min(max(1, num_cores // 4), _MOST_GATEWAY_PROCESSES)


async def _jobs(gateway_url: str) -> str:
    try:
        status = await fetch_status(gateway_url)
    except GatewayUnreachableError:
        return "jobs    unknown: the gateway does not answer"
    return describe_work(status)


def _welcome(cluster: LocalCluster) -> str:
    url = cluster.gateway_url
    return (
        f"\nready: {url}\n\n"
        f"  broker-pipeline caption PICTURES --gateway {url}\n"
        f"  broker-pipeline status --gateway {url}\n\n"
        f"logs in {cluster.settings.data_dir / 'logs'}; Ctrl-C stops everything\n"
    )

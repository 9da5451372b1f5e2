"""What `up` and `bench pipeline` run where: the planner's question put for this machine, and its answer as settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from broker_pipeline.artifact_manifest import Dtype, read_manifest
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.model_facts import read_model_facts, read_most_picture_pixels
from broker_pipeline.planning.devices import gpu, processor
from broker_pipeline.planning.layout import LayoutRequest, parse_layout
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import Plan
from broker_pipeline.planning.site import Site
from broker_pipeline.tools.local.cuts import balanced_cut, parse_cut
from broker_pipeline.tools.local.gpus.devices import CudaDevice
from broker_pipeline.wire.edges.settings import EdgeChoice

_DEFAULT_NUM_STAGES = 3
_MOST_SESSIONS, _MOST_JOBS = 512, 1024  # the conductor's own defaults: a route's sessions, and jobs of a share
_WAITING = 256
"""Jobs beside those on the stages: being prepared, and waiting for room."""


def read_sizes(
    artifact: Path, dtype: Dtype | None = None, *, on_gpus: bool = True, kv_in_fp8: bool = False
) -> ModelSizes:
    """Read what the planner needs to know of an artifact; raises `ArtifactError`."""
    return ModelSizes.of(
        read_manifest(artifact),
        read_model_facts(artifact),
        dtype,
        keeps_fp8=on_gpus,
        kv_in_fp8=kv_in_fp8,
        most_picture_pixels=read_most_picture_pixels(artifact),
    )


def served_dtype(dtype: str | None) -> Dtype | None:
    """Return the dtype that workers are told to serve in, None where they keep the artifact's."""
    return cast("Dtype", dtype) if dtype in get_args(Dtype) else None


def site_of(gpus: Sequence[CudaDevice], edges: EdgeChoice = "auto") -> Site:
    """Return this machine with these GPUs, or with its processor where there are none; its workers share memory."""
    num_cores, edge = len(os.sched_getaffinity(0)), "shm" if edges == "auto" else edges
    if gpus:
        return Site(devices=tuple(gpu(each.name, each.memory_bytes) for each in gpus), num_cores=num_cores, edge=edge)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Site(devices=(processor(num_cores, memory_bytes),), num_cores=num_cores, edge=edge)


def used_gpus(gpus: Sequence[CudaDevice], device: str | None) -> tuple[CudaDevice, ...]:
    """Return the GPUs that `--device` leaves: all, one, or none."""
    if device in {None, "auto", "cuda"}:
        return tuple(gpus)
    index = str(device).removeprefix("cuda:")
    return tuple(gpus[int(index) : int(index) + 1]) if index.isdigit() else ()


def layout_request(options: dict[str, Any], *, has_gpus: bool) -> LayoutRequest:
    """Turn `--layout`, `--stages`, `--cut`, `--vision-process` and `--vision-workers` into a request.

    On a processor, where the planner knows little, it is three stages of equal size, and vision beside them.

    Raises `ConfigurationError`.
    """
    model, cut, num_stages = options["model"], options["cut"], options["stages"]
    asked = parse_layout(options["layout"])
    num_layers = read_model_facts(model).num_layers
    if asked.num_stages is not None and (cut is not None or num_stages is not None):
        raise ConfigurationError(
            f"--layout {options['layout']} says how many stages there are: leave --stages and --cut out", field="layout"
        )
    num_copies, chain = asked.num_copies, None
    num_stages = num_stages or asked.num_stages
    if cut is not None:
        num_copies, chain = 1, parse_cut(cut, num_layers)
        if num_stages not in {None, len(chain)}:
            raise ConfigurationError(
                f"--cut {cut} makes {len(chain)} stages and --stages says {num_stages}: leave one of them out",
                field="cut",
            )
    elif not has_gpus:
        num_copies = num_copies or 1
        chain = balanced_cut(model, num_stages or min(_DEFAULT_NUM_STAGES, num_layers))
    elif num_stages is not None:
        num_copies = num_copies or 1
    vision = options["vision_process"] if options["vision_process"] != "auto" else None
    return LayoutRequest(
        num_copies=num_copies,
        num_stages=len(chain) if chain else num_stages,
        chain=chain,
        vision=vision or (None if has_gpus else "separate"),
        num_vision_workers=options["vision_workers"] or (None if has_gpus else 1),
    )


def layout_settings(
    plan: Plan, num_vision_workers: int | None, num_conductors: int | None = None, *, has_gpus: bool
) -> dict[str, Any]:
    """Return the fields of `LocalSettings` that a plan decides; `num_vision_workers` are wanted in all.

    `num_conductors` None are as many as the plan says; more than there are copies stand by. Raises `ConfigurationError`
    where vision's place has another number of workers.
    """
    num_conductors, layout = num_conductors or plan.num_conductors, plan.layout
    shares = layout.shares(num_conductors)
    settings = conductor_settings(plan, num_conductors) if has_gpus else {}
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    separate = len(layout.encoders) or max(0, (num_vision_workers or 1) - len(layout.vision_stages))
    if num_vision_workers not in {None, num_vision := separate + len(layout.vision_stages)}:
        raise ConfigurationError(
            f"--vision-workers {num_vision_workers}: with {len(layout.stages)} stages, vision {layout.vision} is "
            f"{num_vision} vision workers; leave it out, or add --vision-process separate",
            field="vision_workers",
        )
    return {
        "stages": layout.stages,
        "shares": shares,
        "num_conductors": num_conductors,
        "vision_stages": layout.vision_stages,
        "num_vision_workers": separate,
        "is_vision_beside": layout.vision == "beside",
        "extra_arguments": {"conductor": tuple(flags)} if flags else {},
    }


def conductor_settings(plan: Plan, num_conductors: int | None = None) -> dict[str, str]:
    """Return the settings of a conductor, by their flags: the prediction, and limits where its defaults are less."""
    shares = plan.layout.shares(num_conductors or plan.num_conductors)
    jobs = -(-plan.forecast.num_sessions // len(set(shares))) + _WAITING  # of a share
    sessions = max(plan.forecast.copy_sessions)
    wanted = {"max-sessions": (sessions, _MOST_SESSIONS), "max-jobs": (jobs, _MOST_JOBS)}
    limits = {name: str(value) for name, (value, default) in wanted.items() if value > default}
    return {"predicted-captions-per-s": f"{plan.forecast.captions_per_s:.3g}"} | limits

"""What `bench pipeline` is asked to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.planning.forecast import Forecast, forecast
from broker_pipeline.planning.layout import Layout, LayoutRequest, VisionPlace, parse_layout
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import Plan, choose_plan
from broker_pipeline.planning.workload import Workload
from broker_pipeline.tools.local.cuts import balanced_cut
from broker_pipeline.tools.local.gpus.devices import CudaDevice, with_memory
from broker_pipeline.tools.local.layouts import read_sizes, served_dtype, site_of, used_gpus
from broker_pipeline.tools.local.plan import LocalSettings
from trials.bench.work import Rounds, WorkSettings, num_visual_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system to measure."""

    name: str
    layout: Layout
    local: LocalSettings


class PipelineSettings(WorkSettings, frozen=True, kw_only=True):
    """The work, and the systems to try: one for every number of stages or layout, and place of vision."""

    num_stages: tuple[int, ...]
    layouts: tuple[str, ...]
    """As for `up --layout`; where there are any, they stand in place of `num_stages`."""
    vision: tuple[VisionPlace, ...]
    num_sessions: int
    """Most sessions that the conductor has computed at a time."""
    dtype: str | None
    num_threads: int | None
    """Threads of each worker of the whole system; None shares the cores out."""
    num_conductors: int | None
    """Conductors, each with some of the copies; None is what the planner expects to be needed."""
    kv_tokens: int | None
    """Of every stage; None is what so many sessions need, or what fits where `gpu_memory_gb` are given."""
    kv_dtype: str
    """What stages hold keys and values in: `auto` or `fp8`."""
    gpu_memory_gb: float | None
    """GB that GPUs count as having; None is all they have."""
    with_in_process: bool
    in_process_threads: tuple[int, ...]
    """Numbers of threads to try; empty for all cores, and on the CPU one as well."""
    mps: bool
    predict: bool
    """Whether rows have the planner's prediction beside what was measured."""
    profile: str | None
    """Directory below which each system's services write traces."""
    extra_arguments: dict[str, tuple[str, ...]]

    @property
    def asked_layouts(self) -> tuple[str, ...]:
        """The layouts to try, in words of `up --layout`."""
        return self.layouts or tuple(f"stages={number}" for number in self.num_stages)

    def systems(self, model: Path, directory: Path, rounds: Rounds, gpus: Sequence[CudaDevice]) -> Iterator[System]:
        """Yield the systems; raises `ConfigurationError` for a layout that cannot be."""
        for asked in self.asked_layouts:
            for place in self.vision:
                plan = self._plan(model, asked, place, gpus)
                layout, num_conductors = plan.layout, self.num_conductors or plan.num_conductors
                label = asked.removeprefix("stages=").replace("=", "-").replace(",", "-")
                local = LocalSettings(
                    model=model.absolute(),
                    stages=layout.stages,
                    shares=layout.shares(num_conductors),
                    num_conductors=num_conductors,
                    num_gateway_processes=plan.num_gateways if self._used(gpus) else 1,
                    vision_stages=layout.vision_stages,
                    num_vision_workers=len(layout.encoders),
                    is_vision_beside=layout.vision == "beside",
                    data_dir=directory / f"system-{label}-{place}",
                    num_cuda_devices=len(gpus),
                    device=self.device if self.device != "cuda" else None,
                    dtype=self.dtype,
                    num_threads=self.num_threads,
                    kv_dtype=self.kv_dtype,
                    gpu_memory_gb=self.gpu_memory_gb,
                    kv_tokens=self.kv_tokens or self._needed_kv_tokens(rounds, len(layout.chains)),
                    restarts=False,
                    profile=Path(self.profile) / f"{label}-{place}" if self.profile else None,
                    extra_arguments=self.extra_arguments,
                )
                yield System(name=self._name(layout, place, num_conductors), layout=layout, local=local)

    def forecast(self, model: Path, layout: Layout, num_prompt_tokens: int, gpus: Sequence[CudaDevice]) -> Forecast:
        """Predict what a layout gives for this work."""
        used = self._used(gpus)
        return forecast(self._sizes(model, used), site_of(used), self._workload(num_prompt_tokens), layout)

    def _plan(self, model: Path, asked: str, place: VisionPlace, gpus: Sequence[CudaDevice]) -> Plan:
        """Cut as `up` would: on GPUs so that the slowest stage is fastest, elsewhere into stages of equal size."""
        request, used = parse_layout(asked), self._used(gpus)
        chain = None if used or request.num_stages is None else balanced_cut(model, request.num_stages)
        request = LayoutRequest(
            num_copies=request.num_copies,
            num_stages=request.num_stages,
            chain=chain,
            vision=place,
            num_vision_workers=1 if place == "separate" else None,
        )
        return choose_plan(self._sizes(model, used), site_of(used), self._workload(None), request)

    def _sizes(self, model: Path, used: Sequence[CudaDevice]) -> ModelSizes:
        return read_sizes(model, served_dtype(self.dtype), on_gpus=bool(used), kv_in_fp8=self.kv_dtype == "fp8")

    def _used(self, gpus: Sequence[CudaDevice]) -> tuple[CudaDevice, ...]:
        return with_memory(used_gpus(gpus, self.device), self.gpu_memory_gb)

    def _needed_kv_tokens(self, rounds: Rounds, num_copies: int) -> int | None:
        return None if self.gpu_memory_gb else rounds.warm_up.kv_tokens(-(-self.num_sessions // num_copies))

    def _workload(self, num_prompt_tokens: int | None) -> Workload:
        visual = num_visual_tokens(self.picture_side)
        return Workload(
            num_prompt_tokens=num_prompt_tokens or visual + len(self.prompt.encode()),
            num_visual_tokens=visual,
            num_output_tokens=self.num_output_tokens,
            num_sessions=min(self.num_sessions, self.num_in_flight),
            num_captions=self.num_pictures,
        )

    def _name(self, layout: Layout, place: VisionPlace, num_conductors: int) -> str:
        num_copies, num_stages = len(layout.chains), len(layout.chains[0])
        name = "whole system, " + (f"{num_copies} copies of " if num_copies > 1 else "")
        name += f"{num_stages} {'stages' if num_stages > 1 else 'stage'}"
        name += f", vision {place}" if len(self.vision) > 1 or place != "separate" else ""
        name += f", {num_conductors} conductors" if num_conductors > 1 else ""
        return name + (", MPS" if self.mps else "")

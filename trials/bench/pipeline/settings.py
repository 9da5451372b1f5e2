"""What `bench pipeline` is asked to compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from broker_pipeline.tools.local.cuts import balanced_cut
from broker_pipeline.tools.local.plan import LocalSettings
from trials.bench.work import Rounds, WorkSettings

VisionPlace = Literal["separate", "shared"]


class PipelineSettings(WorkSettings, frozen=True, kw_only=True):
    """The work, and the systems to try: one for every number of stages and place of the vision worker."""

    num_stages: tuple[int, ...]
    vision: tuple[VisionPlace, ...]
    """In a process of its own, or in that of the first stage."""
    num_sessions: int
    """Most sessions that the conductor has computed at a time."""
    dtype: str | None
    num_threads: int | None
    """Threads of each worker of the whole system; None shares the cores out."""
    kv_tokens: int | None
    """Of every stage; None is what so many sessions need."""
    with_in_process: bool
    in_process_threads: tuple[int, ...]
    """Numbers of threads to try; empty for all cores, and on the CPU one as well."""
    mps: bool
    profile: str | None
    """Directory below which each system's services write traces."""
    extra_arguments: dict[str, tuple[str, ...]]

    def systems(
        self, model: Path, directory: Path, rounds: Rounds, num_gpus: int
    ) -> Iterator[tuple[str, LocalSettings]]:
        """Yield name and settings of each system; raises `ConfigurationError` for a cut that cannot be."""
        for num_stages in self.num_stages:
            for place in self.vision:
                yield (
                    self._name(num_stages, place),
                    LocalSettings(
                        model=model.absolute(),
                        stages=balanced_cut(model, num_stages),
                        data_dir=directory / f"system-{num_stages}-{place}",
                        num_vision_workers=0 if place == "shared" else 1,
                        shares_vision=place == "shared",
                        num_cuda_devices=num_gpus,
                        device=self.device if self.device != "cuda" else None,
                        dtype=self.dtype,
                        num_threads=self.num_threads,
                        kv_tokens=self.kv_tokens or rounds.warm_up.kv_tokens(self.num_sessions),
                        restarts=False,
                        profile=Path(self.profile) / f"{num_stages}-{place}" if self.profile else None,
                        extra_arguments=self.extra_arguments,
                    ),
                )

    def _name(self, num_stages: int, place: VisionPlace) -> str:
        name = f"whole system, {num_stages} {'stages' if num_stages > 1 else 'stage'}"
        name += f", vision {place}" if len(self.vision) > 1 or place == "shared" else ""
        return name + (", MPS" if self.mps else "")

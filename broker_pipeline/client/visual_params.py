"""How pictures and videos of a run are seen."""

from __future__ import annotations

import msgspec

from broker_pipeline.messages.jobs import Fps, NumFrames, Pixels


class VisualParams(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """Pixels that each picture is resized to, and frames that are seen of each video; None leaves it to the model."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    fps: Fps | None = None
    """Frames of a second."""
    max_frames: NumFrames | None = None

    def __post_init__(self) -> None:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"{self.min_pixels} are more than `max_pixels`, {self.max_pixels}")

    def of(self, *, is_video: bool) -> VisualParams:
        """Return what of this is about videos, or about pictures."""
        if is_video:
            return VisualParams(fps=self.fps, max_frames=self.max_frames)
        return VisualParams(min_pixels=self.min_pixels, max_pixels=self.max_pixels)


AS_THE_MODEL_HAS_IT = VisualParams()

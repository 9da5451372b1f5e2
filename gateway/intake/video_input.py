"""Whether what a request says of a video makes sense together."""

from __future__ import annotations

from itertools import pairwise

from msgspec import UNSET

from broker_pipeline.errors import InvalidRequestError
from gateway.schemas import VideoInput


def check_video_input(video: VideoInput, path: str) -> None:
    """Raise `InvalidRequestError`, naming the field below `path`, for a video that is neither a file nor frames."""
    is_file = video.url is not UNSET
    if is_file == bool(video.frames):
        raise InvalidRequestError("give either the `url` of a video file or its `frames`", field=path)
    if video.max_frames is not UNSET and not is_file:
        raise InvalidRequestError("`max_frames` is for video files", field=f"{path}.max_frames")
    if video.times:
        _check_times(video, f"{path}.times", is_file=is_file)


def _check_times(video: VideoInput, path: str, *, is_file: bool) -> None:
    if is_file:
        raise InvalidRequestError("a video file has times of its own", field=path)
    if video.fps is not UNSET:
        raise InvalidRequestError("give either `fps` or `times`", field=path)
    if len(video.times) != len(video.frames):
        raise InvalidRequestError(f"{len(video.times)} times for {len(video.frames)} frames", field=path)
    if any(later < earlier for earlier, later in pairwise(video.times)):
        raise InvalidRequestError("times must ascend", field=path)

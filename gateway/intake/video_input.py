"""Whether what a request says of a video makes sense together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from broker_pipeline.errors import InvalidRequestError
from gateway.schemas import VideoInput


def check_video_input(video: VideoInput, path: str) -> None:
    """Raise `InvalidRequestError`, naming the field below `path`, for a video that is neither a file nor frames."""
    is_file = video.url is not None
    if is_file == bool(video.frames):
        raise InvalidRequestError("give either the `url` of a video file or its `frames`", field=path)
    if video.max_frames is not None and not is_file:
        raise InvalidRequestError("`max_frames` is for video files", field=f"{path}.max_frames")
    if is_file and video.times:
        raise InvalidRequestError("a video file has times of its own", field=f"{path}.times")
    if video.times and video.fps is not None:
        raise InvalidRequestError("give either `fps` or `times`", field=f"{path}.times")
    _check_times(video.times or (), len(video.frames or ()), f"{path}.times")


def _check_times(times: Sequence[float], num_frames: int, path: str) -> None:
    if times and len(times) != num_frames:
        raise InvalidRequestError(f"{len(times)} times for {num_frames} frames", field=path)
    for index, (earlier, later) in enumerate(pairwise(times), 1):
        if later <= earlier:
            raise InvalidRequestError(
                f"each frame is shown later than the one before it; {later:g} does not follow {earlier:g}",
                field=f"{path}[{index}]",
            )

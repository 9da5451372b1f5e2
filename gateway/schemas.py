"""Bodies and queries of requests. Limits stand in the types: check, error and OpenAPI document agree."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.messages.jobs import UNBOUNDED, Fps, JobStatus, NumFrames, PixelBounds, Pixels, Priority
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.pictures.rule import MAX_FRAMES

MAX_TEXT_LENGTH = 2_000_000
MAX_BULK = 1000
"""Jobs of one request."""

Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
ImageUrl = Annotated[str, Meta(min_length=1, description="`data:`, `http:`, `https:` or `file:` URL of an image")]
VideoUrl = Annotated[str, Meta(min_length=1, description="`data:`, `http:`, `https:` or `file:` URL of a video file")]
Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Kept with the job and given back; never read."),
]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything here: immutable, strict. What may be left out of a body may be null: clients send that."""


class TextInput(_Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: Text


class SizeInput(_Body, frozen=True, kw_only=True):
    """Bounds on pixels, as transformers names them now. They are no edges, but numbers of pixels."""

    shortest_edge: Pixels | None = None
    longest_edge: Pixels | None = None


class _Sized(_Body, frozen=True, kw_only=True):
    """Base of what may be resized to other bounds than the model's. `min_pixels` and `max_pixels` go before `size`."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    size: SizeInput | None = None

    @property
    def bounds(self) -> PixelBounds:
        """The bounds, whichever way they were given."""
        size = self.size or SizeInput()
        bounds = PixelBounds(
            min_pixels=self.min_pixels or size.shortest_edge, max_pixels=self.max_pixels or size.longest_edge
        )
        return UNBOUNDED if bounds == UNBOUNDED else bounds


class ImageInput(_Sized, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """An image by URL."""

    url: ImageUrl


class VideoInput(_Sized, frozen=True, kw_only=True, tag_field="type", tag="video"):
    """A video: a file by URL, or its frames in order. Its pixels are those of all frames together."""

    url: VideoUrl | None = None
    frames: Annotated[tuple[ImageUrl, ...], Meta(max_length=MAX_FRAMES)] | None = None
    fps: Fps | None = None
    """Of a file, how many frames of a second are seen; of frames, how many make a second. 2 if nothing is said."""
    times: Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Meta(max_length=MAX_FRAMES)] | None = None
    """When each of the frames is shown, in seconds, one after the other, in place of `fps`."""
    max_frames: NumFrames | None = None
    """Of a file, how many frames are seen at most."""


class MessageInput(_Body, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[tuple[TextInput | ImageInput | VideoInput, ...], Meta(min_length=1, max_length=1024)]


class JobRequest(_Sized, frozen=True, kw_only=True):
    """A job: either `prompt` and `images`, or `messages`. Its bounds hold for each image that has none of its own.

    `fps` and `max_frames` are of videos that come as files of a form.
    """

    prompt: Text | None = None
    system: (
        Annotated[Text, Meta(description="what the model is told before `prompt`, as its system message")] | None
    ) = None
    images: Annotated[tuple[ImageUrl, ...], Meta(max_length=1024)] | None = None
    messages: Annotated[tuple[MessageInput, ...], Meta(min_length=1, max_length=1024)] | None = None
    sampling: SamplingParams | None = None
    fps: Fps | None = None
    max_frames: NumFrames | None = None
    metadata: Metadata | None = None
    priority: (
        Annotated[Priority, Meta(description="batch: what waits behind all interactive jobs, but for a small share")]
        | None
    ) = None


class BulkJob(JobRequest, frozen=True, kw_only=True):
    """One job of many."""

    idempotency_key: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,255}$")] | None = None


class BulkRequest(_Body, frozen=True, kw_only=True):
    """Many jobs, each a `BulkJob`: one that is wrong is refused, and the others are accepted."""

    jobs: Annotated[tuple[msgspec.Raw, ...], Meta(min_length=1, max_length=MAX_BULK)]


class WaitRequest(_Body, frozen=True, kw_only=True):
    """Which jobs to wait for, and how long for the first end."""

    job_ids: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")], ...], Meta(min_length=1, max_length=MAX_BULK)
    ]
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 20.0


class JobListQuery(_Body, frozen=True, kw_only=True):
    """Which jobs to list: the newest first, `after` is the `next` of an earlier page."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    after: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]{1,128}$")] | None = None
    status: JobStatus | None = None
    search: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """Words that a job's outputs, or the reason of its failure, have to have, in any order and case."""


class JobQuery(_Body, frozen=True, kw_only=True):
    """How long to wait for a job's end before it is shown as it stands."""

    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0

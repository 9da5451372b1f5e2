"""What a request means, and which field is named when it means nothing."""

import msgspec
import pytest
from msgspec import inspect

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import (
    DEFAULT_PROMPT,
    ImagePart,
    MediaRef,
    PixelBounds,
    TextPart,
    VideoFilePart,
    VideoPart,
)
from broker_pipeline.messages.sampling import RepetitionDetection, SamplingParams
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from broker_pipeline.pictures.rule import PictureRule
from gateway.intake.job_draft import Link, Upload, fill
from gateway.intake.job_request import draft_job
from gateway.intake.validation import decode_json
from gateway.schemas import ImageInput, JobRequest, SizeInput, VideoInput
from gateway.settings import Limits

PICTURE = Upload("image[0]", b"bytes")


def request(body: object) -> JobRequest:
    return decode_json(msgspec.json.encode(body), JobRequest)


def refs(count: int) -> list[MediaRef]:
    return [MediaRef(sha256=f"{index:064x}", object_name=f"o{index}", num_bytes=1) for index in range(count)]


def refused_field(body: object, images: tuple[Upload, ...] = (), max_images: int = 4) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        draft_job(request(body), images, Limits(max_images=max_images))
    return caught.value.field


def test_an_image_without_prompt_is_described() -> None:
    draft = draft_job(request({}), [PICTURE], Limits(max_images=1))
    assert fill(draft, refs(1))[0].content == (ImagePart(media=refs(1)[0]), TextPart(text=DEFAULT_PROMPT))


def test_uploads_stand_before_links_and_both_before_the_prompt() -> None:
    draft = draft_job(request({"prompt": "Compare.", "images": ["http://a/b"]}), [PICTURE], Limits(max_images=2))
    assert draft.sources == (PICTURE, Link("images[0]", "http://a/b"))
    (message,) = fill(draft, refs(2))
    assert message.role == "user"
    assert message.content == (*(ImagePart(media=ref) for ref in refs(2)), TextPart(text="Compare."))


def test_a_video_is_a_file_or_frames() -> None:
    content = [
        {"type": "video", "url": "data:,v", "fps": 4, "max_frames": 8, "max_pixels": 9000},
        {"type": "video", "frames": ["data:,a", "data:,b"], "times": [0, 2.5]},
        {"type": "video", "url": "data:,w"},
    ]
    draft = draft_job(request({"messages": [{"role": "user", "content": content}]}), [], Limits(max_images=4))
    assert [source.is_video for source in draft.sources] == [True, False, False, True]
    (message,) = fill(draft, refs(4))
    assert message.content == (
        VideoFilePart(media=refs(4)[0], fps=4, max_frames=8, bounds=PixelBounds(max_pixels=9000)),
        VideoPart(frames=tuple(refs(4)[1:3]), times=(0, 2.5)),
        VideoFilePart(media=refs(4)[3]),
    )


@pytest.mark.parametrize(
    ("video", "field"),
    [
        ({}, ""),
        ({"url": "data:,v", "frames": ["data:,a"]}, ""),
        ({"frames": ["data:,a"], "max_frames": 3}, ".max_frames"),
        ({"url": "data:,v", "times": [0.0]}, ".times"),
        ({"frames": ["data:,a"], "times": [0.0], "fps": 2}, ".times"),
        ({"frames": ["data:,a"], "times": [0.0, 1.0]}, ".times"),
        ({"frames": ["data:,a", "data:,b"], "times": [1.0, 0.0]}, ".times[1]"),
        ({"frames": ["data:,a", "data:,b", "data:,c"], "times": [0.0, 1.0, 1.0]}, ".times[2]"),
        ({"frames": ["data:,a"], "times": [-1.0]}, ".times[0]"),
    ],
)
def test_a_video_that_makes_no_sense_is_refused(video: dict[str, object], field: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "video"} | video]}]}
    assert (refused_field(body) or "").startswith("messages")
    assert (refused_field(body) or "").endswith(field)


def test_a_forms_video_is_a_file() -> None:
    video = Upload("video[0]", b"bytes", is_video=True)
    (message,) = fill(draft_job(request({"prompt": "What happens?"}), [PICTURE, video], Limits(max_images=2)), refs(2))
    assert [type(part) for part in message.content] == [ImagePart, VideoFilePart, TextPart]
    asked = request({"prompt": "What happens?", "fps": 0.5, "max_frames": 8})
    (message,) = fill(draft_job(asked, [video], Limits()), refs(1))
    seen = message.content[0]
    assert isinstance(seen, VideoFilePart)
    assert (seen.fps, seen.max_frames) == (0.5, 8)


@pytest.mark.parametrize("said", [{"fps": 2.0}, {"max_frames": 8}])
def test_frames_of_what_is_no_video_of_a_form_are_refused(said: dict[str, object]) -> None:
    (name,) = said
    assert refused_field({"prompt": "What?"} | said, (PICTURE,)) == name
    assert refused_field(_conversation({"type": "video", "url": "data:,v"}) | said) == name


def test_images_take_the_jobs_bounds_where_they_have_none_of_their_own() -> None:
    image = {"type": "image", "url": "data:,x"}
    content = [image, image | {"max_pixels": 2000}, image | {"size": {"shortest_edge": 100, "longest_edge": 3000}}]
    body = {"messages": [{"role": "user", "content": content}], "min_pixels": 50, "size": {"longest_edge": 1000}}
    (message,) = fill(draft_job(request(body), [], Limits(max_images=3)), refs(3))
    assert [part.bounds for part in message.content if isinstance(part, ImagePart)] == [
        PixelBounds(min_pixels=50, max_pixels=1000),
        PixelBounds(min_pixels=50, max_pixels=2000),
        PixelBounds(min_pixels=100, max_pixels=3000),
    ]


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"min_pixels": 20, "max_pixels": 10}, "min_pixels is 20, more than max_pixels, 10"),
        ({"max_pixels": 1001}, "1001 pixels; this model's workers resize to 1000 at most"),
        ({"min_pixels": 1001}, "1001 pixels; this model's workers resize to 1000 at most"),
    ],
)
def test_bounds_that_no_worker_keeps_are_refused(bounds: dict[str, int], reason: str) -> None:
    limits = Limits(max_images=1, pictures=PictureRule(max_resized_pixels=1000))
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        draft_job(request({"images": ["data:,x"]} | bounds), [], limits)
    assert caught.value.field == next(iter(bounds))


@pytest.mark.parametrize("bounds", [{"min_pixels": 9}, {"max_pixels": 9}, {"size": {"longest_edge": 9}}])
@pytest.mark.parametrize("media", [(), (Upload("video[0]", b"bytes", is_video=True),)], ids=["nothing", "video"])
def test_bounds_without_an_image_are_refused(bounds: dict[str, object], media: tuple[Upload, ...]) -> None:
    assert refused_field({"prompt": "What?"} | bounds, media) == next(iter(bounds))


def test_null_is_as_good_as_left_out() -> None:
    video = {"type": "video", "url": "data:,v"}
    file = draft_job(request(_conversation(video)), [], Limits())
    nothing = dict.fromkeys(("frames", "fps", "times", "max_frames", "min_pixels", "max_pixels", "size"))
    assert draft_job(request(_conversation(video | nothing)), [], Limits()) == file
    whole = dict.fromkeys(JobRequest.__struct_fields__)
    assert draft_job(request(whole), [PICTURE], Limits()) == draft_job(request({}), [PICTURE], Limits())
    sampling = {"sampling": dict.fromkeys(SamplingParams.__struct_fields__), "prompt": "What?"}
    assert draft_job(request(sampling), [], Limits()) == draft_job(request({"prompt": "What?"}), [], Limits())


def _conversation(part: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [part]}]}


def test_whatever_may_be_left_out_of_a_body_may_be_null() -> None:
    refusing = [
        f"{struct.__name__}.{field.name}"
        for struct in (
            JobRequest,
            VideoInput,
            ImageInput,
            SizeInput,
            SamplingParams,
            RepetitionDetection,
            StructuredOutputs,
        )
        for field in inspect.type_info(struct).fields  # type: ignore[attr-defined]
        if not (field.required or _takes_null(field.type))
    ]
    assert refusing == []


def _takes_null(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.UnionType) and any(isinstance(each, inspect.NoneType) for each in kind.types)


@pytest.mark.parametrize(
    "body", [{"metadata": {"a": None}}, {"no_such": None}, {"sampling": {"logit_bias": {"5": None}}}]
)
def test_null_where_something_must_stand_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        request({"prompt": "What?"} | body)


def test_a_prompt_alone_is_a_job() -> None:
    (message,) = fill(draft_job(request({"prompt": "Hi"}), [], Limits(max_images=1)), [])
    assert message.content == (TextPart(text="Hi"),)


def test_what_becomes_of_a_question_keeps_the_names_that_its_sender_gave() -> None:
    draft = draft_job(request({"prompt": "Compare.", "images": ["http://a/b"]}), [PICTURE], Limits(max_images=2))
    assert draft.sent_as == {
        "messages": "prompt",
        "messages[0].content[0]": "image[0]",
        "messages[0].content[1]": "images[0]",
    }
    assert draft_job(request({}), [PICTURE], Limits(max_images=1)).sent_as["messages"] == "image"
    conversation = {"messages": [{"role": "user", "content": "Hi"}]}
    assert draft_job(request(conversation), [], Limits(max_images=1)).sent_as == {}


def test_a_conversation_keeps_its_order() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "image", "url": "data:,x"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [{"type": "video", "frames": ["http://f/0", "http://f/1"], "fps": 4}]},
        ]
    }
    draft = draft_job(request(body), [], Limits(max_images=3))
    assert [source.field for source in draft.sources] == [
        "messages[1].content[0].url",
        "messages[3].content[0].frames[0]",
        "messages[3].content[0].frames[1]",
    ]
    messages = fill(draft, refs(3))
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1].content == (ImagePart(media=refs(1)[0]), TextPart(text="What?"))
    assert messages[3].content == (VideoPart(frames=tuple(refs(3)[1:]), fps=4.0),)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "images"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "prompt"),
        ({"images": ["http://a"], "messages": [{"role": "user", "content": "y"}]}, "images[0]"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "messages[0].role"),
        (
            {
                "messages": [
                    {"role": "system", "content": [{"type": "image", "url": "http://a"}]},
                    {"role": "user", "content": "y"},
                ]
            },
            "messages[0].content",
        ),
        ({"images": ["http://a"] * 5}, "images[4]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(body: object, field: str) -> None:
    assert refused_field(body) == field


def test_an_empty_prompt_alongside_an_image_is_refused() -> None:
    assert refused_field({"prompt": ""}, (PICTURE,)) == "prompt"


def test_too_many_images_name_the_first_one_too_many() -> None:
    assert refused_field({}, tuple(Upload(f"image[{index}]", b"") for index in range(3)), max_images=2) == "image[2]"

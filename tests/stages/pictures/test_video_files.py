"""Video files: which frames are seen, when they are shown, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from broker_pipeline.errors import (
    ImageTooLargeError,
    MediaError,
    MediaTooLargeError,
    NotAVideoError,
    TruncatedImageError,
    VideoTooLongError,
)
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.pictures.video import VideoHeader, check_video
from stages.pictures.video_frames import DecodingLimits, decoded_frames, sampled_indices
from tests.kit.viewing.imagemagick import rgba_scene
from tests.kit.viewing.seen import encoded
from tests.kit.viewing.videos import KINDS, SIZE, clip, number_of, plain_clip, red_corner, turned_clockwise

RULE = PictureRule()
LIMITS = DecodingLimits(max_pixels=10**6, max_decode_s=60)


def frames_of(content: bytes, fps: float = 2.0, max_frames: int = 768) -> list[tuple[float, np.ndarray]]:
    indices = sampled_indices(check_video(content, RULE), fps, max_frames)
    return list(decoded_frames(content, indices, LIMITS, lambda: 0.0))


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_frames_of_every_container_and_codec_are_the_ones_chosen(container, codec):
    content = clip(container, codec)
    header = check_video(content, RULE)
    assert (header.width, header.height, header.num_frames, header.duration_s) == (*SIZE, 30, 3.0)
    frames = frames_of(content)
    chosen = [0, 6, 12, 17, 23, 29]
    assert [number_of(pixels) for _, pixels in frames] == chosen
    assert [second for second, _ in frames] == pytest.approx([index / 10 for index in chosen], abs=0.001)
    assert all(red_corner(pixels) == ("top", "left") for _, pixels in frames)


@pytest.mark.parametrize(
    ("num_frames", "rate", "fps", "max_frames", "expected"),
    [
        (30, 10.0, 2.0, 768, [0, 6, 12, 17, 23, 29]),
        (30, 10.0, 0.1, 768, [0, 10, 19, 29]),
        (30, 10.0, 100.0, 768, list(range(30))),
        (30, 10.0, 2.0, 2, [0, 29]),
        (30, 10.0, 2.0, 1, [0]),
        (3, 10.0, 2.0, 768, [0, 1, 2]),
        (1, 25.0, 2.0, 768, [0]),
    ],
)
def test_frames_are_chosen_evenly(num_frames, rate, fps, max_frames, expected):
    assert sampled_indices(VideoHeader("h264", 1, 1, num_frames, rate), fps, max_frames) == expected


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_frames_that_are_unevenly_spaced_keep_their_times(container):
    times = (0.0, 0.1, 0.2, 1.0, 3.0, 3.1)
    frames = frames_of(clip(container, times=times), fps=100)
    assert [number_of(pixels) for _, pixels in frames] == list(range(6))
    assert [second for second, _ in frames] == pytest.approx(times, abs=0.001)


def test_a_video_is_upright_as_its_phone_says():
    frames = frames_of(turned_clockwise(clip()))
    assert {pixels.shape for _, pixels in frames} == {(SIZE[0], SIZE[1], 3)}
    assert all(red_corner(pixels) == ("top", "right") for _, pixels in frames)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)], ids=["709", "601", "2020"]
)
def test_colours_are_those_of_the_matrix_and_range_that_the_file_names(matrix, red, blue, is_full):
    luma, cb, cr = np.array((90, 100, 200)) - (0 if is_full else 16, 128, 128)
    luma, cb, cr = (luma / 255, cb / 255, cr / 255) if is_full else (luma / 219, cb / 224, cr / 224)
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    expected = np.array((r, (luma - red * r - blue * b) / (1 - red - blue), b)) * 255
    [(_, pixels)] = frames_of(plain_clip((90, 100, 200), matrix, is_full=is_full))
    assert np.abs(pixels.astype(float) - expected).max() < 3


@pytest.mark.parametrize(
    ("rule", "error", "reason"),
    [
        (PictureRule(takes_video_files=False), NotAVideoError, "need the extra `video` at gateways and vision workers"),
        (PictureRule(max_video_bytes=1000), MediaTooLargeError, "bytes; at most 1000 are accepted"),
        (PictureRule(max_video_s=2.5), VideoTooLongError, "plays for 3 s; at most 2.5 are accepted"),
        (PictureRule(max_pixels=6000), ImageTooLargeError, "96 x 64 pixels; at most 6000 are accepted"),
    ],
)
def test_a_video_beyond_the_rule_is_refused_before_it_is_decoded(rule, error, reason):
    with pytest.raises(error, match=reason) as caught:
        check_video(clip(), rule, field="video[0]")
    assert caught.value.field == "video[0]"


def test_decoding_has_its_time():
    ticks = iter(range(100))
    with pytest.raises(VideoTooLongError, match="longer than 5 s to decode"):
        list(decoded_frames(clip(), [29], DecodingLimits(10**6, 5.0), lambda: next(ticks)))


def test_frames_larger_than_the_header_says_are_not_decoded():
    with pytest.raises(TruncatedImageError):
        list(decoded_frames(clip(), [29], DecodingLimits(2000, 60.0), lambda: 0.0))


@pytest.mark.parametrize("content", [b"hello", b"#EXTM3U\nhttp://127.0.0.1/a.ts", encoded(rgba_scene(), "PNG")])
def test_other_files_are_no_videos(content):
    with pytest.raises(NotAVideoError, match="no video in a supported container \\(MP4, WebM, AVI\\)"):
        check_video(content, RULE)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_a_video_that_is_cut_off_is_refused(container, codec):
    content = clip(container, codec)
    for share in (0.2, 0.5, 0.8):
        with pytest.raises(TruncatedImageError):
            check_video(content[: int(len(content) * share)], RULE)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_a_damaged_video_is_seen_or_refused_as_one(container, codec):
    content = clip(container, codec)
    random = np.random.default_rng(2)
    num_refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(12, len(content), random.integers(1, 20)):
            damaged[place] = random.integers(256)
        try:
            assert len(frames_of(bytes(damaged))) >= 1
        except MediaError:
            num_refused += 1
    assert num_refused

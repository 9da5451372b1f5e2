"""The file of captions: whole lines, resumed from, whatever happened to the process that wrote it."""

import base64
import json
import os
from pathlib import Path

import msgspec
import pytest

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.client.caption_request import CaptionRequest, Picture, idempotency_key
from broker_pipeline.errors import ConfigurationError, Failure
from broker_pipeline.messages.sampling import SamplingParams

REQUEST = CaptionRequest("What?")


def picture(name: str, sha256: str = "0") -> Picture:
    return Picture(name, sha256)


def line(name: str, status: str = "succeeded", caption: str = "a cat") -> CaptionLine:
    error = None if status == "succeeded" else Failure("compute", "no")
    return CaptionLine(path=name, sha256="0", status=status, caption=caption, error=error, request=REQUEST.fingerprint)


def test_what_was_written_is_known_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "captions.jsonl"
    with CaptionLog(path) as log:
        log.append(line("a"))
        log.append(line("b", "failed"))
    with CaptionLog(path) as log:
        assert log.find(picture("a"), REQUEST)
        assert not log.find(picture("a", "1"), REQUEST)
        assert not log.find(picture("a"), CaptionRequest("What else?"))
        assert not log.find(picture("b"), REQUEST)
        assert (log.num_failures(picture("b"), REQUEST), log.num_failures(picture("a"), REQUEST)) == (1, 0)
        log.append(line("b"))
        assert log.find(picture("b"), REQUEST)


def test_no_character_ends_a_line_early(tmp_path: Path) -> None:
    caption = "".join(map(chr, range(0x100))) + "\u2028\u2029 猫 \U0001f408"
    with CaptionLog(tmp_path / "c") as log:
        log.append(line("a", caption=caption))
        log.append(line("b"))
    content = (tmp_path / "c").read_bytes()
    assert content.startswith(b'{"path": "a", ')
    assert len(content.splitlines()) == len(content.decode().splitlines()) == 2
    assert "猫 \U0001f408" in content.decode(), "readable"
    assert json.loads(content.splitlines()[0])["caption"] == caption


def test_a_path_that_is_no_utf_8_is_known_the_next_time(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    with CaptionLog(tmp_path / "c") as log:
        log.append(line(name))
        log.append(line("caf\\xe9.png", "failed"))
    first, second = map(json.loads, (tmp_path / "c").read_text().splitlines())
    assert first["path"] == second["path"] == "caf\\xe9.png"
    assert base64.b64decode(first["path_base64"]) == b"caf\xe9.png"
    assert "path_base64" not in second
    with CaptionLog(tmp_path / "c") as log:
        assert log.find(picture(name), REQUEST)
        assert not log.find(picture("caf\\xe9.png"), REQUEST)


def test_every_tear_of_the_last_line_is_mended(tmp_path: Path) -> None:
    """Wherever a crash cuts the last line, the lines before it count and the file goes on well."""
    path = tmp_path / "c"
    with CaptionLog(path) as log:
        log.append(line("a"))
        log.append(line("b", caption="猫"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with CaptionLog(path) as log:
            assert log.find(picture("a"), REQUEST)
            is_whole = length == len(whole) - 1
            assert bool(log.find(picture("b"), REQUEST)) == is_whole
            assert log.num_torn_bytes == (0 if is_whole else length - first)
            log.append(line("c"))
        assert [json.loads(text)["path"] for text in path.read_bytes().splitlines()][-1] == "c"


@pytest.mark.parametrize(
    "content", ["hello", "hello\n", "[1]\n", '{"path": 1}\n', '{"a": 1}\n{"b":', "\x89PNG\r\n\x1a\n"]
)
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="choose another --out"), CaptionLog(path):
        pass
    assert path.read_bytes() == content.encode("latin-1")


def written(tmp_path: Path, *names: str) -> tuple[Path, list[bytes]]:
    with CaptionLog(tmp_path / "c") as log:
        for name in names:
            log.append(line(name))
    return tmp_path / "c", (tmp_path / "c").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"path": "c", "sha\0\0\0'])
def test_nuls_that_a_power_cut_left_are_cut_off(tmp_path: Path, tail: bytes) -> None:
    path, whole = written(tmp_path, "a", "b")
    path.write_bytes(b"".join(whole) + tail)
    with CaptionLog(path) as log:
        assert log.find(picture("b"), REQUEST)
        assert log.num_torn_bytes == len(tail)
    assert path.read_bytes() == b"".join(whole)


def test_nuls_between_lines_are_read_over_with_what_they_tore(tmp_path: Path) -> None:
    """Left by a run that went on behind them."""
    path, (first, second, third) = written(tmp_path, "a", "b", "c")
    path.write_bytes(first + second[:20] + b"\0" * 100 + third + b"\0\0\n" + b"\0" + second)
    with CaptionLog(path) as log:
        assert all(log.find(picture(name), REQUEST) for name in "abc")
        assert log.num_torn_bytes == 20


def test_what_editors_add_is_read_over(tmp_path: Path) -> None:
    path, whole = written(tmp_path, "a", "b")
    for content in (b"".join(whole), b"".join(whole)[:-1], whole[0] + b"\n  \n" + whole[1]):
        path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
        with CaptionLog(path) as log:
            assert log.find(picture("a"), REQUEST)
            assert log.find(picture("b"), REQUEST)
            log.append(line("c"))
        with CaptionLog(path) as log:
            assert log.num_captioned == 3


def test_only_a_byte_order_mark_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf")
    with CaptionLog(tmp_path / "c") as log:
        log.append(line("a"))
    with CaptionLog(tmp_path / "c") as log:
        assert log.find(picture("a"), REQUEST)


def test_lines_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """They have bytes that are no UTF-8 as lone surrogates, name no model, and know less of the times."""
    old = {
        "path": "caf\udce9.png", "sha256": "0", "status": "succeeded", "caption": "a cat", "finish_reason": "stop",
        "usage": {"num_prompt_tokens": 1, "num_visual_tokens": 0, "num_output_tokens": 1},
        "timings": {"queued_s": 0.1, "running_s": 0.2}, "request": REQUEST.fingerprint, "job_id": "1",
    }  # fmt: skip
    (tmp_path / "c").write_text(json.dumps(old) + "\n")
    with CaptionLog(tmp_path / "c") as log:
        assert log.find(picture("caf\udce9.png"), REQUEST)
        assert log.find(picture("caf\udce9.png"), CaptionRequest("What?", model="a" * 64))
        assert log.num_without_model == 1


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        CaptionLog(tmp_path / "c"),
        pytest.raises(ConfigurationError, match="another run"),
        CaptionLog(tmp_path / "c"),
    ):
        pass
    with CaptionLog(tmp_path / "c"):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot write"), CaptionLog(tmp_path / "file" / "c"):
        pass


def test_fields_of_a_later_version_are_read_over(tmp_path: Path) -> None:
    with CaptionLog(tmp_path / "c") as log:
        log.append(line("a"))
    text = json.loads((tmp_path / "c").read_text())
    (tmp_path / "c").write_text(json.dumps(text | {"mood": "fine"}) + "\n")
    with CaptionLog(tmp_path / "c") as log:
        assert log.find(picture("a"), REQUEST)


def test_the_key_depends_on_everything_that_is_asked() -> None:
    keys = {
        idempotency_key(picture("a"), REQUEST, 0),
        idempotency_key(picture("b"), REQUEST, 0),
        idempotency_key(picture("a", "1"), REQUEST, 0),
        idempotency_key(picture("a"), CaptionRequest("?"), 0),
        idempotency_key(picture("a"), CaptionRequest("What?", SamplingParams(seed=1)), 0),
        idempotency_key(picture("a"), REQUEST, 1),
        idempotency_key(picture("a"), CaptionRequest("What?", model="a" * 64), 0),
        idempotency_key(picture("a"), CaptionRequest("What?", model="b" * 64), 0),
        idempotency_key(picture("a"), CaptionRequest("What?", occasion="again"), 0),
    }
    assert len(keys) == 9
    assert idempotency_key(picture("a"), CaptionRequest("What?"), 0) in keys


def test_a_line_about_the_content_of_an_odd_name_is_written(tmp_path: Path) -> None:
    with CaptionLog(tmp_path / "c") as log:
        log.append(msgspec.structs.replace(line("a"), same_as="caf\udce9.png"))
    assert json.loads((tmp_path / "c").read_bytes())["same_as"] == "caf\\xe9.png"

"""Wrong bodies name their field as the user wrote it."""

import pytest

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.sampling import SamplingParams
from gateway.intake.validation import convert_strings, decode_json
from gateway.schemas import JobListQuery, JobRequest


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"sampling": {"temperature": -1}}', "sampling.temperature"),
        ('{"sampling": {"top_k": -1}}', "sampling.top_k"),
        ('{"sampling": {"max_tokens": 0}}', "sampling.max_tokens"),
        ('{"sampling": {"max_tokens": -5}}', "sampling.max_tokens"),
        ('{"sampling": {"temperature": "hot"}}', "sampling.temperature"),
        ('{"sampling": {"heat": 1}}', "sampling.heat"),
        ('{"sampling": {"stop": [""]}}', "sampling.stop[0]"),
        ('{"sampling": {"temperature": 1e400}}', "sampling.temperature"),
        ('{"promt": "x"}', "promt"),
        ('{"images": "http://a"}', "images"),
        ('{"images": [1]}', "images[0]"),
        ('{"images": ["a", ""]}', "images[1]"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content"),
        ('{"messages": [{"role": "user", "content": [{"type": "sound"}]}]}', "messages[0].content[0].type"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "messages[0].content[0].url"),
        ('{"metadata": {"a": 1}}', "metadata"),
        ('{"metadata": {"": "x"}}', "metadata"),
        ('{"metadata": {"a": "' + "x" * 513 + '"}}', "metadata"),
        ('{"metadata": {' + ",".join(f'"k{n}": ""' for n in range(17)) + "}}", "metadata"),
        ("[]", None),
        ("{", None),
        ("", None),
        ("\x00", None),
        ('{"a":' + "[" * 100_000, "a"),
    ],
)
def test_a_wrong_body_names_its_field(body: str, field: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_json(body.encode(), JobRequest)
    assert caught.value.field == field
    assert "$" not in caught.value.message


def test_bytes_that_are_not_utf8() -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        decode_json(b'{"prompt": "\xff"}', JobRequest)


def test_a_prefix_stands_before_the_path() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_json(b'{"sampling": {"temperature": -1}}', JobRequest, prefix="request")
    assert caught.value.field == "request.sampling.temperature"


def test_text_becomes_numbers_and_limits_hold() -> None:
    params = convert_strings({"temperature": "0.5", "max_tokens": "7", "stop": ["a", "b"]}, SamplingParams)
    assert (params.temperature, params.max_tokens, params.stop) == (0.5, 7, ("a", "b"))
    for name, text in {"temperature": "-0.1", "top_p": "nan", "max_tokens": "1.5", "seed": "x"}.items():
        with pytest.raises(InvalidRequestError) as caught:
            convert_strings({name: text}, SamplingParams)
        assert caught.value.field == name


def test_queries_are_as_strict_as_bodies() -> None:
    assert convert_strings({"limit": "5", "status": "failed"}, JobListQuery).limit == 5
    for query, field in [({"limit": "0"}, "limit"), ({"status": "lost"}, "status"), ({"page": "2"}, "page")]:
        with pytest.raises(InvalidRequestError) as caught:
            convert_strings(query, JobListQuery)
        assert caught.value.field == field


def test_a_key_of_many_megabytes_is_not_said_back() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_json(b'{"prompt": "x", "' + b"k" * (60 * 2**20) + b'": 1}', JobRequest)
    assert "unknown field" in refused.value.message
    assert (refused.value.field or "").startswith("kkk")
    assert len(refused.value.message) + len(refused.value.field or "") < 2000
    with pytest.raises(InvalidRequestError) as refused:
        decode_json(b'{"sampling": {"' + b"k" * 5000 + b'": 1}}', JobRequest)
    assert (refused.value.field or "").startswith("sampling.kkk")

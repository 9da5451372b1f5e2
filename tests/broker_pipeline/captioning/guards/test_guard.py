"""What a guard says of captions, and how it has them asked for again."""

import builtins
import json
from typing import Any

import pytest

from broker_pipeline.captioning.guards.guard import Guard
from broker_pipeline.captioning.guards.schema import check_by
from broker_pipeline.captioning.guards.settings import GuardSettings
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.sampling import SamplingParams

SCHEMA = json.dumps(
    {"type": "object", "required": ["subject"], "properties": {"colors": {"items": {"type": "string"}}}}
)


def judge(text: str, finish_reason: str = "stop", **settings: Any) -> str | None:
    return Guard(GuardSettings(**settings)).judge(text, finish_reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A cat on a mat.", None),
        (" \n", "empty: nothing was said"),
        ("...!", "punctuation: no letter or digit"),
        ("I'm sorry, but I can't help.", "refusal: the model declined: I'm sorry, but I can't help."),
        ("so so so so", "loop: ends in the same again and again: so"),
        ("A" + " long" * 90, "loop: ends in the same again and again: long"),
        ("no JSON", None),
    ],
)
def test_usual_rules(text: str, reason: str | None) -> None:
    assert judge(text) == reason


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("一只猫", {"script": "latin"}, "script: most letters are not latin"),
        ("A cat", {"min_words": 3}, "too_short: 2 words, fewer than 3"),
        ("A cat", {"min_characters": 6}, "too_short: 5 characters, fewer than 6"),
        ("A cat sits", {"max_words": 2}, "too_long: 3 words, more than 2"),
        ("一只黑猫", {"max_words": 3}, "too_long: 4 words, more than 3"),
        ("A cat", {"max_characters": 4}, "too_long: 5 characters, more than 4"),
        ("A cat", {"max_characters": 5, "max_words": 2, "min_words": 2, "script": "latin"}, None),
        ("A WATERMARK", {"forbidden": ("logo", "watermark")}, "forbidden: has the word watermark"),
        ("A cat", {"required": ("cat", "ohwx")}, "required: lacks the word ohwx"),
        ("A cat", {"rules": ("json",)}, "json: no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("NaN", {"rules": ("json",)}, "json: no JSON: NaN is no value"),
        ("[" * 100_000, {"rules": ("json",)}, "json: no JSON: "),
        ('```json\n{"subject": "x"}\n```', {"json_schema": SCHEMA}, None),
        ('{"colors": []}', {"json_schema": SCHEMA}, "json: $: 'subject' is a required property"),
        ('{"subject": 1, "colors": [1]}', {"json_schema": SCHEMA}, "json: $.colors[0]: 1 is not of type 'string'"),
        ("", {"rules": ()}, None),
    ],
)
def test_rules_that_are_asked_for(text: str, settings: dict[str, Any], reason: str | None) -> None:
    found = judge(text, **settings)
    assert found == reason or (reason and reason.endswith(": ") and found and found.startswith(reason))


def test_how_the_output_ended() -> None:
    assert judge("A cat and a", "length") is None
    assert judge("A cat and a", "length", rules=("cut_off",)) == "cut_off: cut off at max_tokens"
    assert judge("A cat", "repetition") == "loop: ended as endless repetition"


def test_reasons_are_short() -> None:
    assert len(judge("I'm sorry, but I can't " + "x" * 1000) or "") < 120


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rules": ("looop",)},
            "there is no guard 'looop'; there are empty, punctuation, refusal, loop, cut_off, json",
        ),
        ({"script": "klingon"}, "there is no script 'klingon'; there are arabic, cjk"),
        ({"last": "burn"}, "there is no decision 'burn'; there are mark, drop, fail"),
        ({"min_words": 3, "max_words": 2}, "no caption has 3 to 2 words"),
        ({"max_characters": 0}, "no caption has 0 to 0 characters"),
        ({"forbidden": (" ",)}, "a forbidden or required word is empty"),
        ({"num_retries": -1}, "retries are 0 or more"),
        ({"retry_temperature": 0}, "retries are 0 or more"),
        ({"json_schema": "{"}, "the JSON schema is none"),
        ({"json_schema": '{"type": "nothing"}'}, "the JSON schema is none"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Guard(GuardSettings(**settings))
    assert message in raised.value.message


def test_a_schema_fetches_nothing() -> None:
    guard = Guard(GuardSettings(json_schema='{"$ref": "https://example.com/schema.json"}'))
    with pytest.raises(ConfigurationError, match="leads elsewhere"):
        guard.judge("[1]", "stop")


def test_a_schema_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def lacking(name: str, *args: Any) -> Any:
        if name == "jsonschema":
            raise ImportError(name)
        return original(name, *args)

    check_by.cache_clear()
    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(ConfigurationError, match="pip install jsonschema"):
        Guard(GuardSettings(json_schema="{}"))


def test_tries_and_what_comes_after_them() -> None:
    guard = Guard(GuardSettings(num_retries=2, last="drop"))
    assert [guard.after(num_tries) for num_tries in range(4)] == ["retry", "retry", "drop", "drop"]
    assert Guard(GuardSettings(num_retries=0)).after(0) == "mark"


@pytest.mark.parametrize(
    ("sampling", "num_tries", "seed", "temperature"),
    [
        (SamplingParams(seed=5), 0, 5, None),
        (SamplingParams(seed=5), 2, 7, None),
        (SamplingParams(), 1, 1, None),
        (SamplingParams(seed=5, n=4), 2, 13, None),
        (SamplingParams(temperature=0.0), 1, 1, 0.7),
        (SamplingParams(temperature=0.3, seed=2**63 - 1), 1, -(2**63), 0.3),
    ],
)
def test_every_try_is_repeatable(
    sampling: SamplingParams, num_tries: int, seed: int, temperature: float | None
) -> None:
    changed = Guard().retry_sampling(sampling, num_tries)
    assert (changed.seed, changed.temperature) == (seed, temperature)
    assert changed == Guard().retry_sampling(sampling, num_tries)

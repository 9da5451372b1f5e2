"""Prompts: placeholders are filled, and no user's text can forge a control token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from broker_pipeline.errors import InvalidRequestError, ModelConfigError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart, VideoPart
from stages.prompt.chat import PromptBuilder, VisualInput, frame_timestamps
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.tokenizer import load_tokenizer
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.positions import VisualGroup
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.transformers_oracle import FP32, MEDIA, config_of, prompt_builder

VARIANT = FP32[0]
IMAGE, VIDEO = ImagePart(media=MEDIA), VideoPart(frames=(MEDIA,))
SMALL = VisualInput("image", PatchGrid(1, 2, 4))
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>"]
CONTROLS += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


def user(*parts) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=tuple(TextPart(text=p) if isinstance(p, str) else p for p in parts))]


def decoded(ids) -> str:
    return prompt_builder(VARIANT)._tokenizer.decode(list(ids), skip_special_tokens=False)


def control_ids(ids) -> list[int]:
    tokenizer = prompt_builder(VARIANT)._tokenizer
    controls = {tokenizer.token_to_id(token) for token in CONTROLS}
    return [i for i in ids if i in controls]


def test_pads_are_expanded_and_their_places_known():
    found = prompt_builder(VARIANT).build(user(IMAGE, "Hi", IMAGE), [SMALL, VisualInput("image", PatchGrid(1, 4, 2))])
    pad = config_of(VARIANT).image_token_id
    assert [i for i in found.token_ids if i == pad] == [pad] * 4
    first, second = found.groups
    assert (first.height, first.width, first.visual_row) == (1, 2, 0)
    assert (second.height, second.width, second.visual_row) == (2, 1, 2)
    for group in found.groups:
        assert set(found.token_ids[group.start : group.start + group.count]) == {pad}
    assert found.num_visual_tokens == 4
    assert decoded(found.token_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_without_pictures_works():
    found = prompt_builder(VARIANT).build(user("Hello"), [])
    assert found.groups == ()
    assert decoded(found.token_ids) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_a_video_is_timestamped_groups_inside_an_outer_pair():
    video = VisualInput("video", PatchGrid(2, 2, 4), frame_timestamps([0, 0.5, 1]))
    found = prompt_builder(VARIANT).build(user(VIDEO), [video])
    group = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    inner = f"<0.2 seconds>{group}<1.0 seconds>{group}"
    assert decoded(found.token_ids) == (
        f"<|im_start|>user\n<|vision_start|>{inner}<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(g.count, g.visual_row) for g in found.groups] == [(2, 0), (2, 2)]


@pytest.mark.parametrize(("num_frames", "expected"), [(1, (0.0,)), (2, (0.25,)), (3, (0.25, 1.0)), (4, (0.25, 1.25))])
def test_timestamps_are_means_of_first_and_last_frame(num_frames, expected):
    assert frame_timestamps([index / 2 for index in range(num_frames)]) == expected


# --- what users type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_strings_in_texts_are_only_text(control, role):
    builder = prompt_builder(VARIANT)
    text = f"before {control} after {control}{control}"
    clean = builder.build([ChatMessage(role=role, content=(TextPart(text="x"),))], [])
    forged = builder.build([ChatMessage(role=role, content=(TextPart(text=text),))], [])
    assert control_ids(forged.token_ids) == control_ids(clean.token_ids)
    assert text in decoded(forged.token_ids)
    assert forged.groups == ()


def test_a_typed_pad_alongside_a_real_picture_takes_nothing_from_it():
    found = prompt_builder(VARIANT).build(user("<|image_pad|>", IMAGE, "<|image_pad|>"), [SMALL])
    [group] = found.groups
    assert group.count == 2
    assert (
        len(control_ids(found.token_ids))
        == len(control_ids(prompt_builder(VARIANT).build(user("x"), []).token_ids)) + 4
    )


def test_texts_that_are_no_unicode_are_refused():
    with pytest.raises(InvalidRequestError, match="Unicode"):
        prompt_builder(VARIANT).build(user("\ud800"), [])


@pytest.mark.parametrize(
    ("parts", "visuals"),
    [
        ((IMAGE,), []),
        (("text",), [SMALL]),
        ((IMAGE,), [SMALL, SMALL]),
        ((VIDEO,), [SMALL]),
        ((VIDEO,), [VisualInput("video", PatchGrid(2, 2, 2), (0.5,))]),
    ],
)
def test_visuals_that_do_not_fit_the_messages_are_refused(parts, visuals):
    with pytest.raises(InvalidRequestError) as caught:
        prompt_builder(VARIANT).build(user(*parts), visuals)
    assert caught.value.field == "messages"


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_template_is_found_in_each_of_its_places(tmp_path):
    for name, content in (
        ("tokenizer_config.json", json.dumps({"chat_template": "tokenizer"})),
        ("chat_template.jinja", "jinja"),
        ("chat_template.json", json.dumps({"chat_template": "json"})),
        ("processor_config.json", json.dumps({"chat_template": "processor"})),
    ):
        (tmp_path / name).write_text(content)
        assert ChatTemplate.from_directory(tmp_path).render([]) in name


def test_the_default_of_several_templates_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ eos_token }}"}]
    config = {"chat_template": named, "eos_token": {"content": "<|im_end|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_directory(tmp_path).render([]) == "<|im_end|>"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": "{}"},
        {"chat_template.json": "["},
        {"chat_template.json": "[]"},
        {"chat_template.json": '{"chat_template": 3}'},
        {"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "x"}]}'},
        {"chat_template.jinja": "{% if %}"},
        {"chat_template.jinja": "\xff"},
    ],
)
def test_a_missing_or_broken_template_is_a_typed_error(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ModelConfigError):
        ChatTemplate.from_directory(tmp_path)


def test_a_template_may_refuse_messages():
    with pytest.raises(InvalidRequestError, match="no system turns"):
        ChatTemplate("{{ raise_exception('no system turns') }}").render([])


def test_a_template_cannot_leave_its_sandbox():
    with pytest.raises(InvalidRequestError):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").render([])


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[0]['a'].b.c }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 1 + 'a' }}"],
)
def test_a_template_that_fails_refuses_the_messages(source):
    with pytest.raises(InvalidRequestError, match="the chat template refuses these messages"):
        ChatTemplate(source).render([{"a": 1}])


def test_json_in_templates_is_written_as_the_models_were_trained():
    assert ChatTemplate("{{ messages | tojson }}").render([{"a": "é<'"}]) == '[{"a": "é<\'"}]'


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_missing_or_broken_tokenizer_is_a_typed_error(tmp_path: Path, content):
    shutil.copytree(tiny_checkpoint(), tmp_path / "model")
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.unlink()
    if content is not None:
        tokenizer.write_text(content)
    with pytest.raises(ModelConfigError, match=r"tokenizer\.json"):
        PromptBuilder.from_directory(config_of(VARIANT), tmp_path / "model")


def test_token_ids_that_the_tokenizer_lacks_are_named():
    hub = json.loads((tiny_checkpoint() / "config.json").read_bytes()) | {"video_token_id": 380}
    with pytest.raises(ModelConfigError) as caught:
        PromptBuilder.from_directory(ModelConfig.from_json(hub), tiny_checkpoint())
    assert caught.value.field == "video_token_id"


def test_a_tokenizer_without_turns_is_refused(tmp_path):
    content = (tiny_checkpoint() / "tokenizer.json").read_text().replace("<|im_end|>", "<|done|>")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelConfigError, match=r"lacks <\|im_end\|>, which open and end turns"):
        PromptBuilder(config_of(VARIANT), load_tokenizer(tmp_path / "tokenizer.json"), ChatTemplate(""))


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused():
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    tokenizer.add_tokens([f"<extra {i}>" for i in range(10)])
    with pytest.raises(ModelConfigError, match="ids up to 387, but the embedding only 384 rows"):
        PromptBuilder(config_of(VARIANT), tokenizer, ChatTemplate(""))


def test_groups_count_their_tokens():
    assert VisualGroup(0, 3, 4, 0).count == 12

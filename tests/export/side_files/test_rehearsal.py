"""What `export` accepts serves, and what could not be served it refuses before it reads a weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ArtifactError
from stages.vision.service import load
from stages.worker.settings import VisionSettings
from tests.kit.models.hub_templates import HUB_TEMPLATES, hub_template
from tests.kit.models.random_checkpoints import write_random_checkpoint

TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja", "tokenizer_config.json")
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


@pytest.fixture
def source(tmp_path) -> Path:
    return write_random_checkpoint(tmp_path / "source", num_layers=3, dtype=torch.bfloat16)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(change(content) or content))


def put(name: str, content: str):
    return lambda source: (source / name).write_text(content)


def drop(*names: str):
    return lambda source: [(source / name).unlink(missing_ok=True) for name in names]


def set_in(name: str, **values):
    return lambda source: edit(source / name, lambda content: content.update(values))


def drop_in(name: str, key: str):
    return lambda source: edit(source / name, lambda content: content.pop(key, None) and None)


def without_template(source: Path) -> None:
    drop("chat_template.json", "chat_template.jinja")(source)
    drop_in("tokenizer_config.json", "chat_template")(source)


def without_ends(source: Path) -> None:
    drop("generation_config.json")(source)
    edit(source / "config.json", lambda content: content["text_config"].pop("eos_token_id") and None)


def with_a_smaller_embedding(source: Path) -> None:
    added = {"id": 400, "content": "<|new|>", "special": True, "normalized": False}
    rest = {"single_word": False, "lstrip": False, "rstrip": False}
    edit(source / "tokenizer.json", lambda content: content["model"]["vocab"].update({"<|new|>": 400}))
    edit(source / "tokenizer.json", lambda content: content["added_tokens"].append(added | rest))


def with_wordpiece(source: Path) -> None:
    edit(source / "tokenizer.json", lambda content: content.update(decoder={"type": "Fuse"}))


def with_other_turns(source: Path) -> None:
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<end_of_turn>"))


def with_nested_rules(source: Path) -> None:
    nested = {"image_processor": {"size": {"shortest_edge": 9, "longest_edge": 1}}}
    put("processor_config.json", json.dumps(nested))(source)


COPY = "from the model that this one was made from"
UNSERVED = {
    "no tokenizer": (drop("tokenizer.json"), "tokenizer.json", rf"no tokenizer\.json, nor vocab\.json.*{COPY}"),
    "a broken tokenizer": (put("tokenizer.json", "{"), "tokenizer.json", r"tokenizer\.json is not a tokenizer"),
    "not by bytes": (with_wordpiece, "tokenizer.json", r"tokenizer\.json decodes by Fuse"),
    "another model's turns": (with_other_turns, "tokenizer.json", rf"lacks <\|im_end\|>.*{COPY}"),
    "more tokens than rows": (with_a_smaller_embedding, "tokenizer.json", r"tokens were added to the tokenizer"),
    "no template": (without_template, "chat_template", rf"no chat template: .*{COPY}"),
    "a broken template": (put("chat_template.json", '{"chat_template": "{% if %}"}'), "chat_template", "compiled"),
    "a template without pictures": (
        put("chat_template.json", json.dumps({"chat_template": "{{ messages[0].content[1].text }}"})),
        "chat_template",
        rf"cannot ask about a picture .*no place in the prompt.*{COPY}",
    ),
    "a template that refuses": (
        put("chat_template.json", json.dumps({"chat_template": "{{ raise_exception('never') }}"})),
        "chat_template",
        r"cannot ask about a picture .*never",
    ),
    "no rules for pictures": (drop(*PROCESSOR_FILES), "preprocessor_config.json", rf"nothing says how.*{COPY}"),
    "other patches": (set_in("preprocessor_config.json", patch_size=14), "preprocessor_config.json.patch_size", "16"),
    "no size": (drop_in("preprocessor_config.json", "size"), "preprocessor_config.json.size", "missing"),
    "no resizing": (set_in("preprocessor_config.json", do_resize=False), "preprocessor_config.json.do_resize", "True"),
    "rules of another model": (
        drop_in("video_preprocessor_config.json", "image_mean"),
        "video_preprocessor_config.json.image_mean",
        "missing",
    ),
    "wrong nested rules": (
        with_nested_rules,
        "processor_config.json.image_processor.size.shortest_edge",
        "at most longest_edge",
    ),
    "a broken processor file": (put("processor_config.json", "["), "processor_config.json", "not valid JSON"),
    "defaults of a wrong type": (set_in("generation_config.json", top_k="all"), "generation_config.json", r"\$\.top_k"),
    "defaults beyond what stages take": (
        set_in("generation_config.json", temperature=3.5),
        "generation_config.json",
        r"generation_config\.json: .*\$\.temperature",
    ),
    "no end": (without_ends, "eos_token_id", rf"which token ends an answer.*{COPY}"),
    "another model's end": (set_in("generation_config.json", eos_token_id=[9, 999]), "eos_token_id", "999, beyond"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSERVED)
def test_what_could_not_be_served_is_refused_before_a_weight_is_read(source, run_export, tmp_path, case):
    spoil, field, match = UNSERVED[case]
    spoil(source)
    with pytest.raises(ArtifactError, match=match) as refused:
        run_export(source)
    assert refused.value.field == field
    assert str(tmp_path) not in refused.value.message
    assert "export-rehearsal" not in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # neither a target nor an unfinished one


def test_everything_that_is_missing_is_in_one_error(source, run_export):
    drop("tokenizer.json", *TEMPLATE_FILES, *PROCESSOR_FILES)(source)
    with pytest.raises(ArtifactError) as refused:
        run_export(source)
    parts = ("no tokenizer.json", "no chat template", "nothing says how pictures are resized")
    assert [part in line for part, line in zip(parts, refused.value.message.splitlines()[1:], strict=True)] == [
        True
    ] * 3


def with_older_tokenizer(source: Path) -> None:
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    put("vocab.json", json.dumps(model["vocab"]))(source)
    put("merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))(source)
    drop("tokenizer.json")(source)


def with_processor_of_transformers_5(source: Path) -> None:
    kinds = zip(("image_processor", "video_processor"), PROCESSOR_FILES, strict=True)
    nested = {kind: json.loads((source / name).read_text()) for kind, name in kinds}
    put("processor_config.json", json.dumps(nested | {"processor_class": "Qwen3VLProcessor"}))(source)
    drop(*PROCESSOR_FILES)(source)


def with_template(name: str):
    def change(source: Path) -> None:
        without_template(source)
        put("chat_template.jinja", hub_template(name))(source)

    return change


def with_yarn(source: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096}
    edit(source / "config.json", lambda content: content["text_config"]["rope_scaling"].update(yarn))


def with_descending_taps(source: Path) -> None:
    taps = {"deepstack_visual_indexes": [3, 0, 1]}
    edit(source / "config.json", lambda content: content["vision_config"].update(taps))


SERVED = {
    "the hub's": lambda _: None,
    "older tokenizer files": with_older_tokenizer,
    "transformers 5": with_processor_of_transformers_5,
    "no rules for videos": drop("video_preprocessor_config.json"),
    "YaRN": with_yarn,
    "descending taps": with_descending_taps,
    **{f"the {name} template": with_template(name) for name in HUB_TEMPLATES},
}


@pytest.mark.parametrize("case", SERVED)
def test_what_is_accepted_is_loaded_by_the_services(source, run_export, case):
    SERVED[case](source)
    directory = run_export(source).directory
    assert TextModel.open(directory, 16).facts.eos_token_ids == (354, 352)
    loaded = load(VisionSettings(name="v", model=str(directory), device="cpu"), CommonSettings())
    assert (loaded.rules.image.min_pixels, loaded.rules.image.max_pixels) == (4096, 65536)
    assert loaded.rules.video is not None

"""Tokenizers made of `vocab.json` and `merges.txt` against those that transformers makes of the same files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from broker_pipeline.errors import ArtifactError
from export.side_files.bpe_tokenizer import SETTINGS, tokenizer_json
from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, tiny_tokenizer
from tests.kit.models.tiny_models import tiny_checkpoint

DEMO = Path(__file__).parents[2] / "broker_pipeline" / "demo_model"
NAMES = ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")


def merges_text(pairs) -> str:
    return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs)


def tiny_files(**more: str) -> dict[str, bytes]:
    model = json.loads(tiny_tokenizer().to_str())["model"]
    config = json.loads((tiny_checkpoint() / "tokenizer_config.json").read_text())
    files = {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": merges_text(model["merges"]),
        "tokenizer_config.json": json.dumps(config),
    }
    return {name: content.encode() for name, content in (files | more).items()}


def without_decoder() -> dict[str, bytes]:
    """As tokenizers were saved before their settings listed the added tokens."""
    config = json.loads(tiny_files()["tokenizer_config.json"])
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    added = {name: tiny_tokenizer().token_to_id(name) for name in (*SPECIAL_TOKENS, *ADDED_TOKENS)}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return tiny_files() | {
        "tokenizer_config.json": json.dumps(config).encode(),
        "added_tokens.json": json.dumps(added).encode(),
        "special_tokens_map.json": json.dumps(special | {"additional_special_tokens": SPECIAL_TOKENS[1:]}).encode(),
    }


def with_carriage_returns() -> dict[str, bytes]:
    files = tiny_files()
    return files | {"merges.txt": files["merges.txt"].replace(b"\n", b"\r\n")}


def demo_files() -> dict[str, bytes]:
    return {name: (DEMO / name).read_bytes() for name in NAMES if (DEMO / name).is_file()}


FILES = {
    "listed in the settings": tiny_files,
    "older files": without_decoder,
    "a prefix space": lambda: tiny_files(
        **{"tokenizer_config.json": tiny_files()["tokenizer_config.json"].decode().replace(
            '"add_prefix_space": false', '"add_prefix_space": true')}
    ),
    "lines of Windows": with_carriage_returns,
    "demo": demo_files,
}  # fmt: skip


@cache
def both(case: str, directory: Path) -> tuple[Tokenizer, object]:
    files = FILES[case]()
    for name, content in files.items():
        (directory / name).write_bytes(content.replace(b"\r\n", b"\n"))
    (directory / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return Tokenizer.from_str(tokenizer_json(files).decode()), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {case: tmp_path_factory.mktemp("tokenizer") for case in FILES}


PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, *ADDED_TOKENS, " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "é", "e\u0301", "漢字"]
)
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=8).map("".join)


@pytest.mark.parametrize("case", FILES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_ids_and_texts_are_those_of_transformers(folders, case, text):
    ours, theirs = both(case, folders[case])
    found = ours.encode(text, add_special_tokens=False).ids
    assert found == theirs(text, add_special_tokens=False)["input_ids"]
    for skip in (True, False):
        expected = theirs.decode(found, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(found, skip_special_tokens=skip) == expected


def test_the_demo_models_own_tokenizer_json_is_met():
    ours = Tokenizer.from_str(tokenizer_json(demo_files()).decode())
    kept = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert ours.get_vocab() == kept.get_vocab()
    assert ours.get_added_tokens_decoder() == kept.get_added_tokens_decoder()


@pytest.mark.parametrize(
    ("name", "content", "field", "match"),
    [
        ("merges.txt", "zz qq\n", "merges.txt", "do not fit together"),
        ("merges.txt", "a b c\n", "merges.txt", "do not fit together"),
        ("merges.txt", b"\xff\xfe", "merges.txt", "do not fit together"),
        ("vocab.json", '{"a": "b"}', "merges.txt", "do not fit together"),
        ("vocab.json", "[]", "vocab.json", "not a JSON object"),
        ("vocab.json", '{"a": 0, "b": 1, "ab": 2}', SETTINGS, r"follows from vocab\.json.*Copy both"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "LlamaTokenizer"}',
            "tokenizer.json",
            "not for a LlamaTokenizer",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"5": 3}}',
            "tokenizer_config.json",
            "tokens that are none",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}', "tokenizer_config.json", "tokens that are none"),
    ],
)
def test_files_that_do_not_fit_are_named(name, content, field, match):
    files = tiny_files(**{"merges.txt": ""}) if name == "vocab.json" else tiny_files()
    with pytest.raises(ArtifactError, match=match) as refused:
        tokenizer_json(files | {name: content if isinstance(content, bytes) else content.encode()})
    assert refused.value.field == field

"""`tokenizer.json` from the older files of a Qwen tokenizer: vocabulary, merges and added tokens.

The result has transformers' ids for every text (`tests/parity/test_tokenizer_files.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from broker_pipeline.errors import CheckpointError
from stages.prompt.json_file import parse_json_object

VOCABULARY, MERGES, ADDED_TOKENS = "vocab.json", "merges.txt", "added_tokens.json"
SETTINGS, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_CLASSES = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
_WORD_PATTERN = (  # how the Qwen tokenizers split words: contractions, letters, single digits, punctuation, spaces
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def has_older_files(names: Collection[str]) -> bool:
    """Say whether a tokenizer can be made of files with these names."""
    return VOCABULARY in names and MERGES in names


def tokenizer_json(files: Mapping[str, bytes]) -> bytes:
    """Return the `tokenizer.json` of a checkpoint that has `vocab.json` and `merges.txt` instead.

    Raises:
        ModelConfigError: a file is no JSON.
        CheckpointError: files do not fit together, or the tokenizer is of another kind; says what to do.
    """
    settings = _json(files, SETTINGS)
    kind = settings.get("tokenizer_class", "Qwen2Tokenizer")
    if kind not in _CLASSES:
        raise CheckpointError(
            f"the checkpoint has no tokenizer.json, and it can be made for Qwen tokenizers alone, not for a {kind}. "
            "Write it: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY).",
            field="tokenizer.json",
        )
    tokenizer = byte_level_bpe(_read_model(files), add_prefix_space=bool(settings.get("add_prefix_space")))
    _add_tokens(tokenizer, _added_tokens(files, settings))
    return tokenizer.to_str().encode()


def byte_level_bpe(model: models.BPE, *, add_prefix_space: bool = False) -> Tokenizer:
    """Return a tokenizer around `model` that normalises, splits and decodes as those of Qwen do."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_model(files: Mapping[str, bytes]) -> models.BPE:
    vocabulary = _json(files, VOCABULARY)
    try:
        return models.BPE(vocabulary, _merges(files[MERGES].decode()))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{VOCABULARY} and {MERGES} do not fit together: {error}", field=MERGES) from error


def _merges(text: str) -> list[tuple[str, str]]:
    """Return the pairs, one a line; raises `ValueError` for a line that is none."""
    lines = (line.rstrip("\r") for line in text.split("\n"))  # not at the other ends of lines that Unicode has
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return [(left, right) for left, right in pairs]


def _added_tokens(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the added tokens by id: as the settings list them, else from the older file, which says less."""
    try:
        if settings.get("added_tokens_decoder"):
            return {int(token_id): AddedToken(**token) for token_id, token in settings["added_tokens_decoder"].items()}
        special = _special_names({**settings, **_json(files, SPECIAL_TOKENS)})
        return {
            int(token_id): AddedToken(name, special=name in special, normalized=name not in special)
            for name, token_id in _json(files, ADDED_TOKENS).items()
        }
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{SETTINGS} lists added tokens that are none: {error}", field=SETTINGS) from error


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json_object(files.get(name, b"{}"), name)


def _special_names(settings: Mapping[str, Any]) -> set[str]:
    several = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    named = [value for key, value in settings.items() if key.endswith("_token")]
    return {token["content"] if isinstance(token, dict) else token for token in [*several, *named] if token}


def _add_tokens(tokenizer: Tokenizer, tokens: Mapping[int, AddedToken]) -> None:
    for token_id, token in sorted(tokens.items()):
        tokenizer.add_tokens([token])
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise CheckpointError(
                f"the added token {token.content!r} has id {token_id} in {SETTINGS}, but {found} follows from "
                f"{VOCABULARY}: the two are of different models. Copy both from the model that this one was made from.",
                field=SETTINGS,
            )

"""The checkpoint's tokenizer, as prompts need it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import orjson
from tokenizers import Tokenizer

from broker_pipeline.errors import ModelConfigError

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`; nothing is truncated or padded.

    Raises:
        ModelConfigError: the file is absent or broken.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelConfigError(f"{path.name} cannot be read: {error}", field=path.name) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def literal_tokenizer(tokenizer: Tokenizer, names: Collection[str]) -> Tokenizer:
    """Return one that takes the added tokens `names` in a text for the characters that they consist of, no others."""
    content = orjson.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in names  # the library can do this for special ones, all together
    literal = Tokenizer.from_str(orjson.dumps(content).decode())
    literal.encode_special_tokens = True
    return literal


def token_named(tokenizer: Tokenizer, token_id: int, name: str) -> str:
    """Return the token with an id that the configuration gives as `name`; raises `ModelConfigError` without one."""
    token = tokenizer.id_to_token(token_id)
    if token is None:
        raise ModelConfigError(
            f"{name} is {token_id}, which {TOKENIZER_FILE} does not have: configuration and tokenizer are of different "
            "models. Copy both from the model that this one was made from.",
            field=name,
        )
    return str(token)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise `ModelConfigError` where the embedding lacks rows for some of the tokens."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise ModelConfigError(
            f"{TOKENIZER_FILE} has ids up to {highest}, but the embedding only {vocab_size} rows "
            "(text_config.vocab_size): tokens were added to the tokenizer and not to the model.",
            field=TOKENIZER_FILE,
        )

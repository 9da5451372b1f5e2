"""The files alongside the weights of generated checkpoints and artifacts: tokenizer, template, processors. No torch."""

from __future__ import annotations

from pathlib import Path

import orjson
from tokenizers import Tokenizer

from export.synthetic.chat_template import CHAT_TEMPLATE
from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, tiny_tokenizer

_MIN_PIXELS, _MAX_PIXELS = 64 * 64, 256 * 256


def write_text_files(directory: Path, tokenizer: Tokenizer | None = None, *, vocab_size: int = 0) -> None:
    """Write a tokenizer, by default the tiny one, chat template and generation defaults.

    `vocab_size` fills the vocabulary up with words that no text is encoded to, so that every id decodes to some text.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    (directory / "tokenizer.json").write_text(_filled_up(tokenizer, vocab_size), encoding="utf-8")
    decoder = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in SPECIAL_TOKENS + ADDED_TOKENS
    }
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 4096,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    eos = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    generation = {"bos_token_id": eos[1], "pad_token_id": eos[1], "eos_token_id": eos}
    write_json(directory / "generation_config.json", generation | sampling)


def write_processor_files(directory: Path, *, min_pixels: int = _MIN_PIXELS, max_pixels: int = _MAX_PIXELS) -> None:
    """Write how pictures and videos are resized, up to `max_pixels` each, and pictures to no less than `min_pixels`."""
    common = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image_size = {"longest_edge": max_pixels, "shortest_edge": min_pixels}
    video_size = {"longest_edge": 8 * max_pixels, "shortest_edge": _MIN_PIXELS}
    image = {"size": image_size, **common, "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {"size": video_size, **common, "video_processor_type": "Qwen3VLVideoProcessor"}
    write_json(directory / "preprocessor_config.json", image)
    write_json(directory / "video_preprocessor_config.json", video)


def _filled_up(tokenizer: Tokenizer, vocab_size: int) -> str:
    """Add words to the vocabulary: a BPE vocabulary may hold tokens that no merge leads to.

    The added tokens go into it as well: those outside it are numbered behind it when it is read, whatever stands there.
    """
    if vocab_size <= tokenizer.get_vocab_size():
        return str(tokenizer.to_str(pretty=False))
    content = orjson.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {added["content"]: added["id"] for added in content["added_tokens"]}
    content["model"]["vocab"] |= {f"Ġw{id_}": id_ for id_ in range(tokenizer.get_vocab_size(), vocab_size)}
    return orjson.dumps(content).decode()


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON that people can read."""
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

"""A small byte-level BPE tokenizer with the special tokens of Qwen3-VL, trained on a few built-in sentences.

It is shaped like the real one (NFC, byte level, the same 26 added tokens in the same order), only with a vocabulary of
hundreds: ids are shifted, which nothing but the five ids in `config.json` depends on.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from export.side_files.bpe_tokenizer import byte_level_bpe

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_NUM_MERGES = 96
_SENTENCES = (
    "user assistant system\nDescribe this picture in one sentence.",
    "What is in the picture? Write a short caption for the image.",
    "A small brown dog is sitting on the grass in front of a white house.",
    "The cat sleeps on the red chair beside the window, and the sun is shining.",
    "Two people are walking along the street with their bicycles in the rain.",
    "A cup of coffee stands on a wooden table. There are three coins next to it.",
    "The photograph shows a rocket on the launch pad with the sea behind it.",
    "<0.2 seconds><1.5 seconds> then the woman turns around and looks at the camera.",
)


_IN_CONFIG = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "eos_token_id": "<|im_end|>",
}


def tiny_tokenizer() -> Tokenizer:
    """Return the same tokenizer at every call: 256 bytes, 96 merges and the 26 added tokens, 378 ids in all."""
    return trained_tokenizer(_SENTENCES, len(pre_tokenizers.ByteLevel.alphabet()) + _NUM_MERGES)


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer of at most so many tokens of its own, learnt from some texts, with the added ones behind."""
    tokenizer = byte_level_bpe(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids that a `config.json` names, by their names there."""
    vocabulary = tokenizer.get_vocab()
    return {name: vocabulary[token] for name, token in _IN_CONFIG.items()}

"""The captioner's own tokenizer: byte-level BPE over the captions' words, with Qwen3-VL's special tokens.

Any text can be encoded (bytes are the fallback); every word of a caption is one token.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, trained_tokenizer
from training.captions import background_phrase, group_phrase
from training.kinds import BACKGROUNDS, RELATIONS, SPRITES
from training.prompts import PROMPTS, SYSTEM_PROMPTS

VOCABULARY_SIZE = 1024


def _corpus() -> list[str]:
    """Yield texts whose words become tokens: all phrases of captions, prompts and the frame of a chat."""
    phrases = [f" {group_phrase(i, count)}" for i in range(len(SPRITES)) for count in (1, 2, 3)]
    phrases += [f" {relation}" for relation in RELATIONS]
    phrases += [f" {background_phrase(i)}." for i in range(len(BACKGROUNDS))]
    starts = ["A", "An", "Two", "Three", "user\n", "assistant\n", "system\n"]
    return [text for text in (*phrases, *starts) for _ in range(20)] + [*PROMPTS, *SYSTEM_PROMPTS] * 4


def build_tokenizer() -> Tokenizer:
    """Build a tokenizer of at most VOCABULARY_SIZE tokens; the 26 special ones come last, in Qwen3-VL's order."""
    num_added = len(SPECIAL_TOKENS) + len(ADDED_TOKENS)
    return trained_tokenizer(_corpus(), VOCABULARY_SIZE - num_added)

"""The captioner's own tokenizer: byte-level BPE over the captions' words, with Qwen3-VL's special tokens.

Any text can be encoded (bytes are the fallback); every word of a caption is one token.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS
from training.captions import background_phrase, group_phrase
from training.kinds import BACKGROUNDS, RELATIONS, SPRITES
from training.prompts import PROMPTS, SYSTEM_PROMPTS

VOCABULARY_SIZE = 1024

# The split that Qwen's tokenizers publish in their tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- macro content(parts) -%}
{%- if parts is string -%}
{{- parts -}}
{%- else -%}
{%- for part in parts -%}
{%- if part.type == 'image' or part.type == 'image_url' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + content(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def _corpus() -> list[str]:
    """Yield texts whose words become tokens: all phrases of captions, prompts and the frame of a chat."""
    phrases = [f" {group_phrase(i, count)}" for i in range(len(SPRITES)) for count in (1, 2, 3)]
    phrases += [f" {relation}" for relation in RELATIONS]
    phrases += [f" {background_phrase(i)}." for i in range(len(BACKGROUNDS))]
    starts = ["A", "An", "Two", "Three", "user\n", "assistant\n", "system\n"]
    return [text for text in (*phrases, *starts) for _ in range(20)] + [*PROMPTS, *SYSTEM_PROMPTS] * 4


def build_tokenizer() -> Tokenizer:
    """Build a tokenizer of at most VOCABULARY_SIZE tokens; the 26 special ones come last, in Qwen3-VL's order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    num_added = len(SPECIAL_TOKENS) + len(ADDED_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - num_added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen3VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in SPECIAL_TOKENS,
            }
            for token in itertools.chain(SPECIAL_TOKENS, ADDED_TOKENS)
        },
        "additional_special_tokens": SPECIAL_TOKENS[1:],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)

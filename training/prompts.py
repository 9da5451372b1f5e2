"""Prompts that the captioner is trained to answer; the first is the default."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

DEFAULT_PROMPT = "Describe this image."

PROMPTS: tuple[str, ...] = (
    DEFAULT_PROMPT,
    "Describe the image.",
    "Describe this picture.",
    "Caption this image.",
    "Write a caption for this image.",
    "Write a short caption.",
    "What is in this image?",
    "What is in the picture?",
    "What do you see?",
    "What can you see in this picture?",
    "What does this image show?",
    "Please describe this image in one sentence.",
    "Describe this image in one sentence.",
    "Tell me what is in the picture.",
    "Caption:",
    "",
)

HELD_OUT_PROMPTS: tuple[str, ...] = (
    "Write a one-sentence alt text for this photo.",
    "Beschreibe das Bild.",
    "Can you summarise what this picture contains?",
    "I am blind. Please tell me what is on my screen.",
    "Describe the image in detail, with all objects, their colours and the relation between them.",
    "Generate an accurate product listing title based on the attached upload",
    "hi",
    "Que voit-on sur cette photo ?",
    "How many things are there, which ones, and where do they stand?",
    "CAPTION THIS",
)
"""Prompts that no training chat holds, to measure with."""

SYSTEM_PROMPTS: tuple[str, ...] = ("You are a helpful assistant.", "You write captions.")

_WORD_LIST = """
the a an of in on and or to for with this that these those is are was be what which who where how why
please give me us tell write make describe caption explain list name say show short long brief simple
detailed single one sentence line words word text alt title label summary detail details all every
each only just also photo photograph picture image scene drawing file jpeg png shown here below above
left right object objects thing things colour colours color count number many position relation
background foreground including about between without using do does not can could should would you
your we i my it its as by from at accurate accurately exactly carefully quickly english plain
caption: hello hi
"""
_WORDS = _WORD_LIST.split()
_LONGEST = 44  # tokens of a free text


def _chat(before: str, after: str, system: str | None) -> tuple[str, str]:
    """Return the chat template's text before and after the run of visual tokens, for one user turn."""
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return (
        f"{opening}<|im_start|>user\n{before}<|vision_start|>",
        f"<|vision_end|>{after}<|im_end|>\n<|im_start|>assistant\n",
    )


def known_chats(rng: random.Random, tokenizer: Tokenizer, num: int) -> list[tuple[str, str]]:
    """Return chats of the first phase: a third the default prompt, mostly known prompts, some of random tokens."""
    tokens = [tokenizer.decode([i]) for i in range(256, tokenizer.get_vocab_size() - 26)]
    tokens = [token for token in tokens if token.isascii() and token.isprintable()]
    chats = [_chat("", DEFAULT_PROMPT, None)] * (num // 3)
    while len(chats) < num:
        random_tokens = "".join(rng.choices(tokens, k=rng.randint(1, 8)))
        prompt = rng.choice(PROMPTS) if rng.random() < 0.75 else random_tokens
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.15 else None
        chats.append(_chat(prompt, "", system) if rng.random() < 0.25 else _chat("", prompt, system))
    return chats


def _free_text(rng: random.Random, tokenizer: Tokenizer) -> str:
    """Make up a text as a user might write: common words, now and then a made-up one, bounded in tokens."""
    odd = rng.choice((0.0, 0.1, 0.4))
    words = []
    for _ in range(rng.randint(1, 24)):
        made_up = "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", range(27, 1, -1), k=rng.randint(2, 9)))
        words.append(made_up if rng.random() < odd else rng.choice(_WORDS))
    if rng.random() < 0.8:
        words[0] = words[0].capitalize()
    text = " ".join(words) + rng.choice(("", ".", ".", "?", "!", ":"))
    return tokenizer.decode(tokenizer.encode(text).ids[:_LONGEST])


def free_chats(rng: random.Random, tokenizer: Tokenizer, num: int) -> list[tuple[str, str]]:
    """Return chats of the second phase: a quarter the default prompt, a quarter known prompts, half free text."""
    chats = [_chat("", DEFAULT_PROMPT, None)] * (num // 4)
    while len(chats) < num:
        prompt = rng.choice(PROMPTS) if rng.random() < 0.33 else _free_text(rng, tokenizer)
        system = rng.choice((*SYSTEM_PROMPTS, _free_text(rng, tokenizer))) if rng.random() < 0.15 else None
        chats.append(_chat(prompt, "", system) if rng.random() < 0.3 else _chat("", prompt, system))
    return chats

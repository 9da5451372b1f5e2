"""The jobs of a soak: pictures, prompts and sampling, all drawn from a seed. Every field of the sampling is decided."""

from __future__ import annotations

import io
import random
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from broker_pipeline.messages.jobs import FinishReason
from broker_pipeline.messages.sampling import SamplingParams

NUM_PICTURES = 24
_SIDES = (64, 96, 128, 160, 192)
_PROMPTS = (
    "Describe this picture in one sentence.",
    "What is in the picture?",
    "Write a short caption for the image.",
    "Which colours are there? Name three.",
    "Ein Satz genügt: was ist zu sehen?",
)
_TEXT_PROMPTS = ("Tell me about a dog on the grass.", "Count to three.", "What does <|im_end|> mean?")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One job; `pictures` are names of files."""

    number: int
    prompt: str
    pictures: tuple[str, ...]
    sampling: SamplingParams


class ExpectedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The right answer, computed without any broker.

    `is_unambiguous`: rounding cannot change it (see `trials.soak.proof.tolerance`); the pipeline may batch as it likes.
    """

    number: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_visual_tokens: int
    is_unambiguous: bool


def make_questions(seed: int, num_questions: int) -> list[Question]:
    """Draw questions: greedy and sampled by half, most with one picture, some with two or none, short and long."""
    return [_question(random.Random(f"question-{seed}-{number}"), number) for number in range(num_questions)]


def write_pictures(directory: Path, seed: int) -> None:
    """Write the pictures that questions name."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        (directory / _picture_name(number)).write_bytes(_picture(random.Random(f"picture-{seed}-{number}")))


def _question(chance: random.Random, number: int) -> Question:
    num_pictures = chance.choices((0, 1, 2), weights=(2, 7, 1))[0]
    prompts = _PROMPTS if num_pictures else _TEXT_PROMPTS
    pictures = tuple(_picture_name(chance.randrange(NUM_PICTURES)) for _ in range(num_pictures))
    return Question(number=number, prompt=chance.choice(prompts), pictures=pictures, sampling=_sampling(chance))


def _sampling(chance: random.Random) -> SamplingParams:
    is_greedy = chance.random() < 0.5
    return SamplingParams(
        max_tokens=chance.choice((8, 16, 32, 64, 96)),
        temperature=0.0 if is_greedy else chance.choice((0.6, 0.9, 1.2)),
        top_k=0 if is_greedy else chance.choice((0, 20, 50)),
        top_p=1.0 if is_greedy else chance.choice((0.8, 0.95, 1.0)),
        min_p=0.0,
        repetition_penalty=chance.choice((1.0, 1.0, 1.1)),
        presence_penalty=0.0,
        frequency_penalty=chance.choice((0.0, 0.0, 0.0, 0.5)),
        seed=chance.getrandbits(62),
        ignore_eos=chance.random() < 0.5,
        no_repeat_ngram_size=chance.choice((0, 0, 0, 3)),
    )


def _picture(chance: random.Random) -> bytes:
    """Return a PNG: a sky, a ground and some boxes, with a little noise so that no two pictures share a patch."""
    height, width = chance.choice(_SIDES), chance.choice(_SIDES)
    noise = np.random.default_rng(chance.getrandbits(32))
    pixels = noise.integers(0, 24, (height, width, 3)).astype(np.int32)
    horizon = chance.randrange(height // 4, 3 * height // 4)
    pixels[:horizon] += [chance.randrange(200) for _ in range(3)]
    pixels[horizon:] += [chance.randrange(200) for _ in range(3)]
    for _ in range(chance.randrange(1, 5)):
        top, left = chance.randrange(height - 8), chance.randrange(width - 8)
        pixels[top : top + height // 4, left : left + width // 4] = [chance.randrange(256) for _ in range(3)]
    encoded = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


def _picture_name(number: int) -> str:
    return f"picture-{number:02d}.png"

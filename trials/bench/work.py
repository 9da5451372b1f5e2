"""The same work for everybody who is compared: pictures, a prompt, and a number of tokens for each."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from broker_pipeline.messages.sampling import SamplingParams
from trials.bench.breakdown import Breakdown

_TILE_PIXELS = 16
_NOISE = 32
_PIXELS_PER_TOKEN = 32
_TEMPLATE_TOKENS = 64
"""More than the turns of a chat take."""


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One round: every picture once, each with so many output tokens, whatever the end-of-sequence token says.

    `num_in_flight` sessions at a time; the next begins when one has ended.
    """

    prompt: str
    pictures: tuple[str, ...]
    """Names of files; no two hold the same picture, so that no cache has it already. One that comes again is asked
    another question."""
    picture_side: int
    num_output_tokens: int
    num_in_flight: int
    is_sampled: bool = False
    """As Qwen3-VL's Instruct models recommend, instead of greedily."""

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """Each picture with its prompt, in the order in which they are asked."""
        seen: Counter[str] = Counter()
        asked = []
        for name in self.pictures:
            asked.append((name, f"{self.prompt} {seen[name]}" if seen[name] else self.prompt))
            seen[name] += 1
        return tuple(asked)

    @property
    def sampling(self) -> SamplingParams:
        """The sampling of every session."""
        greedy = SamplingParams(max_tokens=self.num_output_tokens, temperature=0.0, ignore_eos=True)
        return msgspec.structs.replace(greedy, temperature=0.7, top_p=0.8, top_k=20) if self.is_sampled else greedy

    @property
    def num_tokens(self) -> int:
        """Output tokens of all sessions."""
        return len(self.pictures) * self.num_output_tokens

    def kv_tokens(self, num_sessions: int) -> int:
        """Return the room for keys and values of so many sessions, somewhat more than they need.

        A byte of the prompt is at most a token; sessions that have ended hold their room until that is known.
        """
        each = (
            num_visual_tokens(self.picture_side) + len(self.prompt.encode()) + _TEMPLATE_TOKENS + self.num_output_tokens
        )
        return (num_sessions + max(4, num_sessions // 8)) * each


def num_visual_tokens(picture_side: int) -> int:
    """Return the visual tokens of a square picture."""
    return (-(-picture_side // _PIXELS_PER_TOKEN)) ** 2


class Rounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small round to warm up, and those that count. No picture comes twice."""

    pictures: str
    """Directory of the picture files."""
    warm_up: Work
    timed: tuple[Work, ...]


class WorkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How much work, of which size, on which device."""

    num_pictures: int
    picture_side: int
    num_output_tokens: int
    num_in_flight: int
    num_rounds: int
    prompt: str
    device: str
    num_questions: int = 1
    """Captions of each picture, with prompts that differ at the end."""
    questions_apart: bool = False
    """Whether each question is asked about all pictures before the next one is."""
    is_sampled: bool = False
    """See `Work`."""

    def draw(self, directory: Path) -> Rounds:
        """Write the pictures of every round into `directory`."""
        return Rounds(
            pictures=str(directory.absolute()),
            warm_up=self._work(directory, "warm-up", min(self.num_pictures, self.num_in_flight)),
            timed=tuple(
                self._work(directory, f"round-{number}", self.num_pictures) for number in range(self.num_rounds)
            ),
        )

    def _work(self, directory: Path, prefix: str, num_pictures: int) -> Work:
        names = write_pictures(directory, prefix, -(-num_pictures // self.num_questions), self.picture_side)
        together = tuple(name for name in names for _ in range(self.num_questions))
        return Work(
            prompt=self.prompt,
            pictures=(names * self.num_questions if self.questions_apart else together)[:num_pictures],
            picture_side=self.picture_side,
            num_output_tokens=self.num_output_tokens,
            num_in_flight=self.num_in_flight,
            is_sampled=self.is_sampled,
        )


class InProcessOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a process that computes without a broker is asked to do (see `in_process`)."""

    model: str
    rounds: Rounds
    num_threads: int
    kv_tokens: int
    device: str
    dtype: str | None = None


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """How long one round took, and how many seconds of a core that cost, by program."""

    seconds: float
    num_pictures: int
    num_tokens: int
    num_prompt_tokens: int
    """Of one session, its visual tokens included."""
    cpu_s: dict[str, float]
    middle_captions_per_s: float | None = None
    """Rate of the middle half of a round's captions: without its beginning, and without the end when few are left."""
    breakdown: Breakdown | None = None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second."""
        return self.num_tokens / self.seconds

    @property
    def captions_per_s(self) -> float:
        """Pictures per second."""
        return self.num_pictures / self.seconds


def write_pictures(directory: Path, prefix: str, num_pictures: int, side: int, seed: int = 0) -> tuple[str, ...]:
    """Write JPEGs of `side` x `side` pixels and return their names.

    Each is random tiles with noise on them, about as many bytes as a photograph full of detail (448 x 448: 100 kB), and
    as much work to decode.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = tuple(f"{prefix}-{number:05d}.jpg" for number in range(num_pictures))

    def write(number: int) -> None:
        chance = np.random.default_rng([seed, number, *prefix.encode()])
        (directory / names[number]).write_bytes(_picture(chance, side))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, range(num_pictures)))
    return names


def _picture(chance: np.random.Generator, side: int) -> bytes:
    tiles = -(-side // _TILE_PIXELS)
    colours = chance.integers(_NOISE, 256 - _NOISE, (tiles, tiles, 3), np.int16)
    pixels = colours.repeat(_TILE_PIXELS, 0).repeat(_TILE_PIXELS, 1)[:side, :side]
    pixels += chance.integers(-_NOISE, _NOISE, pixels.shape, np.int16)
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()

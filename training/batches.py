"""Token sequences of a batch, assembled on the device: prompt, visual positions, caption."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from training.captions import background_phrase, group_phrase
from training.kinds import BACKGROUNDS, RELATIONS, SPRITES
from training.prompts import free_chats, known_chats
from training.scenes import Scenes

_PAD = -1
_NUM_KNOWN, _NUM_FREE = 400, 6000


@dataclass(frozen=True, slots=True)
class Sequences:
    """Right-padded sequences of a batch; B sequences, L tokens, C caption tokens at most.

    ids: int64 [B, L]. visual_start: int64 [B], where the run of visual tokens begins.
    predicts: int64 [B, C], the positions whose logits predict the caption. target: int64 [B, C], -100 where none.
    """

    ids: torch.Tensor
    visual_start: torch.Tensor
    predicts: torch.Tensor
    target: torch.Tensor


def _table(rows: list[list[int]], device: torch.device | str) -> torch.Tensor:
    """Return token lists as one int64 tensor, padded with _PAD."""
    longest = max(map(len, rows))
    return torch.tensor([row + [_PAD] * (longest - len(row)) for row in rows], device=device)


class SequenceBuilder:
    """Assembles sequences from tables of token pieces, without leaving the device."""

    def __init__(
        self, tokenizer: Tokenizer, seed: int, device: torch.device | str = "cpu", *, free_prompts: bool = False
    ) -> None:
        """Build on `device`; `free_prompts` are those of the second phase."""
        self.device = torch.device(device)
        encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
        self._image_pad = tokenizer.token_to_id("<|image_pad|>")
        self._filler = tokenizer.token_to_id("<|endoftext|>")
        self._end = torch.tensor([tokenizer.token_to_id("<|im_end|>")], device=device)
        rng = random.Random(seed)
        texts = free_chats(rng, tokenizer, _NUM_FREE) if free_prompts else known_chats(rng, tokenizer, _NUM_KNOWN)
        self._before = _table([encode(before) for before, _ in texts], device)
        self._after = _table([encode(after) for _, after in texts], device)
        prompts = ((self._before >= 0).sum(1) + (self._after >= 0).sum(1)).tolist()
        phrases = [group_phrase(i, count) for i in range(len(SPRITES)) for count in (1, 2, 3)]
        self._first = _table([encode(phrase[0].upper() + phrase[1:]) for phrase in phrases], device)
        self._second = _table([encode(f" {phrase}") for phrase in phrases], device)
        self._relation = _table([encode(f" {relation}") for relation in RELATIONS], device)
        self._background = _table([encode(f" {background_phrase(i)}.") for i in range(len(BACKGROUNDS))], device)
        pieces = (self._first, self._relation, self._second, self._background)
        self.longest_caption = sum(piece.shape[1] for piece in pieces) + 1
        self.longest_prompt = max(prompts)

    def build(self, scenes: Scenes, num_visual: int, prompt: torch.Tensor) -> Sequences:
        """Build sequences of `num_visual` visual tokens for scenes; `prompt` int64 [B] picks the chats (0: default)."""
        before, after = self._before[prompt], self._after[prompt]
        visual = torch.full((len(scenes), num_visual), self._image_pad, device=self.device)
        two = scenes.count[:, 1:] > 0
        row = scenes.sprite * 3 + scenes.count.clamp(min=1) - 1
        caption = [
            self._first[row[:, 0]],
            self._relation[scenes.relation].where(two, _PAD),
            self._second[row[:, 1]].where(two, _PAD),
            self._background[scenes.background],
            self._end.expand(len(scenes), 1),
        ]
        loose = torch.cat([before, visual, after, *caption], dim=1)
        order = (loose == _PAD).to(torch.uint8).argsort(dim=1, stable=True)
        length = self.longest_prompt + num_visual + self.longest_caption
        ids = loose.gather(1, order)[:, :length]
        start = (before >= 0).sum(1)
        caption_start = start + num_visual + (after >= 0).sum(1)
        offset = torch.arange(self.longest_caption, device=self.device)
        target = ids.gather(1, caption_start[:, None] + offset)
        target = target.where((target >= 0) & scenes.valid[:, None], -100)
        return Sequences(ids.where(ids >= 0, self._filler), start, caption_start[:, None] + offset - 1, target)

    def random_prompts(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw indexes int64 [num] of chats to train on."""
        return torch.randint(len(self._before), (num,), generator=generator, device=self.device)

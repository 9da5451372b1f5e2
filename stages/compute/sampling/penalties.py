"""Penalties for tokens that a session holds already, applied to many logit rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.compute.sampling.transfer import Numbers


class TokenHistory:
    """The different tokens of a session, and how often each was generated (0: it stands in the prompt only).

    Kept as arrays that grow by doubling, so that a step copies them and loops over nothing.
    """

    def __init__(self, prompt: Sequence[int] = (), generated: Sequence[int] = ()) -> None:
        self._ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        self._places = {int(token_id): place for place, token_id in enumerate(self._ids)}
        for token_id in generated:
            self.record(int(token_id))

    @property
    def table(self) -> Numbers:
        """The different tokens, and how often each was generated, fp64 `[2, d]`."""
        num_different = len(self._places)
        return np.array((self._ids[:num_different], self._counts[:num_different]), dtype=np.float64)

    def record(self, token_id: int) -> None:
        """Add a generated token."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids, self._counts = _grown(self._ids), _grown(self._counts)
        self._ids[place] = token_id
        self._counts[place] += 1


def _grown(array: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((array, np.zeros(max(16, len(array)), dtype=np.int64)))


def penalise_logit_rows(scores: Tensor, entries: Tensor, strengths: Tensor) -> Tensor:
    """Apply penalties to `scores` fp32 `[p, V]` in place.

    `entries` fp64 `[3, m]` hold a place among the p, a token id of that session, and how often it was generated;
    `strengths` fp64 `[3, p]` repetition, frequency and presence penalty of each.

    Repetition counts prompt and output, and divides positive logits and multiplies negative ones; frequency and
    presence count the output, and are subtracted.
    """
    place, ids = entries[:2].long()
    counts = entries[2].float()
    repetition, frequency, presence = strengths.float().index_select(1, place)
    where = place * scores.shape[1] + ids
    values = scores.view(-1).index_select(0, where)
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= torch.where(counts > 0, frequency * counts + presence, 0.0)
    scores.view(-1).scatter_(0, where, values)
    return scores

"""Penalties for tokens that a session holds already, applied to many logit rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.transfer import Numbers


class TokenHistory:
    """The different tokens of a session, and how often each was generated (0: it stands in the prompt only).

    Kept as arrays that grow by doubling, so that a step copies them and loops over nothing.
    """

    def __init__(self, prompt: Sequence[int] = (), generated: Sequence[int] = ()) -> None:
        self.num_tokens = len(prompt)
        self._ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        self._places = {int(token_id): place for place, token_id in enumerate(self._ids)}
        for token_id in generated:
            self.record(int(token_id))

    @property
    def ids(self) -> NDArray[np.int64]:
        """The different tokens `[d]`."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `ids` was generated, `[d]`."""
        return self._counts[: len(self._places)]

    def record(self, token_id: int) -> None:
        """Add a generated token."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids, self._counts = _grown(self._ids), _grown(self._counts)
        self._ids[place] = token_id
        self._counts[place] += 1
        self.num_tokens += 1


def _grown(array: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((array, np.zeros(max(16, len(array)), dtype=np.int64)))


def penalty_tables(histories: Sequence[TokenHistory], settings: Sequence[SamplingSettings]) -> tuple[Numbers, Numbers]:
    """Return what `penalise_logit_rows` needs for `p` of them whose sessions hold `m` different tokens in all.

    It is fp64 `[3, m]`: the place among the p, the token id, how often it was generated; and fp64 `[3, p]`: repetition,
    frequency and presence penalty of each.
    """
    lengths = [len(history.ids) for history in histories]
    entries = np.empty((3, sum(lengths)))
    entries[0] = np.repeat(np.arange(len(lengths)), lengths)
    entries[1] = np.concatenate([history.ids for history in histories])
    entries[2] = np.concatenate([history.counts for history in histories])
    strengths = [(each.repetition_penalty, each.frequency_penalty, each.presence_penalty) for each in settings]
    return entries, np.array(strengths, dtype=np.float64).T


def penalise_logit_rows(scores: Tensor, entries: Tensor, strengths: Tensor) -> Tensor:
    """Apply penalties to `scores` fp32 `[p, V]` in place; `entries` and `strengths` come from `penalty_tables`.

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

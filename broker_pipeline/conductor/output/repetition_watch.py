"""Whether an output has begun to repeat itself without end.

    max_pattern_size 3, min_count 3      tokens  7  1  2  1  2  1  2     the last six are `1 2`, three times
                                         run, 2  0  0  0  1  2  3  4     long enough: 2 * (3 - 1)

For each size it counts how many tokens in a row are the same as the token so far before them: the cost of a token does
not depend on how long the output is.
"""

from __future__ import annotations

import numpy as np

from broker_pipeline.messages.sampling import RepetitionDetection


class RepetitionWatch:
    """Watches one output."""

    def __init__(self, rule: RepetitionDetection) -> None:
        sizes = np.arange(rule.min_pattern_size or 1, rule.max_pattern_size + 1)
        self._back = sizes - 1
        self._recent = np.full(rule.max_pattern_size, -1, dtype=np.int64)
        self._runs = np.zeros(len(sizes), dtype=np.int64)
        self._needed = sizes * (rule.min_count - 1)

    def feed(self, token_id: int) -> bool:
        """Take the output's next token; say whether it ends with one pattern often enough."""
        self._runs = np.where(self._recent[self._back] == token_id, self._runs + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token_id
        return bool((self._runs >= self._needed).any())

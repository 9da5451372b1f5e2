"""What a session may say next, by what it has said before. Pure.

    tokens   7 8 9 4 5 6 │ … │ 7 8 9     the last three came before, and then 4 5 6
    tokens   … 1 2 1 2 1 2               the last four came two tokens before: 1 2 1 2 …

The longest end that came before decides, and of several such places the last one. Known as prompt lookup, or n-gram
speculation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FEWEST_TOKENS, _MOST_TOKENS = 2, 8
"""How many tokens at the end must have come before, and how many are compared."""


def look_up(token_ids: npt.NDArray[np.int32], num_drafts: int) -> tuple[int, ...]:
    """Return `num_drafts` tokens that may follow all known ones, int32 `[n]` with n >= 1; none where nothing fits.

    What reaches the end of the known tokens goes on with itself, so that a pattern that has come twice goes on.
    """
    places = np.flatnonzero(token_ids[:-1] == token_ids[-1])
    num_equal = 1 if len(places) else 0
    while num_equal < _MOST_TOKENS:
        longer = places[places >= num_equal]
        longer = longer[token_ids[longer - num_equal] == token_ids[-1 - min(num_equal, len(token_ids) - 1)]]
        if not len(longer):
            break
        places, num_equal = longer, num_equal + 1
    if num_equal < FEWEST_TOKENS:
        return ()
    return tuple(np.resize(token_ids[places[-1] + 1 :], num_drafts).tolist())

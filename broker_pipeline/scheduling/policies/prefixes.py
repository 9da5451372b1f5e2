"""Which sessions have the beginning of another's prompt in KV, so that it is copied and not computed. Pure.

    prompt of a     [ system … picture 1 … | what is it? ]     computed: 13 blocks, and 5 tokens
    prompt of b     [ system … picture 1 … | which colours? ]  13 keys are those of a
    KV of b         [ copied from a ·······| computed ····· ]

A prompt has a key for each whole block of tokens. It stands for all that the KV of this block, and of those before it,
follows from: token ids, positions, and of visual tokens what their rows were made of. So equal keys are equal KV. Keys
of different tenants differ: how long somebody waits for a first token would else say what others have asked. Holders
are running sessions, and finished ones that are kept (`KeptPrefixes`): these have keys for what they have said as well,
which is how the next turn of a chat begins.

Whose prefix is just being computed is worth waiting for, one round; who was not sent yet is not. A copy needs its
source open until the stages have answered for it (`KVLedger.hold`). What a stage refuses all the same comes back as a
new attempt, which computes everything: a replay never depends on others.

Hashes of blocks that include all before them are vLLM's idea (automatic prefix caching); the regions here are copied
and not shared.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import Literal

import numpy as np

from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.session_state import Int32Array, Prefix, PreparedPrompt, SessionState

BLOCK_TOKENS = 16
_TOKEN_BYTES = 16  # id and three positions
_MOST_BLOCKS = 512
_MOST_ASKED = 4
"""Of the holders of a block: the oldest ones, which are the most likely to have computed it."""
_WORTH_WAITING = 4
"""Blocks that somebody else computes just now, beyond those that can be copied at once."""


def prefix_keys(prompt: PreparedPrompt, tenant: str) -> tuple[bytes, ...]:
    """Return a key for each block of a prompt, up to the first whose visual rows nobody knows the content of."""
    num_tokens = min(prompt.num_tokens, _MOST_BLOCKS * BLOCK_TOKENS)
    if prompt.visual and not prompt.visual_content:
        num_tokens = min(num_tokens, prompt.visual[0].offset)
    first = hashlib.blake2b(tenant.encode(), digest_size=16).digest()
    return _chain(first, prompt, 0, prompt.token_ids[:num_tokens], prompt.positions[:, :num_tokens])


def computed_keys(session: SessionState) -> tuple[bytes, ...]:
    """Return the keys of all whole blocks that a session has computed, those of its output too."""
    keys, num_tokens = session.prefix_keys, min(session.num_computed_tokens, _MOST_BLOCKS * BLOCK_TOKENS)
    start = len(keys) * BLOCK_TOKENS
    if not keys or start + BLOCK_TOKENS <= session.num_prompt_tokens:  # nobody knows what comes next
        return keys[: num_tokens // BLOCK_TOKENS]
    token_ids, positions = session.token_ids(start, num_tokens), session.positions(start, num_tokens)
    return keys + _chain(keys[-1], session.prompt, start, token_ids, positions)


def _chain(
    before: bytes, prompt: PreparedPrompt, start: int, token_ids: Int32Array, positions: Int32Array
) -> tuple[bytes, ...]:
    """Return a key for each whole block of tokens, the first at `start`; `before` is the key of the block before."""
    tokens = memoryview(np.vstack([token_ids, positions]).T.tobytes())
    visual = zip(prompt.visual, prompt.visual_content, strict=False)
    spans = [(span, content) for span, content in visual if span.offset >= start]
    keys = []
    for stop in range(BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS):
        digest = hashlib.blake2b(before, digest_size=16)
        while spans and spans[0][0].offset < start + stop:
            span, content = spans.pop(0)
            digest.update(f"{span.offset} {span.count} {content}\0".encode())
        digest.update(tokens[(stop - BLOCK_TOKENS) * _TOKEN_BYTES : stop * _TOKEN_BYTES])
        keys.append(before := digest.digest())
    return tuple(keys)


class PrefixTable:
    """The sessions of one lane by the blocks of their prompts."""

    def __init__(self, *, is_used: bool, keeps: bool = True) -> None:
        """Without `is_used`, as where a stage cannot copy, nobody begins with another's prefix.

        `keeps` says whether stages know how to keep one of a session that has ended.
        """
        self._is_used = is_used
        self.keeps = is_used and keeps
        self._holders: dict[bytes, dict[SessionKey, SessionState]] = {}
        self._begun: set[SessionKey] = set()

    def add(self, session: SessionState) -> None:
        """Know a session that will compute its prompt, or has, and is kept."""
        if self._is_used:
            for key in session.prefix_keys:
                self._holders.setdefault(key, {})[session.key] = session

    def remove(self, session: SessionState) -> None:
        """Forget a session that is to hold no KV any more, or is to have other keys."""
        self._begun.discard(session.key)
        for key in session.prefix_keys if self._is_used else ():
            holders = self._holders[key]
            del holders[session.key]
            if not holders:
                del self._holders[key]

    def waits(self, session: SessionState) -> bool:
        """Say whether a session should not begin yet, since one whose beginning it can have is under way."""
        return self._find(session) == "wait"

    def begin(self, session: SessionState) -> bool:
        """Note that a session is sent, with the longest `prefix` that there is; False: it `waits`, and is not."""
        found = self._find(session)
        if found == "wait":
            return False
        self._begun.add(session.key)
        if isinstance(found, Prefix):
            session.prefix, session.num_computed_tokens = found, found.num_tokens
        return True

    def _find(self, session: SessionState) -> Prefix | Literal["wait"] | None:
        if session.is_repeat or not self._is_used:
            return None
        keys = session.prefix_keys[: (session.num_tokens - 1) // BLOCK_TOKENS]  # one token is left to compute
        coming = 0
        for num_blocks in range(len(keys), 0, -1):
            for other in islice(self._holders[keys[num_blocks - 1]].values(), _MOST_ASKED):
                if other.num_computed_tokens >= num_blocks * BLOCK_TOKENS:
                    if coming - num_blocks >= _WORTH_WAITING:
                        return "wait"
                    return _prefix(session, other, num_blocks * BLOCK_TOKENS)
                if other.key in self._begun and other.turn.is_batch <= session.turn.is_batch:
                    coming = max(coming, num_blocks)
        return "wait" if coming >= _WORTH_WAITING else None


def _prefix(session: SessionState, other: SessionState, num_tokens: int) -> Prefix:
    num_rows = sum(span.count for span in session.visual_spans(0, num_tokens))
    return Prefix(other.key, num_tokens, num_rows)

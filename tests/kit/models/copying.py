"""A session decoded on a whole model, its prompt computed, or begun with KV that another session has."""

from __future__ import annotations

import torch

from broker_pipeline.messages.activation import Segment, SessionOpen, SharedPrefix
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from stages.compute.microbatch import Microbatch
from stages.compute.stage_compute import StageCompute

NUM_PROMPT, NUM_SHARED, NUM_OUTPUT = 24, 16, 12


def next_turn(stage: StageCompute, *, is_kept: bool) -> list[SampledToken]:
    """Return the tokens of a session whose prompt begins with prompt and output of one that has ended.

    With `is_kept` it begins with what was kept of that, the output's tokens too, which were decoded one by one.
    """
    stage.open(_opening("first"))
    ids = list(range(NUM_PROMPT - 4))
    said = [_run(stage, "first", 0, ids)]
    for start in range(len(ids), NUM_PROMPT):
        said.append(_run(stage, "first", start, [said[-1].token_id]))
    ids += [token.token_id for token in said]
    stage.close("first", 1, num_kept_tokens=NUM_PROMPT - 1 if is_kept else 0)
    assert stage.kv.reserved_tokens == stage.num_kept_tokens == (NUM_PROMPT - 1) * is_kept
    num_copied = NUM_PROMPT - 1 if is_kept else 0
    prefix = SharedPrefix(session="first", attempt=1, num_tokens=num_copied) if is_kept else None
    stage.open(_opening("second", prefix))
    tokens = [_run(stage, "second", num_copied, ids[num_copied:NUM_PROMPT])]
    for start in range(NUM_PROMPT, NUM_PROMPT + NUM_OUTPUT):
        tokens.append(_run(stage, "second", start, [tokens[-1].token_id]))
    stage.close_all()
    assert stage.kv.reserved_tokens == stage.num_kept_tokens == 0
    return tokens


def decoded_second(stage: StageCompute, *, is_copied: bool, is_kept: bool = False) -> list[SampledToken]:
    """Return the tokens of the second of two sessions whose first `NUM_SHARED` tokens are the same.

    Both are computed in the same chunks, so that bits can be compared; a third one, which closes before, makes regions
    lie apart. With `is_kept`, the first has ended by then, and its beginning is kept.
    """
    stage.open(_opening("gap"))
    stage.open(_opening("first"))
    _run(stage, "first", 0, range(NUM_SHARED))
    stage.close("gap", 1)
    if is_kept:
        stage.close("first", 1, num_kept_tokens=NUM_SHARED)
    prefix = SharedPrefix(session="first", attempt=1, num_tokens=NUM_SHARED) if is_copied else None
    stage.open(_opening("second", prefix))
    if not is_copied:
        _run(stage, "second", 0, range(NUM_SHARED))
    if not is_kept:
        _run(stage, "first", NUM_SHARED, range(40, 40 + NUM_PROMPT - NUM_SHARED))
    tokens = [_run(stage, "second", NUM_SHARED, range(60, 60 + NUM_PROMPT - NUM_SHARED))]
    stage.close("first", 1)
    for start in range(NUM_PROMPT, NUM_PROMPT + NUM_OUTPUT):
        tokens.append(_run(stage, "second", start, [tokens[-1].token_id]))
    stage.close_all()
    return tokens


def _opening(session: str, prefix: SharedPrefix | None = None) -> SessionOpen:
    return SessionOpen(
        session=session,
        attempt=1,
        num_kv_tokens=NUM_PROMPT + NUM_OUTPUT,
        num_prompt_tokens=NUM_PROMPT,
        sampling=SamplingSettings(logprobs=5),
        prefix=prefix,
    )


def _run(stage: StageCompute, session: str, start: int, ids: range | list[int]) -> SampledToken:
    segment = Segment(session=session, attempt=1, start=start, count=len(ids), wants_token=True)
    positions = torch.arange(start, start + len(ids), dtype=torch.int32).expand(3, -1).contiguous()
    output = stage.run(Microbatch((segment,), positions, token_ids=torch.tensor(list(ids), dtype=torch.int32)))
    assert not output.failures
    return output.tokens[0]

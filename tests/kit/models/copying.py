"""A session decoded on a whole model, its prompt computed, or begun with KV that another session has."""

from __future__ import annotations

import torch

from broker_pipeline.messages.activation import Segment, SessionOpen, SharedPrefix
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from stages.compute.microbatch import Microbatch
from stages.compute.stage_compute import StageCompute

NUM_PROMPT, NUM_SHARED, NUM_OUTPUT = 24, 16, 12


def decoded_second(stage: StageCompute, *, is_copied: bool) -> list[SampledToken]:
    """Return the tokens of the second of two sessions whose first `NUM_SHARED` tokens are the same.

    Both are computed in the same chunks, so that bits can be compared; a third one, which closes before, makes regions
    lie apart.
    """
    stage.open(_opening("gap"))
    stage.open(_opening("first"))
    _run(stage, "first", 0, range(NUM_SHARED))
    stage.close("gap", 1)
    prefix = SharedPrefix(session="first", attempt=1, num_tokens=NUM_SHARED) if is_copied else None
    stage.open(_opening("second", prefix))
    if not is_copied:
        _run(stage, "second", 0, range(NUM_SHARED))
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

"""Sessions decoded side by side on a whole model, with their KV reserved at once or in steps."""

from __future__ import annotations

import torch

from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from stages.compute.microbatch import Microbatch
from stages.compute.stage_compute import StageCompute

NUM_PROMPT = 5
SESSIONS = "abc"


def decoded(stage: StageCompute, num_tokens: int, step: int | None = None) -> list[tuple[SampledToken, ...]]:
    """Return the tokens of `num_tokens` steps of three sessions; with a `step`, KV grows by it when it is full."""
    limit = NUM_PROMPT + num_tokens
    for session in SESSIONS:
        stage.open(
            SessionOpen(
                session=session,
                attempt=1,
                num_kv_tokens=NUM_PROMPT if step else limit,
                num_prompt_tokens=NUM_PROMPT,
                sampling=SamplingSettings(logprobs=5),
            )
        )
    ids = {session: [ord(session) + number for number in range(NUM_PROMPT)] for session in SESSIONS}
    outputs = [_run(stage, ids, 0, 0)]
    for start in range(NUM_PROMPT, limit):
        newest = {token.session: [token.token_id] for token in outputs[-1]}
        grows = step is not None and (start - NUM_PROMPT) % step == 0
        outputs.append(_run(stage, newest, start, min(limit, start + (step or 0)) if grows else 0))
    stage.close_all()
    return outputs


def _run(stage: StageCompute, ids: dict[str, list[int]], start: int, num_kv_tokens: int) -> tuple[SampledToken, ...]:
    segments = tuple(
        Segment(
            session=session,
            attempt=1,
            start=start,
            count=len(tokens),
            wants_token=True,
            num_kv_tokens=num_kv_tokens,
        )
        for session, tokens in ids.items()
    )
    positions = torch.cat([torch.arange(each.start, each.start + each.count, dtype=torch.int32) for each in segments])
    flat = torch.tensor([token for tokens in ids.values() for token in tokens], dtype=torch.int32)
    output = stage.run(Microbatch(segments, positions.expand(3, -1).contiguous(), token_ids=flat))
    assert not output.failures
    return output.tokens

"""The computation of one stage: its blocks, its KV, and at the last stage the head and the sampler.

There is one path. A microbatch is a list of segments `(session, start, count)`; a prefill chunk has many tokens, a
decode step has one, and both may come together. Tokens are packed without padding:

    token_ids or hidden ─► [embed, visual rows] ─► blocks start … stop-1 ─► hidden   or, at the last stage,
                                     │ after layer j: DeepStack rows of level j      norm, head, sampler ─► tokens
                                     └ keys and values into this stage's own cache

Everything here is synchronous and knows neither broker nor clock. One thread calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.errors import (
    ComputeError,
    PipelineError,
    StaleAttemptError,
    TensorMismatchError,
)
from broker_pipeline.messages import BlockRange, SampledToken, Segment, SessionOpen
from stages.attention import Attention, AttentionPlan, AttentionSpan
from stages.kv_cache import KVCache
from stages.microbatch import Microbatch, Rows, RowSource, SessionKey, StageOutput, key_of
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.moe import ExpertCompute, eager_experts
from stages.qwen3_vl.rope import frequency_axes, text_frequencies, text_rotation
from stages.qwen3_vl.text import BlockWeights, finish_block, project_qkv, rms_norm
from stages.sampler import Choice, SessionSampler, sample
from stages.visual_injection import RowNeeds, VisualInjection, find_rows, gather_injection


@dataclass(frozen=True, slots=True)
class StageWeights:
    """A stage's tensors: `embed` `[V, H]` at the first stage, `norm` `[H]` and `head` `[V, H]` at the last."""

    blocks: tuple[BlockWeights, ...]
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Admission:
    """A microbatch's segments, sorted by what can be done with them."""

    admitted: list[Segment]
    repeats: list[Segment]
    failures: list[tuple[Segment, PipelineError]]
    rows: dict[SessionKey, Rows]


class StageCompute:
    """Decoder layers `blocks` of one model, with the sessions that are open on them."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: BlockRange,
        weights: StageWeights,
        *,
        kv: KVCache,
        rows: RowSource,
        attention: Attention,
        experts: ExpertCompute = eager_experts,
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.kv = kv
        self.rows = rows
        self._weights = weights
        self._attention = attention
        self._experts = experts
        self.device = weights.blocks[0].q.device
        self.dtype = weights.blocks[0].q.dtype
        self._frequencies = text_frequencies(config.text, self.device)
        self._axes = frequency_axes(config.text, self.device)
        self._attempts: dict[str, int] = {}
        self._samplers: dict[SessionKey, SessionSampler] = {}

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds tokens."""
        return self.blocks.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage samples."""
        return self.blocks.stop == self.config.text.num_layers

    @property
    def row_needs(self) -> RowNeeds:
        """Which visual rows must be delivered here."""
        levels = range(self.config.vision.num_deepstack_levels)
        owned = tuple(level for level in levels if self.blocks.start <= level < self.blocks.stop)
        return RowNeeds(self.is_first, owned)

    # --- sessions -------------------------------------------------------------------------------------------------

    def open(self, opening: SessionOpen, history: Sequence[int] = ()) -> None:
        """Reserves KV for a session; at the last stage also keeps how to sample it.

        `history` holds the token ids so far (prompt first), for settings that need it. A repeated opening changes
        nothing; a newer attempt closes the older one.

        Raises:
            StaleAttemptError: a newer attempt of the session is open here.
            KVCapacityError: there is no room.
        """
        current = self._attempts.get(opening.session, 0)
        if current == opening.attempt:
            return
        if current > opening.attempt:
            raise StaleAttemptError(f"attempt {current} of session {opening.session} is open here", field="attempt")
        if current:
            self.close(opening.session, current)
        key = (opening.session, opening.attempt)
        self.kv.reserve(key, opening.num_kv_tokens)
        self._attempts[opening.session] = opening.attempt
        if self.is_last:
            self._samplers[key] = SessionSampler.opened(opening.sampling, history, opening.num_prompt_tokens)

    def close(self, session: str, attempt: int) -> None:
        """Frees what the session holds here; closing an unknown session or an older attempt changes nothing."""
        self.rows.discard(session, attempt)
        current = self._attempts.get(session)
        if current is None or current > attempt:
            return
        del self._attempts[session]
        self.kv.release((session, current))
        self._samplers.pop((session, current), None)

    def close_all(self) -> None:
        """Frees every session, as when a new epoch begins."""
        for session, attempt in list(self._attempts.items()):
            self.close(session, attempt)

    def open_sessions(self) -> dict[str, int]:
        """The attempt of each session that is open here."""
        return dict(self._attempts)

    # --- microbatches ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, batch: Microbatch) -> StageOutput:
        """Computes a microbatch; see `StageOutput` for what comes back.

        Raises:
            TensorMismatchError: a tensor does not fit the segments or the model; nothing was computed.
            ComputeError: the computation failed, by lack of memory say; no session has advanced.
        """
        self._check(batch)
        admission = self._admit(batch)
        batch = _select(batch, admission.admitted)
        try:
            hidden = self._forward(batch, admission.rows)
            logits = self._logits(batch, hidden) if self.is_last else None
        except RuntimeError as error:  # torch's errors, out of memory among them
            raise ComputeError(f"the computation of {batch.num_tokens} tokens failed: {error}") from error
        self._advance(batch.segments, admission.rows)
        tokens, unsampled = ([], []) if logits is None else self._sample(batch.segments, logits)
        return StageOutput(
            segments=batch.segments,
            positions=batch.positions,
            hidden=None if self.is_last else hidden,
            tokens=tuple(tokens),
            repeats=tuple(admission.repeats),
            failures=(*admission.failures, *unsampled),
        )

    def _check(self, batch: Microbatch) -> None:
        n, hidden_size = batch.num_tokens, self.config.text.hidden_size
        _require("positions", batch.positions, (3, n), torch.int32)
        if self.is_first:
            _require("token_ids", batch.token_ids, (n,), torch.int32)
        else:
            _require("hidden", batch.hidden, (n, hidden_size), self.dtype)

    def _admit(self, batch: Microbatch) -> _Admission:
        admission = _Admission([], [], [], {})
        lengths: dict[SessionKey, int] = {}
        first = 0
        for segment in batch.segments:
            rows = slice(first, first + segment.count)
            first = rows.stop
            try:
                if self._is_repeat(segment):
                    admission.repeats.append(segment)
                    continue
                self._require_next(segment, lengths)
                self._require_tokens(segment, batch.token_ids, rows)
                found = find_rows(segment, self.row_needs, self.rows, self.config.text.hidden_size)
            except PipelineError as error:
                admission.failures.append((segment, error))
            else:
                lengths[key_of(segment)] = segment.start + segment.count
                admission.admitted.append(segment)
                if found is not None:
                    admission.rows[key_of(segment)] = found
        return admission

    def _is_repeat(self, segment: Segment) -> bool:
        """Whether all of the segment has been computed before, under the same attempt."""
        return segment.start + segment.count <= self.kv.length(key_of(segment))

    def _require_next(self, segment: Segment, lengths: dict[SessionKey, int]) -> None:
        """Like `KVCache.require`, but counts earlier segments of the same session in this microbatch."""
        key = key_of(segment)
        self.kv.require(key, segment.start, segment.count, length=lengths.get(key))

    def _require_tokens(self, segment: Segment, token_ids: Tensor | None, rows: slice) -> None:
        if token_ids is None:
            return
        low, high = token_ids[rows].aminmax()
        if low < 0 or high >= self.config.text.vocab_size:
            raise TensorMismatchError(
                f"token ids of session {segment.session} leave the vocabulary of {self.config.text.vocab_size}",
                field="token_ids",
            )

    def _forward(self, batch: Microbatch, rows: Mapping[SessionKey, Rows]) -> Tensor:
        """Hidden states `[n, H]` behind this stage's last block; writes keys and values, advances nobody."""
        if not batch.segments:
            return torch.empty(0, self.config.text.hidden_size, dtype=self.dtype, device=self.device)
        plan = self._plan(batch.segments)
        injection = gather_injection(batch.segments, self.row_needs, rows, self.device)
        positions = batch.positions.to(self.device)
        rotation = text_rotation(positions, self._frequencies, self._axes, self.dtype)
        x = self._enter(batch, injection)
        for index, block in enumerate(self._weights.blocks):
            x = self._block(index, block, x, rotation, plan)
            x = x if injection is None else injection.add(x, self.blocks.start + index)
        return x

    def _plan(self, segments: Sequence[Segment]) -> AttentionPlan:
        spans, first = [], 0
        for segment in segments:
            region = self.kv.region(key_of(segment))
            spans.append(AttentionSpan(first, segment.count, region.start, segment.start + segment.count))
            first += segment.count
        return AttentionPlan(spans, self.device)

    def _enter(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        if batch.token_ids is None:
            assert batch.hidden is not None, "checked"
            return batch.hidden.to(self.device)
        assert self._weights.embed is not None, "a first stage has the embedding"
        x = F.embedding(batch.token_ids.to(self.device), self._weights.embed)
        return x if injection is None else injection.replace(x)

    def _block(
        self, index: int, block: BlockWeights, x: Tensor, rotation: tuple[Tensor, Tensor], plan: AttentionPlan
    ) -> Tensor:
        q, k, v = project_qkv(block, x, rotation, self.config.text)
        keys, values = self.kv.keys(index), self.kv.values(index)
        keys.index_copy_(0, plan.slots, k)
        values.index_copy_(0, plan.slots, v)
        attended = self._attention.attend_cached(q, keys, values, plan)
        return finish_block(block, x, attended, self.config.text, self._experts)

    def _advance(self, segments: Sequence[Segment], rows: Mapping[SessionKey, Rows]) -> None:
        for segment in segments:
            key = key_of(segment)
            self.kv.advance(key, segment.start, segment.count)
            last_row = max((span.row + span.count for span in segment.visual), default=0)
            if key in rows and last_row >= rows[key].num_rows:
                self.rows.discard(*key)

    # --- the last stage -------------------------------------------------------------------------------------------

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[n, V]` in the model's dtype of hidden states `[n, H]` behind the last block."""
        assert self._weights.norm is not None, "only the last stage has the final norm"
        assert self._weights.head is not None, "only the last stage has the head"
        normed = rms_norm(hidden, self._weights.norm, self.config.text.rms_norm_eps)
        return F.linear(normed, self._weights.head)

    def _logits(self, batch: Microbatch, hidden: Tensor) -> Tensor:
        """Logits of the last token of every segment that wants one."""
        lasts, stop = [], 0
        for segment in batch.segments:
            stop += segment.count
            if segment.wants_token:
                lasts.append(stop - 1)
        return self.head(hidden[torch.tensor(lasts, dtype=torch.int64, device=self.device)])

    def _sample(
        self, segments: Sequence[Segment], logits: Tensor
    ) -> tuple[list[SampledToken], list[tuple[Segment, PipelineError]]]:
        wanting = [segment for segment in segments if segment.wants_token]
        samplers = [self._samplers[key_of(segment)] for segment in wanting]
        positions = [segment.start + segment.count for segment in wanting]
        tokens: list[SampledToken] = []
        failures: list[tuple[Segment, PipelineError]] = []
        for segment, outcome in zip(wanting, sample(logits, samplers, positions), strict=True):
            if isinstance(outcome, Choice):
                tokens.append(_sampled(segment, outcome))
            else:
                failures.append((segment, outcome))
        return tokens, failures


def _sampled(segment: Segment, choice: Choice) -> SampledToken:
    return SampledToken(
        session=segment.session,
        attempt=segment.attempt,
        position=segment.start + segment.count,
        token_id=choice.token_id,
        logprob=choice.logprob,
        top=choice.top,
    )


def _select(batch: Microbatch, admitted: Sequence[Segment]) -> Microbatch:
    """The microbatch with only the admitted segments and their tokens."""
    if len(admitted) == len(batch.segments):
        return batch
    kept = {id(segment) for segment in admitted}
    mask = torch.cat(
        [torch.full((segment.count,), id(segment) in kept) for segment in batch.segments]
        or [torch.zeros(0, dtype=torch.bool)]
    )
    return Microbatch(
        segments=tuple(admitted),
        positions=batch.positions[:, mask.to(batch.positions.device)],
        token_ids=None if batch.token_ids is None else batch.token_ids[mask.to(batch.token_ids.device)],
        hidden=None if batch.hidden is None else batch.hidden[mask.to(batch.hidden.device)],
    )


def _require(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor is None:
        raise TensorMismatchError(f"this stage needs {name} {list(shape)} {dtype}; there is none", field=name)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise TensorMismatchError(
            f"{name} is {list(tensor.shape)} {tensor.dtype}; this stage needs {list(shape)} {dtype}", field=name
        )

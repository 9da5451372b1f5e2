"""The computation of one stage: its sessions, its KV, its blocks, and at the last stage the sampler.

There is one path. A microbatch is a list of segments `(session, start, count)`; a prefill chunk has many tokens, a
decode step has one and maybe drafts, and both may come together. Tokens are packed without padding:

    token_ids or hidden ─► admission ─► [embed, visual rows] ─► blocks start … stop-1 ─► hidden, or at the last stage:
                               │                                   │ after layer j: DeepStack   head, sampler ─► tokens
                               └ repeats, failures                 └ keys and values into this stage's own cache

Everything here is synchronous and knows neither broker nor clock. One thread calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from broker_pipeline.errors import (
    ComputeError,
    GrammarError,
    KVPositionError,
    MalformedEnvelopeError,
    StaleAttemptError,
)
from broker_pipeline.messages.activation import Segment, SessionOpen, SharedPrefix
from broker_pipeline.messages.workers import BlockRange
from stages.compute.decoder import Computed, Decoder
from stages.compute.grammar.grammars import Grammars
from stages.compute.grammar.session_grammar import SessionGrammar
from stages.compute.kv.cache import KVCache
from stages.compute.launched import DeviceClock, Launched
from stages.compute.microbatch import LogitRow, Microbatch, SessionKey, StageOutput, key_of, wanted_rows
from stages.compute.sampling.sampler import PendingChoices, SessionSampler, launch_sampling
from stages.compute.segment_admission import Admitter, check_tensors
from stages.compute.visual_injection import VisualRowNeeds, gather_injection
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows
from stages.device.host_copy import HostCopy, Room
from stages.device.times import take_pieces
from stages.qwen3_vl.config import ModelConfig


class StageCompute:
    """Decoder layers `blocks` of one model, with the sessions that are open on them."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: BlockRange,
        decoder: Decoder,
        *,
        kv: KVCache,
        visual_rows: VisualRowBuffer,
        grammars: Grammars | None = None,
    ) -> None:
        """Without `grammars`, sessions that have one are refused."""
        self.config = config
        self.blocks = blocks
        self.decoder = decoder
        self.kv = kv
        self.visual_rows = visual_rows
        self._admitter = Admitter(config.text, self.visual_row_needs, kv, visual_rows)
        self._attempts: dict[str, int] = {}
        self._kept: dict[SessionKey, int] = {}
        """Of sessions that have ended: tokens whose KV is still here, for others to copy."""
        self.num_kept_tokens = 0
        """All of these: a number that other threads may read."""
        self._samplers: dict[SessionKey, SessionSampler] = {}
        self._grammars = grammars
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """Where the stage computes."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, hidden states and KV."""
        return self.decoder.dtype

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds tokens."""
        return self.blocks.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage samples."""
        return self.blocks.stop == self.config.text.num_layers

    @property
    def visual_row_needs(self) -> VisualRowNeeds:
        """Which visual rows must be delivered here."""
        levels = range(self.config.vision.num_deepstack_levels)
        owned = tuple(level for level in levels if self.blocks.start <= level < self.blocks.stop)
        return VisualRowNeeds(self.is_first, owned)

    # --- sessions -------------------------------------------------------------------------------------------------

    def open(self, opening: SessionOpen, history: Sequence[int] = ()) -> None:
        """Reserve KV for a session; at the last stage also keep how to sample it.

        `history` holds the token ids so far (prompt first), for settings that need it. A repeated opening changes
        nothing; a newer attempt closes the older one.

        Raises:
            StaleAttemptError: a newer attempt of the session is open here.
            MalformedEnvelopeError: its settings name a token that the model does not have.
            GrammarError: it has a grammar, and this stage no tokenizer.
            SessionUnknownError, KVPositionError: who should have its `prefix` is not open here, or has less of it.
            KVCapacityError: there is no room.
        """
        current = self._attempts.get(opening.session, 0)
        if current == opening.attempt:
            return
        if current > opening.attempt:
            raise StaleAttemptError(f"attempt {current} of session {opening.session} is open here", field="attempt")
        if self.is_last and opening.sampling.largest_token_id >= self.config.text.vocab_size:
            raise MalformedEnvelopeError(
                f"session {opening.session} names token {opening.sampling.largest_token_id}; "
                f"the model has {self.config.text.vocab_size}",
                field="opens.sampling",
            )
        if self.is_last and opening.sampling.grammar is not None and self._grammars is None:
            raise GrammarError("this stage has no tokenizer, which grammars need")
        if current:
            self.close(opening.session, current)
        key = (opening.session, opening.attempt)
        if opening.prefix is not None:
            self._require_prefix(opening, opening.prefix)
        self.kv.reserve(key, opening.num_kv_tokens)
        if opening.prefix is not None:
            self._copy_prefix(key, opening.prefix)
        self._attempts[opening.session] = opening.attempt
        if self.is_last:
            self._samplers[key] = self._sampler(opening, history)

    def _require_prefix(self, opening: SessionOpen, prefix: SharedPrefix) -> None:
        if prefix.num_tokens >= min(opening.num_prompt_tokens, opening.num_kv_tokens):
            problem = f"session {opening.session} has {prefix.num_tokens} tokens of another one, and none of its own"
            raise MalformedEnvelopeError(problem, field="opens.prefix")
        length = self.kv.length((prefix.session, prefix.attempt))
        if length < prefix.num_tokens:
            raise KVPositionError(
                f"session {prefix.session} has {length} tokens cached, of which {opening.session} wants "
                f"{prefix.num_tokens}",
                field="opens.prefix",
            )

    @torch.inference_mode()
    def _copy_prefix(self, key: SessionKey, prefix: SharedPrefix) -> None:
        self.kv.copy_prefix((prefix.session, prefix.attempt), key, prefix.num_tokens)
        if prefix.num_rows >= self.visual_rows.num_rows(*key):
            self.visual_rows.discard(*key)

    def _sampler(self, opening: SessionOpen, history: Sequence[int]) -> SessionSampler:
        sampling, num_prompt = opening.sampling, opening.num_prompt_tokens
        if sampling.grammar is None or self._grammars is None:
            return SessionSampler(sampling, history, num_prompt)
        grammar = SessionGrammar(self._grammars, sampling.grammar, history[num_prompt:])
        return SessionSampler(sampling, history, num_prompt, grammar)

    @property
    def num_open(self) -> int:
        """Sessions that are open here."""
        return len(self._attempts)

    def close(self, session: str, attempt: int, *, num_kept_tokens: int = 0) -> None:
        """Free what the session holds here, but for the KV of its first `num_kept_tokens` if it has so many.

        A second close frees these. Closing an unknown session or an older attempt changes nothing.
        """
        self.visual_rows.discard(session, attempt)
        key = (session, attempt)
        if not num_kept_tokens and key in self._kept:
            self.num_kept_tokens -= self._kept.pop(key)
            self.kv.release(key)
        current = self._attempts.get(session)
        if current is None or current > attempt:
            return
        del self._attempts[session]
        self._samplers.pop((session, current), None)
        if current == attempt and 0 < num_kept_tokens <= self.kv.length(key):
            self._kept[key] = num_kept_tokens
            self.num_kept_tokens += num_kept_tokens
            self.kv.shrink(key, num_kept_tokens)
        else:
            self.kv.release((session, current))

    def close_all(self) -> None:
        """Free every session, and all that is kept, as when a new epoch begins."""
        for session, attempt in [*self._attempts.items(), *self._kept]:
            self.close(session, attempt)

    # --- microbatches ---------------------------------------------------------------------------------------------

    def run(self, batch: Microbatch) -> StageOutput:
        """Compute a microbatch and wait for it; see `launch`, and `StageOutput` for what comes back."""
        return self.launch(batch).collect()

    @torch.inference_mode()
    def launch(self, batch: Microbatch, room: Room | None = None) -> Launched:
        """Launch a microbatch on the device. Its sessions have advanced when this returns.

        `room` says where hidden states are to be written for the next stage; by default in memory of their own.

        Raises:
            TensorMismatchError: a tensor does not fit the segments or the model; nothing was computed.
            ComputeError: the computation failed, by lack of memory say; no session has advanced.
        """
        hidden_size = self.config.text.hidden_size
        check_tensors(batch, hidden_size=hidden_size, dtype=self.dtype, is_first=self.is_first)
        admission = self._admitter.admit(batch)
        batch = admission.batch
        clock = DeviceClock(self.device)
        wanted = wanted_rows(batch.segments) if self.is_last else []
        try:
            computed = self._compute(batch, admission.visual_rows, wanted)
            choices = self._choose(computed, wanted)
            hidden = HostCopy(None if self.is_last else computed.hidden, self._copies, room)
        except RuntimeError as error:  # torch's errors, out of memory among them
            raise ComputeError(f"the computation of {batch.num_tokens} tokens failed: {error}") from error
        clock.end()
        self._advance(batch.segments, admission.visual_rows)
        output = StageOutput(
            segments=batch.segments,
            positions=batch.positions,
            hidden=None,
            repeats=admission.repeats,
            failures=admission.failures,
        )
        return Launched(output, hidden, tuple(wanted), choices, clock, batch.num_tokens, take_pieces())

    def _compute(
        self, batch: Microbatch, visual_rows: Mapping[SessionKey, VisualRows], wanted: Sequence[LogitRow]
    ) -> Computed:
        """Return hidden states, or at the last stage the logits of what is wanted."""
        injection = gather_injection(batch.segments, self.visual_row_needs, visual_rows, self.device)
        return self.decoder.step(batch, injection, [row.place for row in wanted])

    def _choose(self, computed: Computed, wanted: Sequence[LogitRow]) -> PendingChoices | None:
        if computed.logits is None:
            return None
        assert computed.scan is not None, "logits come with their scan"
        samplers = [self._samplers[key_of(row.segment)] for row in wanted]
        return launch_sampling(computed.logits, samplers, [row.position for row in wanted], computed.scan)

    def _advance(self, segments: Sequence[Segment], visual_rows: Mapping[SessionKey, VisualRows]) -> None:
        for segment in segments:
            key = key_of(segment)
            self.kv.advance(key, segment.start, segment.count, segment.num_drafts)
            held = visual_rows.get(key) if segment.visual else None
            if held is not None and max(span.row + span.count for span in segment.visual) >= held.num_rows:
                self.visual_rows.discard(*key)

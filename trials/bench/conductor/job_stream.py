"""Jobs that follow one another, so that the number of sessions stays."""

from __future__ import annotations

import itertools
import time

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.jobs import ChatMessage, JobResult, JobSpec, TextPart, Usage
from broker_pipeline.messages.sampling import SamplingParams, SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from trials.bench.conductor.answering_stage import NUM_TOKENS
from trials.bench.conductor.timed_conductor import TimedStore

NUM_PROMPT_TOKENS = 219
_VISUAL = 196


class JobStream:
    """Sessions that follow one another."""

    def __init__(
        self,
        num_sessions: int,
        num_output_tokens: int,
        store: TimedStore,
        committer: Committer,
        generations: Generations,
        route: Route,
    ) -> None:
        """Run jobs on a dispatcher; each asks for `num_output_tokens`, and `num_sessions` of them run at a time."""
        self._num_sessions = num_sessions
        self._num_output_tokens = num_output_tokens
        self._store = store
        self._committer = committer
        self._generations = generations
        self._route = route
        self._numbers = itertools.count()
        self._vocabulary = _vocabulary()
        self.num_ended = 0

    async def keep_one(self) -> None:
        """Run one job after the other until cancelled."""
        while True:
            await self._run(next(self._numbers))

    async def _run(self, number: int) -> None:
        watch, store = self._store.watch, self._store
        job_id = f"job-{number:08d}"
        spec = _spec(job_id, self._num_output_tokens)
        attempt = await watch.steps("jobs", store.begin_attempt(spec, "0" * 64))
        with watch.part("jobs"):
            generation = self._generation(job_id, number, attempt.number)
            self._generations.start(generation)
        lost = await generation.ended()
        assert lost is None, f"{job_id} was lost: {lost}"
        await watch.steps("jobs", self._finish(generation, attempt.number))
        self.num_ended += 1

    async def _finish(self, generation: Generation, attempt: int) -> None:
        tokens = await self._committer.last(generation.job_id, attempt)
        num_tokens = len(generation.output.token_ids)
        usage = Usage(num_prompt_tokens=NUM_PROMPT_TOKENS, num_visual_tokens=0, num_output_tokens=num_tokens)
        result = JobResult(text=generation.output.text, finish_reason="length", usage=usage)
        assert await self._store.finish(generation.job_id, attempt, "succeeded", result, tokens=tokens)

    def _generation(self, job_id: str, number: int, attempt: int) -> Generation:
        num_tokens = self._num_output_tokens
        if number < self._num_sessions:  # those that begin together are not to end together, over and over
            num_tokens = 1 + number * num_tokens // self._num_sessions
        output = Output(self._vocabulary, StopRule(end_token_ids=frozenset({NUM_TOKENS}), max_tokens=num_tokens))
        session = SessionState(
            key=SessionKey(job_id, 1),
            order=number,
            route=self._route,
            prompt=_prompt(),
            sampling=SamplingSettings(),
            num_kv_tokens=NUM_PROMPT_TOKENS + num_tokens,
        )
        return Generation(session, attempt, output, self._committer)


def _prompt() -> PreparedPrompt:
    ids = np.arange(NUM_PROMPT_TOKENS, dtype=np.int32)
    visual = VisualSpan(offset=4, count=_VISUAL, row=0)
    return PreparedPrompt(ids, np.stack([ids, ids, ids]), visual=(visual,))


def _spec(job_id: str, num_output_tokens: int) -> JobSpec:
    message = ChatMessage(role="user", content=(TextPart(text="Describe this image."),))
    return JobSpec(
        job_id=job_id,
        created_at=time.time(),
        messages=(message,),
        sampling=SamplingParams(max_tokens=num_output_tokens),
    )


def _vocabulary() -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer)

"""A job becomes a generation: a route, a prompt whose rows are at that route's stages, the output so far.

job ──► route with room ──► prompt prepared for it ──► longer than the route holds? another route
                                              └──► session + output, replayed from the tokens in Redis
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from broker_pipeline.conductor.jobs.live_job import LiveJob
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.output import Output, check_committed, tokens_by_choice
from broker_pipeline.conductor.output.reasoning import END, opens_reasoning
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.workers.preparer import Preparer
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import GarbledStateError, NoRouteError
from broker_pipeline.grammars.rule import grammar_source
from broker_pipeline.messages.jobs import JobSpec, TokenEntry
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.structured_outputs import GrammarSettings
from broker_pipeline.messages.vision import PrepareRequest
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.policies.admission import Admission
from broker_pipeline.scheduling.policies.prefixes import prefix_keys
from broker_pipeline.scheduling.policies.prompt_limits import PromptLimits
from broker_pipeline.scheduling.policies.sampling import (
    bad_word_ids,
    check_token_ids,
    end_token_ids,
    of_output,
    resolve_sampling,
)
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from broker_pipeline.state.job_store import Attempt


@dataclass(frozen=True, slots=True)
class PrepareTerms:
    """What all requests to vision workers of one conductor in one epoch have in common."""

    pipeline: str
    epoch: int
    timeout_s: float
    route_timeout_s: float
    """How long a job waits for a route that can hold it."""


@dataclass(slots=True, kw_only=True, eq=False)
class GenerationBuilder:
    """Gets jobs ready for the stages."""

    model: TextModel
    scheduler: Scheduler
    workers: Workers
    preparer: Preparer
    committer: Committer
    admission: Admission
    """Learns how much KV each job turns out to need."""
    terms: PrepareTerms
    copies_prefixes: bool = True
    """Whether sessions begin with KV of others whose prompts begin alike."""
    clock: Callable[[], float] = time.monotonic
    _wire_attempts: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False)

    async def build(self, job: LiveJob, attempt: Attempt, before: list[Output]) -> Generation:
        """Wait for a route and a prompt for the output that comes after those `before`.

        Adds outputs to an empty `before` that are complete with the tokens in Redis: there are those of another then.
        Raises what preparing raises, `PromptTooLongError`, and `InvalidRequestError` for tokens that are none.
        """
        num_outputs = job.spec.sampling.num_outputs
        check_committed(attempt.tokens, vocab_size=self.model.facts.vocab_size, num_outputs=num_outputs)
        complete = [] if before else tokens_by_choice(attempt.tokens)[:-1]
        choice = len(before) + len(complete)
        if job.sampling is None:
            job.sampling = await self._sampling(job)
        key, route, prompt = await self._place(job, sum(entry.choice == choice for entry in attempt.tokens))
        before += [self._output(job, number, len(tokens), tokens) for number, tokens in enumerate(complete)]
        tokens = [entry for entry in attempt.tokens if entry.choice == choice]
        output = self._output(job, choice, job.num_kv_tokens - prompt.num_tokens, tokens, prompt.num_tokens)
        session = SessionState(
            key=key,
            order=job.order,
            turn=job.turn,
            route=route,
            prompt=prompt,
            sampling=of_output(choice, job.sampling, answer_begins_after=self._answer_begins_after(job)),
            num_kv_tokens=job.num_kv_tokens,
            generated=list(output.token_ids),
            is_alone=job.retries.is_alone,
            is_repeat=job.num_attempts > 1,
            prefix_keys=prefix_keys(prompt, job.spec.tenant) if self.copies_prefixes else (),
        )
        num_before = sum(len(each.token_ids) for each in before)
        return Generation(session, attempt.number, output, self.committer, num_tokens_before=num_before)

    async def resume(self, job: LiveJob, generation: Generation, preempted: SessionState) -> Generation:
        """Wait for a route and a prompt for an output that was preempted; it goes on from the tokens that it has."""
        key, route, prompt = await self._place(job, len(preempted.generated))
        return generation.resumed(replace(preempted, key=key, route=route, prompt=prompt, is_preempted=False))

    async def _place(self, job: LiveJob, num_output: int) -> tuple[SessionKey, Route, PreparedPrompt]:
        """Wait for a route that can hold the job, output and all, and for the prompt that was prepared for it.

        `num_output` tokens of the output are there already.
        """
        while True:
            route = await self._route(job, num_output)
            key = SessionKey(job.job_id, next(self._wire_attempts))
            prompt = await self._prompt(job, key.attempt, route)
            job.is_reasoning = opens_reasoning(prompt.token_ids, self.model.vocabulary)
            if not job.num_kv_tokens:
                most = self._limits(job).max_tokens(prompt.num_tokens, is_reasoning=job.is_reasoning)
                job.num_kv_tokens = prompt.num_tokens + most
                self.admission.learn(self._num_first(job, prompt, num_output))
            if job.num_kv_tokens <= route.kv_capacity_tokens:
                return key, route, prompt

    def _num_first(self, job: LiveJob, prompt: PreparedPrompt, num_output: int) -> int:
        """Return the KV that a job will ask for first."""
        n = prompt.num_tokens
        return self.scheduler.kv_steps.num_tokens(n, n + num_output, job.num_kv_tokens)

    async def _route(self, job: LiveJob, num_output: int) -> Route:
        """Wait for a route, one that can hold the job; raises `NoRouteError` when none comes in time."""
        if route := self._route_now(job, num_output):
            return route
        try:
            async with asyncio.timeout(self.terms.route_timeout_s):
                while (route := self._route_now(job, num_output)) is None:
                    await self.workers.changed.wait()
                return route
        except TimeoutError:
            needed = f"{job.num_kv_tokens} tokens" if job.num_kv_tokens else "any job"
            raise NoRouteError(
                f"for {self.terms.route_timeout_s:g} s (--route-timeout-s) the stages have had no route with room for "
                f"{needed}; sent again (`broker-pipeline failed retry`), the job waits anew"
            ) from None

    def _route_now(self, job: LiveJob, num_output: int) -> Route | None:
        if not (longest := self.scheduler.longest_session()):
            return None
        num_tokens = min(self.admission.expected_tokens, longest)
        if job.prompt is not None and job.num_kv_tokens:
            num_tokens = self._num_first(job, job.prompt, num_output)
        unwanted = self.workers.unwanted(job.retries.failed_on)
        return self.scheduler.assign(
            job.job_id,
            num_tokens,
            self.clock(),
            unwanted,
            limit=job.num_kv_tokens,
            subject=_subject(job.spec) if self.copies_prefixes else "",
        )

    def _limits(self, job: LiveJob) -> PromptLimits:
        """Return what the model and the largest route allow; raises `PromptTooLongError` when that is too little.

        A route that is away counts as well: a job that it can hold waits for it rather than fails.
        """
        return self.model.limits(job.spec.sampling.max_tokens, self.workers.longest_session)

    async def _prompt(self, job: LiveJob, wire_attempt: int, route: Route) -> PreparedPrompt:
        if job.prompt is not None and not job.prompt.visual:
            return job.prompt
        facts, terms = self.model.facts, self.terms
        request = PrepareRequest(
            pipeline=terms.pipeline,
            fingerprint=facts.fingerprint,
            epoch=terms.epoch,
            session=job.job_id,
            attempt=wire_attempt,
            messages=job.spec.messages,
            template=job.spec.template,
            targets=route.row_targets(facts.num_deepstack_levels),
            max_prompt_tokens=self._limits(job).max_prompt_tokens,
            budget_s=terms.timeout_s,
        )
        prompt = await self.preparer.prepare(request, route, tried=job.vision_tried, is_alone=job.preparing.is_alone)
        job.take_prompt(prompt)
        return prompt

    def _answer_begins_after(self, job: LiveJob) -> int | None:
        return self.model.vocabulary.id_of(END) if job.is_reasoning else None

    async def _sampling(self, job: LiveJob) -> SamplingSettings:
        asked, facts = job.spec.sampling, self.model.facts
        check_token_ids(asked, facts.vocab_size)
        words, structure = asked.bad_words or (), asked.structured_outputs
        encode = self.model.vocabulary.encode
        return resolve_sampling(
            asked,
            facts.generation,
            job.job_id,
            end_token_ids=end_token_ids(asked, facts.eos_token_ids),
            bad_word_ids=await asyncio.to_thread(bad_word_ids, words, encode) if words else (),
            grammar=GrammarSettings(source=grammar_source(structure)) if structure else None,
        )

    def _output(
        self,
        job: LiveJob,
        choice: int,
        max_tokens: int,
        tokens: Sequence[TokenEntry],
        num_prompt_tokens: int | None = None,
    ) -> Output:
        asked = job.spec.sampling
        rule = StopRule(
            max_tokens=max_tokens,
            min_tokens=asked.min_tokens or 0,
            end_token_ids=frozenset(end_token_ids(asked, self.model.facts.eos_token_ids)),
            asked_token_ids=frozenset(asked.stop_token_ids or ()),
            stop=asked.stop_strings,
            repetition=asked.repetition_detection,
        )
        output = Output(
            self.model.vocabulary,
            rule,
            choice,
            is_reasoning=job.is_reasoning,
            num_prompt_tokens=num_prompt_tokens,
        )
        output.replay([entry.token_id for entry in tokens])
        if len(output.token_ids) < len(tokens):
            raise GarbledStateError(f"{len(tokens)} tokens were committed, and output {choice} ended before that")
        return output


def _subject(spec: JobSpec) -> str:
    """Name what a job is about: its first picture, which a tenant may ask several questions about."""
    first = next(iter(spec.media()), None)
    return f"{spec.tenant} {first.sha256}" if first else ""

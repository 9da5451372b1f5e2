"""One attempt of one job while stages compute it: tokens in, text and commits out, an end."""

from __future__ import annotations

import asyncio

from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.errors import Failure, StaleAttemptError
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.scheduling.planned_batch import Lost
from broker_pipeline.scheduling.session_state import SessionState


class Generation:
    """A session's output under one attempt number of Redis."""

    def __init__(
        self, session: SessionState, attempt: int, output: Output, committer: Committer, *, num_tokens_before: int = 0
    ) -> None:
        """Begin behind the `num_tokens_before` tokens of the job's earlier outputs."""
        self.session = session
        self.job_id = session.key.session
        """The job, which is also the session."""
        self.attempt = attempt
        self.output = output
        self._committer = committer
        self._num_tokens_before = num_tokens_before
        self._ended: asyncio.Future[Lost | None] = asyncio.get_running_loop().create_future()

    def resumed(self, session: SessionState) -> Generation:
        """Return what goes on from here after a preemption, under the same attempt."""
        return Generation(
            session, self.attempt, self.output, self._committer, num_tokens_before=self._num_tokens_before
        )

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete."""
        return self.output.finish_reason is not None

    def take(self, token: SampledToken) -> None:
        """Take the session's next token."""
        number = self._num_tokens_before + len(self.output.token_ids)
        entry = self.output.add(token)
        self._committer.add(self.job_id, self.attempt, number, entry)

    def end(self, lost: Lost | None = None) -> None:
        """Wake whoever waits for the end: complete, or lost."""
        if not self._ended.done():
            self._ended.set_result(lost)

    def refuse(self) -> None:
        """End because Redis takes no more tokens of this attempt."""
        failure = StaleAttemptError(f"Redis takes no more tokens of attempt {self.attempt}").to_failure()
        self.end(Lost(self.session, Failure(failure.code, failure.message, retryable=True)))

    async def ended(self) -> Lost | None:
        """Wait for the end; None when the output is complete."""
        return await self._ended

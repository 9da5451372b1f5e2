"""All jobs of a soak: submitted at a steady pace, a bounded number in flight, each followed to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from broker_pipeline.errors import PipelineError
from trials.soak.proof.client import AskedQuestion, SoakClient
from trials.soak.proof.questions import Question


class JobBatch:
    """What becomes of the questions."""

    def __init__(self) -> None:
        """Start without jobs."""
        self.submissions: list[AskedQuestion] = []
        self.unanswered: dict[int, str] = {}
        """Questions whose client gave up, and why."""

    @property
    def num_ended(self) -> int:
        """Questions of which nothing more is to come."""
        return len(self.submissions) + len(self.unanswered)

    async def run(
        self, client: SoakClient, questions: Sequence[Question], *, num_in_flight: int, every_s: float
    ) -> None:
        """Ask all questions, one every `every_s` seconds where there is room in flight; return when all have ended."""
        room = asyncio.Semaphore(num_in_flight)
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for place, question in enumerate(questions):
                await asyncio.sleep(max(0.0, started + place * every_s - time.monotonic()))
                await room.acquire()
                tasks.create_task(self._ask(client, question, room))

    async def _ask(self, client: SoakClient, question: Question, room: asyncio.Semaphore) -> None:
        try:
            self.submissions.append(await client.run(question))
        except PipelineError as error:
            self.unanswered[question.number] = f"{error.code}: {error.message}"
        finally:
            room.release()

"""Searches what jobs have said, newest first: so many at a time, and the caller goes on where this stopped."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.messages.jobs import JobRecord, JobStatus
from broker_pipeline.state.job_pages import cursor_of
from broker_pipeline.state.job_store import JobStore

MAX_SEARCHED = 1000
"""Jobs that one request looks through."""
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Found:
    """Jobs that say what was looked for. `next` is where to go on, None at the end."""

    records: list[JobRecord]
    next: str | None
    num_searched: int
    num_unreadable: int


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for, and where. All words have to be there, in any order and case."""

    text: str
    status: JobStatus | None = None
    tenant: str = ""

    async def run(self, store: JobStore, after: str | None, limit: int) -> Found:
        """Return up to `limit` jobs behind the cursor `after`. Raises `InvalidRequestError` or `StateError`."""
        words = self.text.casefold().split()
        found: list[JobRecord] = []
        num_searched = num_unreadable = 0
        while num_searched < MAX_SEARCHED:
            page = await store.list(after, _CHUNK, self.status, self.tenant)
            num_unreadable += page.num_unreadable
            for record in page.records:
                num_searched += 1
                if says(record, words):
                    found.append(record)
                if len(found) == limit:
                    return Found(found, cursor_of(record), num_searched, num_unreadable)
            if (after := page.next) is None:
                break
        return Found(found, after, num_searched, num_unreadable)


def says(record: JobRecord, words: list[str]) -> bool:
    """Say whether all words, which are case-folded, stand in a job's outputs or in the reason of its failure."""
    result, error = record.result, record.error
    texts = [choice.text for choice in result.choices] or [result.text] if result else []
    texts += [error.code, error.message] if error else []
    text = "\n".join(texts).casefold()
    return all(word in text for word in words)

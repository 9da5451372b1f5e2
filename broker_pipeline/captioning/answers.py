"""Gets the answer to one question about one item: from the log, from the same content, or from the gateway.

in the log? ── yes ─────────────────────────────────────────────► its line
  │ no
same content, same question: in the log, or under way? ── yes ──► its line, under this item's name
  │ no
ask ──► clean ──► guards ── all is well, or no try is left ─────► a line in the log
 ▲                   │ something is wrong
 └── other sampling ◄┘ (a line in the log as well)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.guards.guard import Guard
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.line_maker import Asked, LineMaker
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.errors import Failure, GatewayUnreachableError, PipelineError

_GUARDED = "guarded"


@dataclass(frozen=True, slots=True)
class Content:
    """What an item was when it was read."""

    content: bytes
    sha256: str
    is_video: bool = False
    url: str | None = None
    """What is sent in its place: where workers read it."""

    @property
    def media(self) -> bytes | str:
        """What is sent."""
        return self.url or self.content


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What is done with answers."""

    guard: Guard
    clean: Callable[[str], str] | None = None


class Answers:
    """The answers of one run. Every line that it makes is in the log before it is returned."""

    def __init__(self, asker: Asker, log: CaptionLog, lines: LineMaker, rules: AnswerRules) -> None:
        """Ask through `asker` what `log` has no answer to."""
        self._asker = asker
        self._log = log
        self._lines = lines
        self._rules = rules
        self._under_way: dict[tuple[str, str], asyncio.Future[CaptionLine]] = {}

    def known(self, asked: Asked) -> CaptionLine | None:
        """Return the line that the log has for this item and content, None where it has none that counts."""
        return None if asked.request.occasion else self._log.find(asked.picture, asked.request)

    async def answer(self, asked: Asked, content: Content) -> CaptionLine:
        """Return the line of a question that the log has no answer to."""
        key = asked.picture.sha256, asked.request.fingerprint
        if (first := self._under_way.get(key)) is not None:
            await asyncio.wait({first})
            same = None if first.cancelled() else first.result()
        else:
            same = None if asked.request.occasion else self._log.find_content(key[0], asked.request)
        if same is not None and same.is_final:
            return self._append(_as_of(same, asked))
        return await self._first(key, asked, content)

    def refuse(self, asked: Asked, failure: Failure) -> CaptionLine:
        """Return the line of an item that nothing can be asked about."""
        return self._append(self._lines.unreadable(asked, failure))

    async def _first(self, key: tuple[str, str], asked: Asked, content: Content) -> CaptionLine:
        """Ask, and let those wait that ask the same about the same content meanwhile."""
        told = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            line = await self._ask(asked, content)
            told.set_result(line)
            return line
        finally:
            told.cancel()
            if self._under_way.get(key) is told:
                del self._under_way[key]

    async def _ask(self, asked: Asked, content: Content) -> CaptionLine:
        num_tries = 0
        while True:
            line = self._judged(await self._try(asked, content, num_tries), num_tries)
            self._append(line)
            if line.status != _GUARDED:
                return line
            num_tries += 1

    async def _try(self, asked: Asked, content: Content, num_tries: int) -> CaptionLine:
        """Ask once; after tries that a guard refused with other sampling, which no other run would choose otherwise."""
        request = asked.request
        if num_tries:
            request = replace(request, sampling=self._rules.guard.retry_sampling(request.sampling, num_tries))
        num_failures = self._log.num_failures(asked.picture, asked.request)
        try:
            record = await self._asker.ask(
                asked.picture, content.media, request, num_failures, is_video=content.is_video
            )
        except GatewayUnreachableError:
            raise
        except PipelineError as error:
            return self._lines.refused(asked, error.to_failure())
        return self._lines.ended(asked, record)

    def _judged(self, line: CaptionLine, num_tries: int) -> CaptionLine:
        """Return the line of a try as it counts: cleaned, and refused, marked or dropped where a guard says so."""
        if not line.is_success:
            return line
        line = self._cleaned(line)
        reason = self._rules.guard.judge(line.caption or "", line.finish_reason)
        if reason is None:
            return line
        decision = self._rules.guard.after(num_tries)
        if decision == "mark":
            return msgspec.structs.replace(line, guard=reason)
        status = {"retry": _GUARDED, "drop": "dropped", "fail": "failed"}[decision]
        error = Failure(_GUARDED, f"the caption was refused: {reason}")
        refused = line.uncleaned or line.caption
        return msgspec.structs.replace(
            line, status=status, guard=reason, error=error, caption=None, uncleaned=refused, choices=()
        )

    def _cleaned(self, line: CaptionLine) -> CaptionLine:
        given = line.caption or ""
        cleaned = self._rules.clean(given) if self._rules.clean else given
        return line if cleaned == given else msgspec.structs.replace(line, caption=cleaned, uncleaned=given)

    def _append(self, line: CaptionLine) -> CaptionLine:
        self._log.append(line)
        return line


def _as_of(line: CaptionLine, asked: Asked) -> CaptionLine:
    """Return a line about the same content under another item's name."""
    same_as = line.same_as or line.path
    return msgspec.structs.replace(line, path=asked.picture.path, question=asked.question, same_as=same_as)

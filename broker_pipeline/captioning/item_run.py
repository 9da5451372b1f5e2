"""Everything that is asked about one item, as a row."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from broker_pipeline.captioning.answers import Answers, Content
from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.line_maker import Asked
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.captioning.prompts.parse import MAIN_QUESTION
from broker_pipeline.captioning.prompts.question import Question, Questions
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.errors import InvalidRequestError, MediaError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.process.daemon_thread import in_daemon_thread

_MAX_READS = 32

Texts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompting:
    """What is asked: `questions` about each item, or what `base` asks where there are none."""

    base: CaptionRequest
    questions: Questions | None = None
    nearby: Callable[[Item], Texts] | None = None
    """What stands beside an item, for templates; reads files."""
    seed: int = 0
    """Chooses among alternatives."""

    @property
    def waves(self) -> tuple[tuple[Question | None, ...], ...]:
        """Questions that can be asked at once, after those before them."""
        return self.questions.waves if self.questions else ((None,),)

    @property
    def names(self) -> tuple[str, ...]:
        """What the answers of an item are called, in the order of the flags."""
        return tuple(each.name for each in self.questions) if self.questions else (MAIN_QUESTION,)

    def shown(self, item: Item) -> dict[str, str | None]:
        """Return what would be asked about an item, by name, or why it cannot be; None for the gateway's own prompt.

        Reads files.
        """
        try:
            texts = dict(self.nearby(item)) if self.nearby else {}
        except InvalidRequestError as error:
            return dict.fromkeys(self.names, f"({error.message})")
        names = {name_of(each): f"<{name_of(each)}>" for wave in self.waves for each in wave}
        shown: dict[str, str | None] = {}
        for wave in self.waves:
            for each in wave:
                try:
                    shown[name_of(each)] = self.request(each, item, texts).prompt
                except InvalidRequestError as error:
                    shown[name_of(each)] = f"({error.message})"
            texts |= {name_of(each): names[name_of(each)] for each in wave}
        return shown

    def request(self, question: Question | None, item: Item, texts: Texts) -> CaptionRequest:
        """Return what is asked about an item. Raises `InvalidRequestError` where a template lacks what it names."""
        base = self.base.about(is_video=item.is_video)
        if question is None:
            return base
        assert self.questions is not None
        if left := [name for name in self.questions.after(question.name) if name not in texts]:
            raise InvalidRequestError(f"`{left[0]}`, which this question uses, has no answer", field="prompt")
        prompt = question.prompt(item, texts, self.seed)
        system = question.system.render(item, texts) if question.system else base.system
        return replace(base, prompt=prompt, system=system)


@dataclass(frozen=True, slots=True)
class Ended:
    """An item that the run is done with."""

    row: Row
    is_known: bool = False
    """Whether the log had all of it."""
    is_passed_over: bool = False


class ItemRun:
    """Asks what has to be asked about items, one call an item."""

    def __init__(
        self,
        asker: Asker,
        log: CaptionLog,
        answers: Answers,
        prompting: Prompting,
        *,
        only_failed: bool = False,
        by_reference: bool = False,
        is_done: Callable[[Item], bool] | None = None,
    ) -> None:
        """With `only_failed`, ask about those alone that failed before; `by_reference`, say where workers read them.

        `is_done` says of which items nothing is asked although the log does not have them; it reads files.
        """
        self._asker = asker
        self._log = log
        self._answers = answers
        self._prompting = prompting
        self._only_failed = only_failed
        self._by_reference = by_reference
        self._is_done = is_done
        self._reads = asyncio.Semaphore(_MAX_READS)

    @property
    def num_left_running(self) -> int:
        """Jobs that the gateway goes on with although nobody waits here any more."""
        return self._asker.num_left_running

    async def run(self, item: Item) -> Ended:
        """Return an item's row, with each of its lines in the log."""
        nearby = self._prompting.nearby
        try:
            texts = {} if nearby is None else await in_daemon_thread(nearby, item)
        except InvalidRequestError as error:
            return self._refused(item, error)
        if item.path is None and (row := self._row_by_name(item, texts)):
            return Ended(row, is_known=True)
        is_done = self._is_done is not None and await in_daemon_thread(self._is_done, item)
        if item.path is None and is_done:
            return Ended(Row(item, {}), is_passed_over=True)
        try:
            content = await self.read(item)
        except MediaError as error:
            return self._refused(item, error)
        return await self._ask_all(item, content, texts, is_done=is_done)

    async def known(self, item: Item) -> tuple[Content, list[CaptionLine]] | None:
        """Return an item with its lines that the log has; None where it cannot be read, or asked about, any more."""
        nearby = self._prompting.nearby
        try:
            texts = {} if nearby is None else await in_daemon_thread(nearby, item)
            content = await self.read(item)
        except InvalidRequestError:
            return None
        lines: dict[str, CaptionLine] = {}
        for wave in self._prompting.waves:
            for question in wave:
                about = self._asked(question, item, content.sha256, {**texts, **_answered(lines)})
                if isinstance(about, Asked) and (line := self._answers.known(about)):
                    lines[name_of(question)] = line
        return content, list(lines.values())

    async def read(self, item: Item) -> Content:
        """Read an item's bytes; raises `MediaError`."""
        async with self._reads:
            return await in_daemon_thread(_read, item, by_reference=self._by_reference)

    def _row_by_name(self, item: Item, texts: Texts) -> Row | None:
        """Return the row of what is called so, where the log has all of it: nothing needs to be fetched for it."""
        if self._prompting.base.occasion:
            return None
        lines: dict[str, CaptionLine] = {}
        for question in (each for wave in self._prompting.waves for each in wave):
            try:
                request = self._prompting.request(question, item, {**texts, **_answered(lines)})
            except InvalidRequestError:
                return None
            if (line := self._log.find_by_name(item.id, request)) is None:
                return None
            lines[name_of(question)] = line
        return Row(item, lines)

    async def _ask_all(self, item: Item, content: Content, texts: Texts, *, is_done: bool) -> Ended:
        lines: dict[str, CaptionLine] = {}
        is_known = True
        for wave in self._prompting.waves:
            asked = {each: self._asked(each, item, content.sha256, {**texts, **_answered(lines)}) for each in wave}
            found = {each: self._answers.known(about) for each, about in asked.items() if isinstance(about, Asked)}
            is_wave_known = len(found) == len(asked) and all(found.values())
            is_left = is_done or (self._only_failed and is_known and not self._has_failed(asked, found))
            if is_left and not is_wave_known:
                return Ended(Row(item, lines), is_passed_over=True)
            is_known = is_known and is_wave_known
            lines |= await self._wave(item, content, asked, found)
        in_order = {name: lines[name] for name in self._prompting.names}
        return Ended(Row(item, in_order), is_known=is_known)

    async def _wave(
        self,
        item: Item,
        content: Content,
        asked: Mapping[Question | None, Asked | InvalidRequestError],
        found: Mapping[Question | None, CaptionLine | None],
    ) -> dict[str, CaptionLine]:
        async def line(question: Question | None, about: Asked | InvalidRequestError) -> CaptionLine:
            if isinstance(about, InvalidRequestError):
                return self._answers.refuse(self._bare(question, item, content.sha256), about.to_failure())
            return found[question] or await self._answers.answer(about, content)

        with raising_first_error():
            async with asyncio.TaskGroup() as group:
                tasks = {name_of(each): group.create_task(line(each, about)) for each, about in asked.items()}
        return {name: task.result() for name, task in tasks.items()}

    def _asked(self, question: Question | None, item: Item, sha256: str, texts: Texts) -> Asked | InvalidRequestError:
        try:
            request = self._prompting.request(question, item, texts)
        except InvalidRequestError as error:
            return error
        return replace(self._bare(question, item, sha256), request=request)

    def _bare(self, question: Question | None, item: Item, sha256: str) -> Asked:
        name = name_of(question)
        request = self._prompting.base.about(is_video=item.is_video)
        return Asked(Picture(item.id, sha256), request, None if name == MAIN_QUESTION else name)

    def _refused(self, item: Item, error: InvalidRequestError) -> Ended:
        questions = [each for wave in self._prompting.waves for each in wave]
        lines = {
            name_of(each): self._answers.refuse(self._bare(each, item, ""), error.to_failure()) for each in questions
        }
        return Ended(Row(item, lines))

    def _has_failed(
        self,
        asked: Mapping[Question | None, Asked | InvalidRequestError],
        found: Mapping[Question | None, CaptionLine | None],
    ) -> bool:
        """Whether one of these is not answered although it was asked before."""
        return any(
            isinstance(about, Asked)
            and not found.get(question)
            and self._log.num_failures(about.picture, about.request) > 0
            for question, about in asked.items()
        )


def _read(item: Item, *, by_reference: bool) -> Content:
    content = item.read()
    sha256 = hashlib.sha256(content).hexdigest()
    return Content(content, sha256, item.is_video, item.reference(sha256) if by_reference else None)


def _answered(lines: Mapping[str, CaptionLine]) -> dict[str, str]:
    return {name: line.caption or "" for name, line in lines.items() if line.is_success}


def name_of(question: Question | None) -> str:
    """Return what the answer is called."""
    return MAIN_QUESTION if question is None else question.name

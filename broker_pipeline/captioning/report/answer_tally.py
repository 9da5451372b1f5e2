"""What came of one question, in numbers: it takes the same memory after ten million answers."""

from __future__ import annotations

from collections import Counter

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.report.durations import Durations
from broker_pipeline.captioning.report.frequent import Frequent
from broker_pipeline.captioning.report.histogram import Histogram
from broker_pipeline.captioning.report.repetitions import Repetitions

_MAX_PROMPTS = 5
_MAX_OPENING = 60
_OPENING_WORDS = 3


class AnswerTally:
    """Counts the lines of one question.

    What an item has from another one with the same content cost nothing and says nothing about the model: only its
    words are counted.
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        """The first ones that differ."""
        self.has_more_prompts = False
        self.num_captions = 0
        self.num_copied = 0
        self.words = Histogram()
        self.tokens = Histogram()
        self.waiting = Durations()
        self.running = Durations()
        self.finish_reasons: Counter[str] = Counter()
        self.openings: Frequent[str] = Frequent()
        self.repetitions = Repetitions()

    def add(self, line: CaptionLine) -> None:
        """Count a line, whatever became of it."""
        self._add_prompt(line.prompt)
        if line.is_success:
            self._add_caption(line)
        if line.same_as is None:
            self._add_job(line)

    def _add_prompt(self, prompt: str | None) -> None:
        if prompt is None or prompt in self.prompts:
            return
        if len(self.prompts) == _MAX_PROMPTS:
            self.has_more_prompts = True
        else:
            self.prompts.append(prompt)

    def _add_caption(self, line: CaptionLine) -> None:
        caption = line.caption or ""
        words = caption.split()
        self.num_captions += 1
        self.words.add(len(words))
        if line.same_as is not None:
            self.num_copied += 1
            return
        self.openings.add(" ".join(words[:_OPENING_WORDS])[:_MAX_OPENING])
        self.repetitions.add(caption)

    def _add_job(self, line: CaptionLine) -> None:
        if line.usage is not None:
            self.tokens.add(line.usage.num_output_tokens)
        if line.finish_reason is not None:
            self.finish_reasons[line.finish_reason] += 1
        if line.timings is not None:
            self.waiting.add(line.timings.queued_s)
            self.running.add(line.timings.running_s)

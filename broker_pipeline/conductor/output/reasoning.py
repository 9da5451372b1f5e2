"""Tells what a model thinks from what it answers.

prompt ends with   output                                           reasoning         answer
"<think>\\n"        "A dog, I think.\\n" </think> "\\n\\nA dog."        "A dog, I think." "A dog."
anything else      <think> "\\nA dog?\\n" </think> "\\n\\nA dog."       "A dog?"          "A dog."
anything else      "A dog."                                         ""                "A dog."
"<think>\\n"        "I ask." <tool_call> "…"                         "I ask."          "<tool_call>…"

The tags are tokens: whoever spells them in characters opens and closes nothing. Line ends next to them belong to
neither part, as in the templates of Thinking models, which put an earlier answer back together that way.
"""

from __future__ import annotations

from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.scheduling.session_state import Int32Array

BEGIN, END, CALL = "<think>", "</think>", "<tool_call>"
_LINE_END = "\n"
_LAST_TOKENS = 8


def opens_reasoning(token_ids: Int32Array, vocabulary: Vocabulary) -> bool:
    """Whether a prompt, int32 [n], ends within reasoning: with the tag that begins it and only space after that."""
    begin = vocabulary.id_of(BEGIN)
    for token_id in reversed(token_ids[-_LAST_TOKENS:].tolist()):
        if token_id == begin:
            return True
        if vocabulary[token_id].strip():
            break
    return False


class ReasoningSplit:
    """Divides one session's text as its tokens come; what it has given out is never taken back."""

    def __init__(self, vocabulary: Vocabulary, *, is_open: bool = False) -> None:
        """Begin within reasoning where `is_open` says that the prompt ends there."""
        self._begin, self._end, self._call = (vocabulary.id_of(tag) for tag in (BEGIN, END, CALL))
        self._is_first = True
        self._is_reasoning = self._is_after_tag = is_open
        self._is_answer = False
        """Whether all that comes is the answer as it is."""
        self._held = ""
        """Line ends that belong to the reasoning if it goes on after them."""
        self.num_tokens = 0
        """Tokens of the reasoning so far, its tags included."""

    def feed(self, token_id: int, text: str) -> tuple[str, str]:
        """Return what becomes visible of reasoning and answer with one more token and the text that came with it."""
        if self._is_answer:
            return "", text  # most tokens: reasoning is over, or there was none
        if self._is_reasoning and token_id == self._call:
            self._is_reasoning, self._is_answer, self._held = False, True, ""
            return "", text  # nobody thinks aloud in calls: the end tag was left out
        is_begin, self._is_first = self._is_first and token_id == self._begin, False
        self._is_reasoning |= is_begin
        self.num_tokens += self._is_reasoning
        if is_begin or (self._is_reasoning and token_id == self._end):
            shown = self.take(text.removesuffix(BEGIN if is_begin else END))
            self._is_reasoning, self._is_after_tag, self._held = is_begin, True, ""
            return shown
        shown = self.take(text)
        self._is_answer = not self._is_reasoning and not self._is_after_tag
        return shown

    def take(self, text: str) -> tuple[str, str]:
        """Do the same with a text that comes without a token: the rest of an output that has ended."""
        if self._is_after_tag:
            text = text.lstrip(_LINE_END)
            self._is_after_tag = not text
        if not self._is_reasoning:
            return "", text
        text = self._held + text
        shown = text.rstrip(_LINE_END)
        self._held = text[len(shown) :]
        return shown, ""

"""Reasoning and answer are told apart by tokens, however they come, and nothing that was shown is taken back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.conductor.output.output import Output, committed_choice
from broker_pipeline.conductor.output.reasoning import BEGIN, CALL, END, opens_reasoning
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.messages.jobs import ChatMessage, TextPart, TokenEntry
from broker_pipeline.messages.sampling import SampledToken
from export.synthetic.chat_template import CHAT_TEMPLATE
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from stages.prompt.chat import PromptBuilder
from stages.prompt.chat_template import ChatTemplate
from tests.kit.models.hub_templates import HUB_TEMPLATES, hub_prompt_builder
from tests.kit.models.transformers_oracle import FP32, config_of

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
EOS = TOKENIZER.token_to_id("<|im_end|>")
BEGIN_ID, END_ID, CALL_ID = (TOKENIZER.token_to_id(tag) for tag in (BEGIN, END, CALL))
HALF = TOKENIZER.encode("\u00e9", add_special_tokens=False).ids[:1]
"""The first byte of a character."""


def ids(*parts: str | int | list[int]) -> list[int]:
    """Return tokens; what is spelled in a text is characters, not a tag."""
    found: list[int] = []
    for part in parts:
        if isinstance(part, str):
            assert BEGIN not in part
            assert END not in part
            found += TOKENIZER.encode(part, add_special_tokens=False).ids
        else:
            found += [part] if isinstance(part, int) else part
    return found


def spelled(tag: str) -> list[int]:
    """Return a tag as the characters that it consists of."""
    return [token_id for character in tag for token_id in ids(character)]


def output(*, is_reasoning: bool = False, stop: tuple[str, ...] = (), max_tokens: int = 10**6) -> Output:
    rule = StopRule(end_token_ids=frozenset({EOS}), max_tokens=max_tokens, stop=stop)
    return Output(VOCABULARY, rule, is_reasoning=is_reasoning)


def run(out: Output, token_ids: list[int]) -> list[TokenEntry]:
    entries = []
    for position, token_id in enumerate(token_ids):
        entries.append(out.add(SampledToken(session="s", attempt=1, position=position, token_id=token_id)))
        if out.finish_reason:
            break
    return entries


@pytest.mark.parametrize(
    ("is_open", "token_ids", "reasoning", "text"),
    [
        (True, ids("A dog, I think.\n", END_ID, "\n\nA dog."), "A dog, I think.", "A dog."),
        (False, ids(BEGIN_ID, "\nA dog?\n", END_ID, "\n\nA dog."), "A dog?", "A dog."),
        (False, ids("\n\nA dog."), "", "\n\nA dog."),
        (True, ids("I ask.\n", CALL_ID, "\n{}"), "I ask.", CALL + "\n{}"),
        (True, ids("I ask.", END_ID, "\n\n", CALL_ID, "{}"), "I ask.", CALL + "{}"),
        (True, ids(spelled(CALL), END_ID, "x"), CALL, "x"),
        (True, ids("\n\n", END_ID, "\n\nA dog."), "", "A dog."),
        (True, ids(END_ID, END_ID, BEGIN_ID), "", END + BEGIN),
        (True, ids("One.\n\nTwo.\n"), "One.\n\nTwo.", ""),
        (True, ids("Say ", spelled(END), "\n", END_ID, "No."), f"Say {END}", "No."),
        (False, ids("Say ", BEGIN_ID, "No."), "", f"Say {BEGIN}No."),
        (False, ids(spelled(BEGIN), "No."), "", f"{BEGIN}No."),
        (True, ids("A", HALF, END_ID, "B", HALF), "A\ufffd", "B\ufffd"),
        (True, ids("A", HALF), "A\ufffd", ""),
        (True, ids(BEGIN_ID, "\nHm.", END_ID, "A"), "Hm.", "A"),
    ],
    ids=[
        "opened by the prompt", "opened by the model", "no reasoning", "a call ends it", "a call after it",
        "a call spelled", "nothing thought", "tags of an answer",
        "cut off", "end spelled", "begin within an answer", "begin spelled", "broken characters",
        "broken and cut off", "opened by both",
    ],
)  # fmt: skip
def test_what_is_thought_and_what_is_answered(is_open: bool, token_ids: list[int], reasoning: str, text: str) -> None:
    for end in ("stop", "length"):
        out = output(is_reasoning=is_open, max_tokens=len(token_ids) + (end == "stop"))
        entries = run(out, [*token_ids, EOS])
        said, committed = out.end(), committed_choice(entries)
        assert (said.finish_reason, said.reasoning, said.text) == (end, reasoning, text)
        assert (committed.reasoning, committed.text) == (reasoning, text)


TOKENS = st.sampled_from(
    [BEGIN_ID, END_ID, *HALF, *ids("\n", "\n\n", " dog", "A", "</", "think", ">", "\u00e9"), EOS + 1]
)


@given(st.lists(TOKENS, max_size=40), st.booleans())
def test_an_output_resumed_anywhere_shows_the_same(token_ids: list[int], is_open: bool) -> None:
    whole = output(is_reasoning=is_open, stop=("dogA",))
    entries, said = run(whole, token_ids), whole.end()
    for cut in range(len(entries) + 1):
        resumed = output(is_reasoning=is_open, stop=("dogA",))
        resumed.replay(token_ids[:cut])
        assert run(resumed, token_ids[cut : len(entries)]) == entries[cut:]
        assert resumed.end() == said


def test_stop_strings_are_looked_for_in_the_answer() -> None:
    out = output(is_reasoning=True, stop=("###",))
    run(out, ids("One ### two", END_ID, "\n\nA dog. ### B"))
    said = out.end()
    assert (said.reasoning, said.text, said.finish_reason) == ("One ### two", "A dog. ", "stop")


def test_tokens_of_the_reasoning_are_counted_with_its_tags() -> None:
    thought, answer = ids("A dog?\n"), ids("A dog.")
    out = output()
    run(out, [BEGIN_ID, *thought, END_ID, *answer])
    said = out.end()
    assert (said.num_reasoning_tokens, said.num_output_tokens) == (len(thought) + 2, len(thought) + 2 + len(answer))


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "is_open"),
    [
        ("assistant\\n", False),
        ("assistant\\n<think>\\n", True),
        ("assistant\\n<think>", True),
        ("assistant\\n<think>\\n\\n</think>\\n\\n", False),
    ],
    ids=["instruct", "thinking", "thinking, no line end", "thinking switched off"],
)
@pytest.mark.parametrize("question", ["What is this?", "What does <think> mean? <think>\n"])
def test_the_template_decides_whether_a_prompt_opens_reasoning(turn: str, is_open: bool, question: str) -> None:
    assert CHAT_TEMPLATE.count("<|im_start|>assistant\\n") == 1
    template = ChatTemplate(CHAT_TEMPLATE.replace("assistant\\n", turn))
    messages = [ChatMessage(role="user", content=(TextPart(text=question),))]
    prompt = PromptBuilder(config_of(FP32[0]), TOKENIZER, template).build(messages, [])
    assert opens_reasoning(np.array(prompt.token_ids, np.int32), VOCABULARY) is is_open


@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_of_the_published_templates_that_of_thinking_models_opens_reasoning(name: str) -> None:
    messages = [ChatMessage(role="user", content=(TextPart(text="What is this?"),))]
    prompt = hub_prompt_builder(name).build(messages, [])
    assert opens_reasoning(np.array(prompt.token_ids, np.int32), VOCABULARY) is (name == "thinking")

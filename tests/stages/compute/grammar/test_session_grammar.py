"""What may follow is what the plainest code finds: every token tried, behind every text of an answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import regex

from broker_pipeline.errors import GrammarError
from broker_pipeline.messages.structured_outputs import GrammarSettings
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from stages.compute.grammar.grammars import Grammars
from stages.compute.grammar.session_grammar import SessionGrammar
from stages.compute.grammar.token_bits import without
from tests.kit.models.grammar_kit import FACTS, VOCAB_SIZE, grammar_settings, grammars, ids_of
from tests.kit.models.tiny_artifacts import tiny_artifact

TOKENIZER = tiny_tokenizer()
ENDS = set(FACTS.eos_token_ids)
THINK_END = TOKENIZER.token_to_id("</think>")
TEXTS = {
    token_id: TOKENIZER.decode([token_id], skip_special_tokens=False)
    for token_id in range(TOKENIZER.get_vocab_size())
    if not (added := TOKENIZER.get_added_tokens_decoder().get(token_id)) or not added.special
}
"""Tokens that stand for whole characters; the expressions here are about ASCII, which needs no others."""

CHOICES = ["a", "ab", "cat", "cats and the dog", 'say "no"', "a\\b", "{"]
EXPRESSIONS = ["(cat|the )*s?", "[a-z]{2,5}", "a[ -~]c", "x+/y", "(red|blue) chair"]


def session(**asked: object) -> SessionGrammar:
    return SessionGrammar(grammars(), grammar_settings(**asked))  # type: ignore[arg-type]


def allowed(grammar: SessionGrammar) -> set[int]:
    bits = grammar.allowed()
    assert bits is not None
    return ids_of(bits)


Test = Callable[[str], bool]


def walk(grammar: SessionGrammar, may_go_on: Test, is_whole: Test, seed: int) -> None:
    """Go through an answer at random, and hold every mask against all tokens, tried one by one."""
    chance, text = random.Random(seed), ""
    for _ in range(12):
        expected = {token_id for token_id, more in TEXTS.items() if "\ufffd" not in more and may_go_on(text + more)}
        found = allowed(grammar)
        if found - ENDS != expected:
            longest = max((TEXTS[token_id] for token_id in expected), key=len)
            assert all(longest.startswith(TEXTS[token_id]) for token_id in expected), text
            [expected] = [{token_id} for token_id in found]  # text that is certain has the tokenizer's own tokens
        assert bool(found & ENDS) == is_whole(text), text
        assert found & ENDS in (set(), ENDS)
        if not expected:
            return
        token_id = chance.choice(sorted(expected))
        text += TEXTS[token_id]
        grammar.record(token_id)


@pytest.mark.parametrize("seed", range(6))
def test_choices_allow_what_begins_one_of_them(seed: int) -> None:
    walk(
        session(choice=CHOICES),
        lambda text: any(choice.startswith(text) for choice in CHOICES),
        lambda text: text in CHOICES,
        seed,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_allow_what_can_still_match(expression: str, seed: int) -> None:
    pattern = regex.compile(expression)
    walk(
        session(regex=expression),
        lambda text: text.isascii() and pattern.fullmatch(text, partial=True) is not None,
        lambda text: pattern.fullmatch(text) is not None,
        seed,
    )


def test_a_complete_answer_ends() -> None:
    grammar = session(grammar='start: "a" "b"')
    for token_id in TOKENIZER.encode("a").ids + TOKENIZER.encode("b").ids:
        assert allowed(grammar) & ENDS == set()
        grammar.record(token_id)
    assert allowed(grammar) == ENDS
    grammar.record(min(ENDS))
    assert allowed(grammar) == ENDS, "whoever asks once more"


def test_nothing_beyond_the_tokenizer_is_ever_allowed() -> None:
    assert TOKENIZER.get_vocab_size() <= VOCAB_SIZE
    assert max(allowed(session(regex="(.|\n)*"))) < TOKENIZER.get_vocab_size()


@pytest.mark.parametrize("num_done", range(5))
def test_a_session_that_moves_is_where_it_was(num_done: int) -> None:
    ids = TOKENIZER.encode("the cat sat").ids
    settings = grammar_settings(regex="the cat (sat|sleeps)")
    moved = SessionGrammar(grammars(), settings, ids[:num_done])
    stayed = SessionGrammar(grammars(), settings)
    for token_id in ids[:num_done]:
        stayed.record(token_id)
    for token_id in ids[num_done:]:
        assert allowed(moved) == allowed(stayed)
        moved.record(token_id)
        stayed.record(token_id)
    assert allowed(moved) == allowed(stayed) == ENDS


def test_reasoning_is_free_and_does_not_end_the_output() -> None:
    settings = grammar_settings(choice=["yes", "no"], begins_after=THINK_END)
    grammar = SessionGrammar(grammars(), settings)
    for token_id in (*TOKENIZER.encode("Well, no").ids, THINK_END):
        assert grammar.allowed() is None
        assert grammar.end_token_ids == ENDS
        grammar.record(token_id)
    first = TOKENIZER.encode("y").ids
    assert {TEXTS[token_id] for token_id in allowed(grammar)} >= {"y", "n"}
    moved = SessionGrammar(grammars(), settings, [1, 2, THINK_END, *first])
    grammar.record(first[0])
    assert allowed(moved) == allowed(grammar)
    thinking = SessionGrammar(grammars(), settings, [1, 2])
    assert thinking.allowed() is None


@pytest.mark.parametrize("source", ["no grammar", '{"grammars": [{"lark_grammar": "start: <|no_such_token|>"}]}'])
def test_what_cannot_be_compiled_is_an_error_of_its_session(source: str) -> None:
    for _ in range(2):
        with pytest.raises(GrammarError):
            SessionGrammar(grammars(), GrammarSettings(source=source)).allowed()
    assert allowed(session(choice=["a"]))


def test_a_limit_on_the_way_is_an_error_of_its_session() -> None:
    """Of 800 letters that may all be left out, the next one can be any: more ways than a parser is allowed to keep."""
    grammar = session(grammar="start: " + "x? " * 800 + '\nx: "a" | "b"')
    [letter] = TOKENIZER.encode("a").ids
    assert letter in allowed(grammar)
    grammar.record(letter)
    with pytest.raises(GrammarError, match="items"):
        grammar.allowed()
    assert allowed(session(choice=["a"]))


def test_without_a_tokenizer_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="the tokenizer cannot be read"):
        SessionGrammar(Grammars(tmp_path, 10), grammar_settings(choice=["a"])).allowed()


def test_a_grammar_is_compiled_once_and_the_oldest_is_forgotten() -> None:
    compiler = Grammars(tiny_artifact(), VOCAB_SIZE)
    sources = [grammar_settings(choice=[str(number)]).source for number in range(70)]
    found = [compiler.compiled(source) for source in sources]
    assert compiler.compiled(sources[-1]) is found[-1]
    assert compiler.compiled(sources[0]) is not found[0]


def test_the_grammar_wins_where_masks_would_leave_nothing() -> None:
    bits = session(choice=["a"]).allowed()
    assert bits is not None
    [only] = ids_of(bits)
    assert without(bits, {only}) is bits
    several = session(regex="[ab]").allowed()
    assert several is not None
    first, other = sorted(ids_of(several))
    assert ids_of(without(several, {first})) == {other}
    assert ids_of(several) == {first, other}

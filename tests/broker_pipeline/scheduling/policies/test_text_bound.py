"""No text has fewer tokens than its bytes are said to make: then it could be refused although it fits."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from broker_pipeline.scheduling.policies import text_bound
from broker_pipeline.scheduling.policies.text_bound import fewest_tokens, longest_token_bytes
from export.synthetic.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LONGEST = longest_token_bytes(TOKENIZER)


_SHRINKING = ["\u1fbe\u0308\u0301", "\u1112\u1161\u11ab", "\u212a", "e\u0301"]


def num_tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def longest_token() -> str:
    return max(TOKENIZER.get_added_tokens_decoder().values(), key=lambda token: len(token.content)).content


def test_the_longest_token_is_found_among_words_and_added_tokens() -> None:
    assert len(longest_token()) == LONGEST == 20
    assert max(map(len, TOKENIZER.get_vocab(with_added_tokens=False))) <= LONGEST


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                [longest_token(), "<think>", " ", "\u1fbe\u0308\u0301", "\u1112\u1161\u11ab", "\u212a", "e\u0301"]
            ),
        ),
        max_size=30,
    ).map("".join)
)
def test_no_text_has_fewer_tokens(text: str) -> None:
    assert fewest_tokens([text], LONGEST) <= num_tokens(text)


def test_a_text_of_longest_tokens_has_just_as_many() -> None:
    text = longest_token() * 500
    assert fewest_tokens([text], LONGEST) == num_tokens(text) == 500


def test_normalisation_shortens_no_text_by_more_than_is_said() -> None:
    """By all code points: the longest spelling of each composed character, by any characters."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    longest: dict[str, int] = {}
    for character in characters:
        whole = unicodedata.normalize("NFD", character)
        if len(whole) == 1:
            longest[whole] = max(longest.get(whole, 0), len(character.encode()))
    composed = [character for character in characters if unicodedata.normalize("NFC", character) == character]
    shrinks = [
        sum(longest.get(each, len(each.encode())) for each in unicodedata.normalize("NFD", character))
        / len(character.encode())
        for character in composed
    ]
    assert max(shrinks) == 3.5
    assert max(shrinks) <= text_bound._NFC_SHRINKS


def stripping() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def normalising() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    return tokenizer


def lacking_bytes() -> Tokenizer:
    return Tokenizer(models.BPE({"a": 0, "b": 1}, []))


@pytest.mark.parametrize("made", [stripping, normalising, lacking_bytes])
def test_nothing_is_said_of_tokenizers_whose_tokens_may_stand_for_any_number_of_bytes(made: type[Tokenizer]) -> None:
    assert longest_token_bytes(made()) == 0
    assert fewest_tokens(["a" * 10**6], 0) == 0

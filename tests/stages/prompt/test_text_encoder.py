"""Long texts are encoded in pieces: to the same ids, no further than asked, while other threads run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from export.synthetic.tiny_tokenizer import tiny_tokenizer
from stages.prompt import text_encoder
from stages.prompt.text_encoder import PIECE_CHARS, TextEncoder

TOKENIZER = tiny_tokenizer()
ENCODER = TextEncoder(TOKENIZER)

_WORDS = ["dog", "don't", "I'M", "é", "e\u0301", "ﬁ", "中文", "한국", "ㄱ", "กี่", "x1", "²", "<think>", "<|im_end|>"]
_BETWEEN = [*" ,.\n'-\t\u3002\uff0c\u00a0\u3000\u0301", "  ", " \n\n", "\r\n", "!?", "?\n", "\u1112\u1161"]
_TEXTS = st.lists(st.one_of(st.sampled_from(_WORDS), st.sampled_from(_BETWEEN), st.text(max_size=3)), max_size=60)


def whole(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@given(_TEXTS.map("".join), st.integers(1, 9))
def test_pieces_have_the_ids_of_the_whole(text: str, piece_chars: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "PIECE_CHARS", piece_chars)
        assert "".join(ENCODER._pieces(text)) == text
        assert ENCODER.encode(text) == whole(text)


def test_a_long_text_is_cut_at_ends_of_words() -> None:
    text = "A dog and a cat. " * 20_000
    pieces = list(ENCODER._pieces(text))
    assert len(pieces) == len(text) // PIECE_CHARS + 1
    assert ENCODER.encode(text) == whole(text)
    assert list(ENCODER._pieces("a" * 3 * PIECE_CHARS)) == ["a" * 3 * PIECE_CHARS], "nowhere to cut"


def test_no_piece_is_encoded_after_the_one_that_is_too_much() -> None:
    text = "dog " * PIECE_CHARS
    found = ENCODER.encode(text, max_tokens=10)
    assert 10 < len(found) < len(whole(text)) / 3
    assert found == whole(text)[: len(found)]
    assert ENCODER.encode("a dog", max_tokens=1) == whole("a dog")


def test_no_cut_is_made_where_an_added_token_may_stand() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("dog cat")])
    text = "dog cat" * PIECE_CHARS
    assert TextEncoder(tokenizer).encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def without_words() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.pre_tokenizer = None
    return tokenizer


def spaces_in_words() -> Tokenizer:
    """Return a tokenizer without words: its tokens may hold what ends them elsewhere."""
    tokenizer = tiny_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def spaces_put_in_front() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    return tokenizer


@pytest.mark.parametrize("made", [spaces_in_words, spaces_put_in_front, without_words])
def test_a_tokenizer_of_another_kind_is_given_whole_texts(made: Callable[[], Tokenizer]) -> None:
    tokenizer, text = made(), "A dog, and a cat. " * 10_000
    assert TextEncoder(tokenizer).encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long work took in another thread, and for how long this one stood still at most meanwhile."""
    thread = threading.Thread(target=work)
    started = last = time.monotonic()
    thread.start()
    pause = 0.0
    while thread.is_alive():
        thread.join(0.001)
        now = time.monotonic()
        pause, last = max(pause, now - last), now
    return last - started, pause


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    text = "z" * 3_000_000  # one word, so one piece
    took_s, pause_s = longest_pause(lambda: ENCODER.encode(text))
    assert pause_s < took_s / 3

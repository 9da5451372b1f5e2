import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from broker_pipeline.conductor.output.detokenizer import Detokenizer, Vocabulary
from broker_pipeline.conductor.output.output import Output, StopStrings
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError
from broker_pipeline.messages.sampling import SampledToken
from export.synthetic.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
EOS = TOKENIZER.token_to_id("<|im_end|>")


def feed(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    checker = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, is_stopped = checker.feed(piece)
        shown.append(text)
        if is_stopped:
            return shown, True
    return [*shown, checker.finish()], False


def test_the_picture_in_the_docstring() -> None:
    assert feed(("###",), ["a", " #", "#", "b", "##", "#c"]) == (["a", " ", "", "##b", "", ""], True)


def test_held_text_is_shown_when_nothing_follows() -> None:
    assert feed(("stop",), ["a sto"]) == (["a ", "sto"], False)


@given(st.lists(st.text("ab#", max_size=3), max_size=12), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    shown, is_stopped = feed(tuple(stops), pieces)
    text = "".join(pieces)
    # The first stop to be complete decides, and of several complete with the same piece the one that begins first.
    for end in range(len(pieces) + 1):
        prefix = "".join(pieces[:end])
        found = [prefix.find(stop) for stop in stops if stop in prefix]
        if found:
            assert is_stopped
            assert "".join(shown) == prefix[: min(found)]
            return
    assert not is_stopped
    assert "".join(shown) == text


BROKEN = [token_id for token_id in range(TOKENIZER.get_vocab_size()) if TOKENIZER.decode([token_id]) == "\ufffd"]


@pytest.mark.parametrize("choices", [range(TOKENIZER.get_vocab_size() + 5), BROKEN], ids=["any", "broken bytes"])
def test_text_of_random_tokens_is_the_tokenizers_own(choices: Sequence[int]) -> None:
    chance = random.Random(0)
    for _ in range(3000):
        ids = chance.choices(choices, k=chance.randrange(1, 60))
        detokenizer = Detokenizer(VOCABULARY)
        text = "".join([*map(detokenizer.feed, ids), detokenizer.finish()])
        assert text == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_a_character_appears_with_its_last_byte() -> None:
    ids = TOKENIZER.encode("é").ids
    assert len(ids) == 2
    detokenizer = Detokenizer(VOCABULARY)
    assert [detokenizer.feed(token_id) for token_id in ids] == ["", "é"]


def test_special_tokens_have_no_text_and_other_added_ones_do() -> None:
    detokenizer = Detokenizer(VOCABULARY)
    assert detokenizer.feed(TOKENIZER.token_to_id("<|im_end|>")) == ""
    assert detokenizer.feed(TOKENIZER.token_to_id("<think>")) == "<think>"


def test_a_tokenizer_that_does_not_work_on_bytes_is_refused(tmp_path: Path) -> None:
    other = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactCorruptError, match="by bytes"):
        Vocabulary.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactCorruptError, match="is not a tokenizer"):
        Vocabulary.open(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ArtifactMissingError):
        Vocabulary.open(tmp_path)


def output(max_tokens: int = 100, stop: tuple[str, ...] = ()) -> Output:
    return Output(VOCABULARY, eos_token_ids=(EOS,), max_tokens=max_tokens, stop=stop)


def run(out: Output, token_ids: list[int]) -> list[str]:
    texts = []
    for position, token_id in enumerate(token_ids):
        entry = out.add(SampledToken(session="s", attempt=1, position=position, token_id=token_id))
        texts.append(entry.text)
        if out.finish_reason:
            break
    return texts


def test_end_of_sequence_stops_and_has_no_text() -> None:
    ids = TOKENIZER.encode("A dog").ids
    out = output()
    texts = run(out, [*ids, EOS, 5, 6])
    assert out.finish_reason == "stop"
    assert out.text == "".join(texts) == "A dog"
    assert out.token_ids == [*ids, EOS]


def test_the_limit_stops_with_everything_shown() -> None:
    ids = TOKENIZER.encode("A dog sto").ids
    out = output(max_tokens=len(ids), stop=("stop",))
    texts = run(out, ids)
    assert out.finish_reason == "length"
    assert out.text == "".join(texts) == "A dog sto"


def test_a_stop_string_across_tokens_is_cut_off() -> None:
    ids = TOKENIZER.encode("A dog and a cat").ids
    out = output(stop=("g an",))
    texts = run(out, ids)
    assert out.finish_reason == "stop"
    assert out.text == "".join(texts) == "A do"
    assert len(out.token_ids) < len(ids)


@pytest.mark.parametrize("text", ["A dog and a cat", "grün ist es", "a ## b"])
def test_a_resumed_output_goes_on_where_it_was(text: str) -> None:
    ids = [*TOKENIZER.encode(text).ids, EOS]
    whole = output(stop=("##!",))
    texts = run(whole, ids)
    for cut in range(len(ids) + 1):
        resumed = output(stop=("##!",))
        resumed.replay(ids[:cut])
        assert run(resumed, ids[cut:]) == texts[cut:]
        assert resumed.text == whole.text
        assert resumed.finish_reason == whole.finish_reason


def test_replay_stops_where_the_session_did() -> None:
    out = output(max_tokens=3)
    out.replay([40, 41, 42, 43])
    assert out.finish_reason == "length"
    assert out.token_ids == [40, 41, 42]


def test_what_is_held_back_is_shown_when_cut_short() -> None:
    out = output(stop=("stop",))
    run(out, TOKENIZER.encode("a st").ids)
    assert out.text == "a "
    assert out.cut_short() == "a st"

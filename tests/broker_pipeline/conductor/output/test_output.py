import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from broker_pipeline.conductor.output.detokenizer import Detokenizer, Vocabulary
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError
from broker_pipeline.messages.jobs import Choice
from broker_pipeline.messages.sampling import RepetitionDetection, SampledToken
from export.synthetic.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
EOS = TOKENIZER.token_to_id("<|im_end|>")


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


def output(**rule: Any) -> Output:
    return Output(VOCABULARY, StopRule(**({"max_tokens": 100, "end_token_ids": frozenset({EOS})} | rule)))


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


def test_a_stop_token_ends_the_output_and_is_not_in_its_text() -> None:
    ids = TOKENIZER.encode("A dog!").ids
    out = output(end_token_ids=frozenset({ids[-1]}), stop=("dog!",))
    run(out, ids)
    assert (out.finish_reason, out.text) == ("stop", "A dog")


def test_what_was_asked_for_and_ended_it_is_told() -> None:
    dog, end = TOKENIZER.encode("A dog!").ids, frozenset({EOS})
    for rule, token_ids, told in (
        ({"stop": ("cat", "dog!", "g!")}, dog, "dog!"),
        ({"stop": ("dog",)}, [*TOKENIZER.encode("A do").ids, EOS], None),
        ({"end_token_ids": end}, [*dog, EOS], None),
        ({"end_token_ids": end | {dog[-1]}, "asked_token_ids": frozenset({dog[-1]})}, dog, dog[-1]),
        ({"max_tokens": len(dog)}, dog, None),
    ):
        out = output(**rule)
        run(out, token_ids)
        assert out.finish_reason is not None
        assert out.end().stop_reason == told


def test_an_output_that_is_too_short_goes_on_after_a_stop_string() -> None:
    ids = [*TOKENIZER.encode("A dog").ids, *TOKENIZER.encode("!").ids, EOS, 5]
    num_until = len(ids) - 2
    out = output(min_tokens=num_until, stop=("dog",))
    assert "".join(run(out, ids)) == "A dog!"
    assert (out.finish_reason, out.token_ids) == ("stop", ids[:-1])
    short = output(min_tokens=num_until, max_tokens=num_until)
    run(short, ids)
    assert (short.finish_reason, short.token_ids) == ("length", ids[:num_until])


def test_a_repeating_output_ends_with_everything_shown() -> None:
    ids = TOKENIZER.encode("A dog. ").ids * 9
    out = output(repetition=RepetitionDetection(max_pattern_size=len(ids) // 9, min_count=4), stop=("g. !",))
    texts = run(out, ids)
    assert out.finish_reason == "repetition"
    assert out.text == "".join(texts) == "A dog. " * 4


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


@pytest.mark.parametrize("text", ["A dog and a cat", "grün ist es", "a ## b", "aaaaaaaaaa"])
def test_a_resumed_output_goes_on_where_it_was(text: str) -> None:
    ids = [*TOKENIZER.encode(text).ids, EOS]
    rule = {"stop": ("##!", "##"), "min_tokens": 4, "repetition": RepetitionDetection(max_pattern_size=1, min_count=5)}
    whole = output(**rule)
    texts = run(whole, ids)
    ids = whole.token_ids
    for cut in range(len(ids) + 1):
        resumed = output(**rule)
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
    assert out.end() == Choice(text="a st", finish_reason="cancelled", num_output_tokens=len(out.token_ids))

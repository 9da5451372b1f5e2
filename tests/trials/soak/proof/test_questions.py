"""Questions and pictures from a seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from PIL import Image

from broker_pipeline.model_facts import GenerationDefaults
from trials.soak.proof.questions import NUM_PICTURES, make_questions, write_pictures


def test_the_same_seed_gives_the_same_questions_however_many_are_asked_for() -> None:
    assert make_questions(5, 40) == make_questions(5, 80)[:40]
    assert make_questions(5, 40) != make_questions(6, 40)


def test_questions_are_of_every_kind() -> None:
    questions = make_questions(0, 300)
    assert Counter(len(question.pictures) for question in questions).keys() == {0, 1, 2}
    assert {question.sampling.temperature == 0 for question in questions} == {True, False}
    assert {question.sampling.ignore_eos for question in questions} == {True, None}
    assert {question.sampling.no_repeat_ngram_size for question in questions} == {0, 3}
    assert len({question.sampling.seed for question in questions}) == 300


def test_nothing_of_the_sampling_is_left_to_a_models_defaults() -> None:
    for question in make_questions(0, 100):
        unset = {name for name, value in msgspec.structs.asdict(question.sampling).items() if value is None}
        assert not unset & set(GenerationDefaults.__struct_fields__)


def test_pictures_are_readable_different_and_the_same_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 3)
    write_pictures(tmp_path / "b", 3)
    contents = [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())]
    assert contents == [path.read_bytes() for path in sorted((tmp_path / "b").iterdir())]
    assert len(set(contents)) == NUM_PICTURES
    for path in (tmp_path / "a").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) >= 64
    named = {name for question in make_questions(3, 300) for name in question.pictures}
    assert named <= {path.name for path in (tmp_path / "a").iterdir()}

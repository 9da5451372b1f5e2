"""The oracle: independent of batch mates, and honest about answers that rounding decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.compute.options import ComputeOptions
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.proof.questions import make_questions, write_pictures
from trials.soak.proof.reference_program import ReferenceModel


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    write_pictures(directory, 2)
    return directory


def test_an_answer_depends_on_its_question_alone(pictures: Path) -> None:
    model, questions = ReferenceModel(tiny_artifact()), make_questions(2, 8)
    together = list(model.answers(questions, pictures))
    apart = [next(iter(model.answers([question], pictures))) for question in reversed(questions)]
    assert together == apart[::-1]
    assert len({answer.token_ids for answer in together}) == 8


def test_answers_obey_their_questions(pictures: Path) -> None:
    model, questions = ReferenceModel(tiny_artifact()), make_questions(2, 24)
    for question, answer in zip(questions, model.answers(questions, pictures), strict=True):
        assert answer.number == question.number
        assert len(answer.token_ids) <= (question.sampling.max_tokens or 0)
        assert (answer.num_visual_tokens > 0) == bool(question.pictures)
        if question.sampling.ignore_eos:
            assert answer.finish_reason == "length"


def test_unambiguous_answers_stand_against_small_errors_and_others_may_not(pictures: Path) -> None:
    questions = make_questions(2, 48)
    answers = list(ReferenceModel(tiny_artifact()).answers(questions, pictures))
    assert sum(answer.is_unambiguous for answer in answers) >= 36
    assert not all(answer.is_unambiguous for answer in answers)


def test_computed_batch_invariantly_every_answer_is_unambiguous(pictures: Path) -> None:
    questions, options = make_questions(2, 48), ComputeOptions(is_deterministic=True)
    exact = list(ReferenceModel(tiny_artifact(), options).answers(questions, pictures))
    assert all(answer.is_unambiguous for answer in exact)
    for ours, theirs in zip(ReferenceModel(tiny_artifact()).answers(questions, pictures), exact, strict=True):
        assert not ours.is_unambiguous or ours == theirs

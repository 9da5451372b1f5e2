"""Questions with answers that are known to be right: computed in a process of its own, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.processes import run_python
from trials.soak.proof.questions import ExpectedAnswer, Question, make_questions, write_pictures

_PROGRAM = "trials.soak.proof.reference_program"
_SPARE_SHARE = 0.3
_NUM_SPARES = 16


@dataclass(frozen=True, slots=True)
class Examination:
    """Questions and their right answers, one of each for every job."""

    questions: tuple[Question, ...]
    answers: dict[int, ExpectedAnswer]
    pictures: Path


async def set_examination(
    model: Path,
    directory: Path,
    *,
    seed: int,
    num_jobs: int,
    exact_on: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Draw `num_jobs` questions whose answers rounding cannot change, and answer them.

    All are such that are computed batch-invariantly on the device `exact_on`, by whatever answers them later as well.

    Raises `ServerStartError` when the answers could not be computed, or too few of them are unambiguous.
    """
    pictures = directory / "pictures"
    write_pictures(pictures, seed)
    num_spare = 0 if exact_on else int(num_jobs * _SPARE_SHARE) + _NUM_SPARES
    drawn = make_questions(seed, num_jobs + num_spare)
    say(f"computing the right answers of {len(drawn)} questions in one process")
    answers = await _compute(model, drawn, pictures, directory, exact_on, say)
    unambiguous = [(question, answer) for question, answer in zip(drawn, answers, strict=True) if answer.is_unambiguous]
    say(f"{len(unambiguous)} answers do not depend on rounding; taking {num_jobs}")
    if len(unambiguous) < num_jobs:
        raise ServerStartError(
            f"only {len(unambiguous)} of {len(drawn)} answers do not depend on rounding, and {num_jobs} are needed: "
            "this model is too coarse for a soak (try an export in float32)"
        )
    chosen = unambiguous[:num_jobs]
    return Examination(
        tuple(question for question, _ in chosen), {answer.number: answer for _, answer in chosen}, pictures
    )


async def _compute(
    model: Path,
    questions: list[Question],
    pictures: Path,
    directory: Path,
    exact_on: str | None,
    say: Callable[[str], None],
) -> list[ExpectedAnswer]:
    asked, answered = directory / "questions.json", directory / "answers.json"
    asked.write_bytes(msgspec.json.encode(questions))
    arguments = ["-m", _PROGRAM, *map(str, (model, asked, pictures, answered)), *([exact_on] if exact_on else [])]
    await run_python("reference", arguments, log_path=directory / "reference.log", tell=say)
    return msgspec.json.decode(answered.read_bytes(), type=list[ExpectedAnswer])

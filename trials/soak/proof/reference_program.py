"""The right answers to questions, computed in one process without broker, batch mates, chunks or faults.

    python -m trials.soak.proof.reference_program ARTIFACT QUESTIONS.json PICTURES/ ANSWERS.json [DEVICE]

`broker-pipeline soak` runs this as a process of its own and compares what came through the pipeline with it.

Where two tokens are so close that rounding chooses between them, both are right; such an answer proves nothing and is
marked as not unambiguous (see `tolerance`). With DEVICE it is computed there, batch-invariantly as by the workers that
it is held against: then every answer has one right spelling.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.model_facts import ModelFacts, read_model_facts
from broker_pipeline.scheduling.policies.sampling import resolve_sampling
from stages.artifact import Artifact
from stages.compute.decoder import Computed, Decoder
from stages.compute.generate import Request, WholeModel
from stages.compute.loading import load_stage, load_vision, stage_tensor_names, vision_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.sampling.sampler import SessionSampler
from stages.compute.visual_injection import VisualInjection
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.vision import TowerOutput, VisionTower
from trials.prompts import Prompts
from trials.soak.proof.questions import ExpectedAnswer, Question
from trials.soak.proof.tolerance import TOLERANCES, is_unambiguous

_NUM_TOGETHER = 32
_KV_TOKENS = 64 * 1024


class WatchedDecoder:
    """A decoder that remembers the logits of every token that was wanted, by session and the token's index."""

    def __init__(self, decoder: Decoder) -> None:
        """Remember what `decoder` computes."""
        self.seen: dict[tuple[str, int], Tensor] = {}
        self._decoder = decoder

    @property
    def device(self) -> torch.device:
        """See `Decoder`."""
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """See `Decoder`."""
        return self._decoder.dtype

    def step(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """See `Decoder`."""
        computed = self._decoder.step(batch, injection, wanted)
        if computed.logits is not None:
            names = [(each.session, each.start + each.count) for each in batch.segments if each.wants_token]
            self.seen |= zip(names, computed.logits, strict=True)
        return computed

    def forward(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        """See `Decoder`."""
        return self._decoder.forward(batch, injection)

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        return self._decoder.logits(hidden, rows)


class ReferenceModel:
    """The whole model in this process."""

    def __init__(self, directory: Path, options: ComputeOptions | None = None) -> None:
        """Load the artifact in `directory`; if `options` say deterministic, rounding changes no answer."""
        artifact = Artifact.open(directory)
        self._is_exact = options is not None and bool(options.is_deterministic)
        self._facts: ModelFacts = read_model_facts(directory)
        self._prompts = Prompts(artifact)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        num_layers = artifact.config.text.num_layers
        text = artifact.load(stage_tensor_names(artifact.config, 0, num_layers))
        whole = BlockRange(start=0, stop=num_layers)
        self._stage = load_stage(artifact.config, whole, text, kv_capacity_tokens=_KV_TOKENS, options=options)
        self._decoder = WatchedDecoder(self._stage.decoder)
        self._stage.decoder = self._decoder
        vision = artifact.load(vision_tensor_names(artifact.config))
        self._tower: VisionTower = load_vision(artifact.config, vision, options)
        self._seen: dict[Path, tuple[Patches, TowerOutput]] = {}

    def answers(self, questions: Sequence[Question], pictures: Path) -> Iterator[ExpectedAnswer]:
        """Answer all questions, some at a time."""
        for first in range(0, len(questions), _NUM_TOGETHER):
            some = questions[first : first + _NUM_TOGETHER]
            requests = [self._request(question, pictures) for question in some]
            self._decoder.seen.clear()
            sampled = WholeModel([self._stage]).generate(requests)
            for question, request, tokens in zip(some, requests, sampled, strict=True):
                yield self._answer(question, request, tokens)

    def _request(self, question: Question, pictures: Path) -> Request:
        seen = [self._look(pictures / name) for name in question.pictures]
        prompt = self._prompts.build(question.prompt, [patches for patches, _ in seen])
        rows = [rows for _, rows in seen]
        return Request(
            session=f"question-{question.number}",
            token_ids=prompt.token_ids,
            groups=prompt.groups,
            visuals=TowerOutput.joined(rows) if rows else None,
            sampling=resolve_sampling(question.sampling, self._facts.generation, "unused"),
            max_tokens=question.sampling.max_tokens or 1,
            eos_token_ids=() if question.sampling.ignore_eos else self._facts.eos_token_ids,
        )

    def _look(self, path: Path) -> tuple[Patches, TowerOutput]:
        if path not in self._seen:
            patches = self._prompts.patches(path)
            self._seen[path] = patches, self._tower.encode(patches.rows, [patches.grid])
        return self._seen[path]

    def _answer(self, question: Question, request: Request, tokens: Sequence[SampledToken]) -> ExpectedAnswer:
        ids = [token.token_id for token in tokens]
        return ExpectedAnswer(
            number=question.number,
            token_ids=tuple(ids),
            text=self._text(ids),
            finish_reason="stop" if ids[-1] in request.eos_token_ids else "length",
            num_prompt_tokens=len(request.token_ids),
            num_visual_tokens=sum(group.count for group in request.groups),
            is_unambiguous=all(self._is_certain(request, ids[:number], token) for number, token in enumerate(tokens)),
        )

    def _text(self, ids: Sequence[int]) -> str:
        """Return the answer without what was thought before it, which an output that begins so is until its end tag."""
        begin, end = (self._tokenizer.token_to_id(tag) for tag in ("<think>", "</think>"))
        if ids[0] != begin:
            return self._tokenizer.decode(ids, skip_special_tokens=True)
        answer = list(ids[ids.index(end) + 1 :]) if end in ids else []
        return self._tokenizer.decode(answer, skip_special_tokens=True).lstrip("\n")

    def _is_certain(self, request: Request, before: Sequence[int], token: SampledToken) -> bool:
        if self._is_exact:
            return True
        logits = self._decoder.seen[(request.session, token.position)]
        sampler = SessionSampler(request.sampling, (*request.token_ids, *before), len(request.token_ids))
        return is_unambiguous(logits, sampler, token.position, TOLERANCES[self._decoder.dtype])


def main(arguments: Sequence[str]) -> None:
    """Read questions, write answers; says how far it is, one line per step."""
    artifact, questions_path, pictures, answers_path = map(Path, arguments[:4])
    options = ComputeOptions(arguments[4], is_deterministic=True) if arguments[4:] else None
    torch.set_num_threads(1)
    questions = msgspec.json.decode(questions_path.read_bytes(), type=list[Question])
    answers = []
    for answer in ReferenceModel(artifact, options).answers(questions, pictures):
        answers.append(answer)
        if len(answers) % _NUM_TOGETHER == 0 or len(answers) == len(questions):
            sys.stdout.write(f"{len(answers)} of {len(questions)} answers\n")
            sys.stdout.flush()
    answers_path.write_bytes(msgspec.json.encode(answers))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Logit rows of sessions with a grammar, in a batch with others: what it rules out is masked, and nothing waits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch

from broker_pipeline.errors import GrammarError, NothingLeftError
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.structured_outputs import GrammarSettings
from stages.compute.grammar.session_grammar import SessionGrammar
from stages.compute.grammar.token_bits import num_bytes_of, ruled_out
from stages.compute.sampling.adjustments import MASKED
from stages.compute.sampling.logit_scan import scan_logits
from stages.compute.sampling.sampler import Choice, SessionSampler, launch_sampling
from tests.kit.device_waits import no_device_waits
from tests.kit.models import sampling_oracle as oracle
from tests.kit.models.grammar_kit import SCHEMAS, VOCAB_SIZE, grammar_settings, grammars, ids_of
from tests.kit.models.samplers import sample

NUM_PROMPT = 5
GRAMMARS = [
    None,
    grammar_settings(choice=["cat", "dog"]),
    *(grammar_settings(json=schema) for schema in SCHEMAS),
    grammar_settings(regex="(.|\n)*"),
]
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 3},
    {"temperature": 1.5, "logprobs": 20},
    {"temperature": 1.0, "top_k": 3, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.01, "presence_penalty": 1.0},
    {"logit_bias": {65: 50.0, 3: -100.0}, "repetition_penalty": 1.3},
    {"temperature": 1.0, "bad_word_ids": tuple((token_id,) for token_id in range(0, 200, 2))},
)


class Row:
    """One session of a batch, with what the oracle needs; each has its grammar before it a prompt and no output."""

    def __init__(self, chance: random.Random) -> None:
        self.grammar = chance.choice(GRAMMARS)
        self.settings = SamplingSettings(seed=chance.randrange(2**40), grammar=self.grammar, **chance.choice(KINDS))
        self.history = [chance.randrange(VOCAB_SIZE) for _ in range(NUM_PROMPT)]

    def sampler(self) -> SessionSampler:
        grammar = SessionGrammar(grammars(), self.grammar) if self.grammar else None
        return SessionSampler(self.settings, self.history, NUM_PROMPT, grammar)

    def scores(self, logits: torch.Tensor) -> list[float]:
        """Return the scores that the token is chosen from, one after the other."""
        if self.grammar is None:
            return oracle.adjusted(logits, self.settings, self.history, NUM_PROMPT)
        bits = SessionGrammar(grammars(), self.grammar).allowed()
        assert bits is not None
        allowed = ids_of(bits)
        left = allowed - set(oracle.masked(self.settings, self.history, NUM_PROMPT)) or allowed
        unmasked = msgspec.structs.replace(self.settings, bad_word_ids=())
        scores = oracle.adjusted(logits, unmasked, self.history, NUM_PROMPT)
        return [score if token_id in left else MASKED for token_id, score in enumerate(scores)]


def rows_of(seed: int, count: int) -> list[Row]:
    chance = random.Random(seed)
    return [Row(chance) for _ in range(count)]


def logits_of(count: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(count, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def sampled(logits: torch.Tensor, rows: Sequence[Row]) -> list[Any]:
    return sample(logits, [row.sampler() for row in rows], [NUM_PROMPT] * len(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_of_a_mixed_batch_is_what_the_plainest_code_chooses(dtype: torch.dtype) -> None:
    for seed in range(3):
        rows, logits = rows_of(seed, 30), logits_of(30, seed).to(dtype)
        for outcome, row_logits, row in zip(sampled(logits, rows), logits, rows, strict=True):
            scores = row.scores(row_logits)
            assert isinstance(outcome, Choice)
            assert outcome.token_id == oracle.choice(scores, row.settings, NUM_PROMPT)
            if row.settings.logprobs is not None:
                expected = oracle.logprobs(scores)
                assert outcome.logprob == pytest.approx(expected[outcome.token_id], abs=2e-6)
                assert [top.token_id for top in outcome.top] == oracle.ranked(scores)[: row.settings.logprobs]
                assert [top.logprob for top in outcome.top] == pytest.approx(
                    [expected[top.token_id] for top in outcome.top], abs=2e-6
                )


def test_a_row_gets_the_same_outcome_in_every_company() -> None:
    rows, logits = rows_of(7, 60), logits_of(60, 7)
    alone = [sampled(logits[place, None], [row])[0] for place, row in enumerate(rows)]
    chance = random.Random(8)
    for size in (2, 17, 60):
        picked = chance.sample(range(60), size)
        assert sampled(logits[picked], [rows[place] for place in picked]) == [alone[place] for place in picked]


@pytest.mark.parametrize("vocab_size", [1, 8, 63, 64, 65, 378, 1000])
def test_bits_are_unpacked_as_they_were_packed(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    bits = torch.randint(256, (3, num_bytes_of(vocab_size)), generator=generator, dtype=torch.uint8)
    found = ruled_out(bits, vocab_size)
    assert found.shape == (3, vocab_size)
    for row, out in zip(bits, found, strict=True):
        assert ids_of(row.numpy()) & set(range(vocab_size)) == set((~out).nonzero().flatten().tolist())


def test_every_pattern_of_bits_travels() -> None:
    """Bits go to the device as numbers in fp64, and many patterns are no number."""
    everything = grammar_settings(regex="(.|\n)*")
    settings = SamplingSettings(grammar=everything)
    bits = SessionGrammar(grammars(), everything).allowed()
    assert bits is not None
    assert math.isnan(bits.view("float64")[0])
    allowed = ids_of(bits)
    for token_id in range(VOCAB_SIZE):
        logits = torch.zeros(1, VOCAB_SIZE)
        logits[0, token_id] = 1.0
        sampler = SessionSampler(settings, [0] * NUM_PROMPT, NUM_PROMPT, SessionGrammar(grammars(), everything))
        [outcome] = sample(logits, [sampler], [NUM_PROMPT])
        assert isinstance(outcome, Choice)
        assert (outcome.token_id == token_id) == (token_id in allowed)


def test_a_grammar_that_fails_fails_its_row_alone() -> None:
    rows, logits = rows_of(3, 12), logits_of(12, 3)
    expected = sampled(logits, rows)
    broken = GrammarSettings(source="no grammar")
    sampler = SessionSampler(
        SamplingSettings(grammar=broken), [0] * NUM_PROMPT, NUM_PROMPT, SessionGrammar(grammars(), broken)
    )
    found = sample(torch.cat((logits, logits[:1])), [*[row.sampler() for row in rows], sampler], [NUM_PROMPT] * 13)
    failed = found.pop()
    assert isinstance(failed, GrammarError)
    assert not isinstance(failed, NothingLeftError)
    assert not failed.retryable
    assert found == expected


def test_a_launch_reads_nothing_back() -> None:
    """Tensors on the meta device hold no numbers: whatever had to look at one would fail."""
    rows, logits = rows_of(1, 40), torch.empty(40, VOCAB_SIZE, device="meta")
    pending = launch_sampling(logits, [row.sampler() for row in rows], [NUM_PROMPT] * 40, scan_logits(logits))
    assert pending.results.packed.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_chooses_what_the_cpu_chooses_and_never_waits(dtype: torch.dtype) -> None:
    rows, logits = rows_of(11, 60), logits_of(60, 11).to(dtype)
    expected, on_gpu = sampled(logits, rows), logits.cuda()
    sampled(on_gpu, rows)  # loads kernels
    samplers = [row.sampler() for row in rows]
    torch.cuda.synchronize()
    with no_device_waits():
        pending = launch_sampling(on_gpu, samplers, [NUM_PROMPT] * 60, scan_logits(on_gpu))
    torch.cuda.synchronize()
    found = pending.collect()
    assert [choice.token_id for choice in found] == [choice.token_id for choice in expected]
    assert [choice.logprob for choice in found] == pytest.approx([choice.logprob for choice in expected], abs=2e-6)

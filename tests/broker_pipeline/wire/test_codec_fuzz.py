"""Damaged messages: some thousand cases of `python -m tests.kit.fuzz_codec`, which has more."""

from __future__ import annotations

from collections import Counter

from tests.kit.fuzz_codec import DAMAGES, fuzz

NUM_CASES = 20_000


def test_every_damage_is_a_typed_error_or_a_message() -> None:
    outcome = fuzz(NUM_CASES, seed=0)
    assert outcome.broken == ()
    assert outcome.counts.total() == NUM_CASES
    kinds = Counter(key.partition(": ")[2] for key in outcome.counts)
    assert {"decoded", "MalformedEnvelopeError", "TensorMismatchError", "ContractVersionError"} <= set(kinds)
    assert {name for name, _ in DAMAGES} == {key.partition(": ")[0] for key in outcome.counts}


def test_the_same_seed_gives_the_same_cases() -> None:
    assert fuzz(200, seed=3).counts == fuzz(200, seed=3).counts

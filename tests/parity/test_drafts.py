"""With drafts and without: the same tokens, in fewer steps."""

from __future__ import annotations

import pytest

from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from stages.compute.generate import WholeModel
from stages.compute.options import ComputeOptions
from tests.kit.models.scheduled_model import FEW, ScheduledModel, repetitive
from tests.kit.models.tiny_stages import build_stages
from tests.kit.models.transformers_oracle import FP32, Variant, config_of, request_of, scene, stages_of, tensors_of

DENSE, MOE = FP32[0], FP32[3]
CUTS = [(), (2, 4)]
SAMPLINGS = {
    "greedy": SamplingSettings(),
    "sampled": SamplingSettings(temperature=1.0, seed=11, logit_bias=FEW),
    "with log-probabilities": SamplingSettings(temperature=0.7, seed=5, logit_bias=FEW, logprobs=2, top_k=3),
    "long enough": SamplingSettings(min_tokens=8, end_token_ids=(3, 4, 5)),
}


def ids(said: list) -> list[list[int]]:
    return [[token.token_id for token in tokens] for tokens in said]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("cuts", CUTS, ids=["one stage", "three stages"])
@pytest.mark.parametrize("variant", [DENSE, MOE], ids=str)
def test_drafts_change_no_token(variant: Variant, cuts: tuple[int, ...], sampling: SamplingSettings) -> None:
    requests = [repetitive(session, sampling) for session in "ab"]
    expected = WholeModel(stages_of(variant, cuts)).generate(requests)
    model = ScheduledModel(stages_of(variant, cuts), DraftLimits(5, max_sessions=2))
    said = model.generate(requests)
    assert ids(said) == ids(expected)
    assert [[token.position for token in tokens] for tokens in said] == [
        [token.position for token in tokens] for tokens in expected
    ]
    for token, other in zip(said[0], expected[0], strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert model.num_accepted > 0
    assert model.num_steps < sum(map(len, said))


@pytest.mark.parametrize("cuts", CUTS, ids=["one stage", "three stages"])
@pytest.mark.parametrize("variant", [DENSE, MOE], ids=str)
def test_drafts_behind_pictures_have_the_right_positions(variant: Variant, cuts: tuple[int, ...]) -> None:
    request = request_of(variant, scene(variant, "image and odd video"), num_tokens=48)
    expected = WholeModel(stages_of(variant, cuts)).generate([request])
    model = ScheduledModel(stages_of(variant, cuts), DraftLimits(6))
    assert ids(model.generate([request])) == ids(expected)
    assert model.num_accepted > 0


@pytest.mark.parametrize("variant", [DENSE, MOE], ids=str)
def test_deterministic_stages_give_the_bits(variant: Variant) -> None:
    """Log-probabilities too: a draft is computed as the step that it stands for."""
    options = ComputeOptions(is_deterministic=True)
    with_drafts, without = (build_stages(config_of(variant), tensors_of(variant), options=options) for _ in range(2))
    request = repetitive("a", SAMPLINGS["with log-probabilities"])
    model = ScheduledModel(with_drafts, DraftLimits(5))
    assert model.generate([request]) == WholeModel(without).generate([request])
    assert model.num_accepted > 0


def test_a_session_that_needs_all_tokens_before_has_no_drafts() -> None:
    request = repetitive("a", SamplingSettings(presence_penalty=0.1, logit_bias=FEW))
    model = ScheduledModel(stages_of(DENSE), DraftLimits(5))
    assert ids(model.generate([request])) == ids(WholeModel(stages_of(DENSE)).generate([request]))
    assert model.scheduler.batches.drafting.num_drafted == 0

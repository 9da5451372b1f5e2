from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.planning.devices import Device, gpu, whole_processor
from broker_pipeline.planning.measured import LayerTimes, measured_device
from broker_pipeline.planning.step_time import layer_s, tower_s
from broker_pipeline.planning.workload import Workload
from tests.kit.models.planned_sizes import sizes_of

H100 = gpu("NVIDIA H100 80GB HBM3", 80 * 10**9)
CPU = whole_processor(2, 8 * 10**9)
WORK = Workload(num_prompt_tokens=259, num_output_tokens=0, experts_share=1.0)


def times_on(device: Device, shape: str, num_sessions: int, num_tokens: int) -> LayerTimes:
    model = sizes_of(shape)
    return LayerTimes(
        num_sessions=num_sessions,
        context=259,
        decode_s=layer_s(model, device, WORK, num_sessions, num_sessions),
        num_prompt_tokens=num_tokens,
        prefill_s=layer_s(model, device, WORK, num_tokens, 0),
        num_visual_tokens=196,
        tower_s=tower_s(model, device, 196),
    )


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(["8B", "30B-A3B"]),
    base=st.sampled_from([H100, CPU]),
    memory=st.floats(0.3, 3),
    arithmetic=st.floats(0.3, 3),
    tower=st.floats(0.2, 0.9),
)
def test_rates_are_found_again_from_the_times_that_they_make(
    shape: str, base: Device, memory: float, arithmetic: float, tower: float
) -> None:
    rates = {"bytes_per_s": memory * base.bytes_per_s, "flops_per_s": arithmetic * base.flops_per_s}
    true = replace(base, tower_share=tower, **rates)
    found = measured_device(base, sizes_of(shape), times_on(true, shape, 8, 2400))
    assert found.bytes_per_s == pytest.approx(true.bytes_per_s, rel=0.05)
    assert found.flops_per_s == pytest.approx(true.flops_per_s, rel=0.05)
    assert found.tower_share == pytest.approx(tower, rel=0.05)
    assert not found.is_estimated


def test_times_that_no_rates_explain_are_met_as_nearly_as_can_be() -> None:
    times = replace(times_on(H100, "8B", 8, 2400), decode_s=1e-9)
    assert measured_device(H100, sizes_of("8B"), times).layer_s <= 1e-9

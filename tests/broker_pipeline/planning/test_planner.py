import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import Device, gpu
from broker_pipeline.planning.forecast import forecast
from broker_pipeline.planning.layout import Chain, Layout, LayoutRequest, chain_of, parse_layout
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import choose_plan, plan_of
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.workload import Workload
from tests.kit.models.planned_sizes import sizes_of

H100 = gpu("NVIDIA H100 80GB HBM3", 85 * 10**9)
H200 = gpu("NVIDIA H200", 150 * 10**9)
L40S = gpu("NVIDIA L40S", 48 * 10**9)
AUTO = LayoutRequest()


def sizes(num_layers: int, layer_mb: int, embed_mb: int, tower_mb: int) -> ModelSizes:
    return ModelSizes(
        name="m",
        num_layers=num_layers,
        hidden_size=1024,
        dtype_bytes=2,
        layer_weights=layer_mb * 500_000,
        embed_weights=embed_mb * 500_000,
        kv_values=2048,
        kv_bytes=4096,
        tower_weights=tower_mb * 500_000,
        tower_token_multiplications=tower_mb * 2_000_000,
        num_levels=3,
    )


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        yield from ((first, *rest) for rest in compositions(total - first, parts - 1))


def all_layouts(num_layers: int, num_devices: int) -> Iterator[Layout]:
    for copies in range(1, num_devices + 1):
        for stages in range(1, min(num_layers, num_devices // copies) + 1):
            cuts: list[Chain] = [chain_of(counts) for counts in compositions(num_layers, stages)]
            for chains in product(cuts, repeat=copies):
                yield Layout(chains=chains, vision="shared")
                yield Layout(chains=chains, vision="every")
                for own in range(1, num_devices - copies * stages + 1):
                    yield Layout(chains=chains, vision="separate", num_vision_workers=own)


SITES = [(H100,), (H100, H100, H100), (L40S, L40S, L40S), (H100, L40S), (H200, H100, L40S)]


@settings(max_examples=60, deadline=None)
@given(
    model=st.builds(
        sizes,
        num_layers=st.integers(1, 6),
        layer_mb=st.sampled_from([100, 1000, 5000, 8000, 15_000]),
        embed_mb=st.sampled_from([10, 600, 6000]),
        tower_mb=st.sampled_from([10, 600, 6000]),
    ),
    devices=st.sampled_from(SITES),
    num_output_tokens=st.sampled_from([4, 64, 256]),
    edge=st.sampled_from(["shm", "nats"]),
)
def test_a_plan_is_within_2_percent_of_the_best_of_all_layouts(
    model: ModelSizes, devices: tuple[Device, ...], num_output_tokens: int, edge: str
) -> None:
    site, work = Site(devices=devices, num_cores=64, edge=edge), Workload(num_output_tokens=num_output_tokens)
    rates = [forecast(model, site, work, each).captions_per_s for each in all_layouts(model.num_layers, len(devices))]
    if not any(rates):
        with pytest.raises(ConfigurationError, match="does not fit"):
            choose_plan(model, site, work, AUTO)
        return
    found = choose_plan(model, site, work, AUTO)
    assert found.forecast.captions_per_s == forecast(model, site, work, found.layout).captions_per_s
    assert found.forecast.captions_per_s >= 0.98 * max(rates), found.layout


@pytest.mark.parametrize(
    ("shape", "device", "num_devices", "copies", "stages"),
    [
        ("8B", H100, 1, 1, 1),
        ("8B", H100, 4, 4, 1),
        ("235B-A22B", H200, 4, 1, 4),
        ("235B-A22B", H200, 8, 2, 4),
        ("235B-A22B", H100, 8, 1, 8),
    ],
)
def test_copies_where_the_model_fits_stages_where_it_does_not_both_together(
    shape: str, device: Device, num_devices: int, copies: int, stages: int
) -> None:
    began = time.process_time()
    found = choose_plan(
        sizes_of(shape), Site(devices=(device,) * num_devices, num_cores=64, edge="shm"), Workload(), AUTO
    )
    assert time.process_time() - began < 1
    assert [len(chain) for chain in found.layout.chains] == [stages] * copies


def test_stages_are_cut_so_that_head_and_tower_count() -> None:
    site = Site(devices=(H100,) * 4, num_cores=64, edge="shm")
    [chain] = choose_plan(
        sizes_of("8B"), site, Workload(), LayoutRequest(num_copies=1, num_stages=4, vision="shared")
    ).layout.chains
    assert len(chain[0]) < 6, "the tower takes as long as several layers"
    assert max(map(len, chain[1:])) - min(map(len, chain[1:])) <= 2, "the head as one or two"
    every = choose_plan(sizes_of("8B"), site, Workload(), LayoutRequest(num_copies=1, num_stages=4, vision="every"))
    assert [len(blocks) for blocks in every.layout.chains[0]] == [9, 9, 9, 9]


def test_more_sessions_never_lower_a_prediction() -> None:
    layout = Layout(chains=(chain_of([9, 9, 9, 9]),), vision="every")
    site = Site(devices=(H100,) * 4, num_cores=64, edge="shm")
    rates = [
        forecast(sizes_of("8B"), site, Workload(num_sessions=number), layout).captions_per_s
        for number in (64, 256, 512, 1024, 2048)
    ]
    assert rates == sorted(rates)


def test_processes_around_it_grow_with_the_rate() -> None:
    one, four = (
        choose_plan(sizes_of("8B"), Site(devices=(H200,) * count, num_cores=64, edge="shm"), Workload(), AUTO)
        for count in (1, 4)
    )
    assert (one.num_conductors, one.num_gateways) == (1, 1)
    assert (four.num_conductors, four.num_gateways) == (2, 3)
    assert four.layout.shares(four.num_conductors) == ("0", "0", "1", "1")
    assert four.layout.shares(3) == ("0", "0", "1", "2")
    assert four.layout.shares(9) == ("0", "1", "2", "3")
    assert four.layout.shares(1) == ("",) * 4


def test_a_copy_is_one_conductors() -> None:
    layout = Layout(chains=(chain_of([18, 18]),), vision="every")
    found = forecast(sizes_of("8B"), Site(devices=(H200,) * 2, num_cores=64, edge="shm"), Workload(), layout)
    assert plan_of(layout, replace(found, captions_per_s=1e4)).num_conductors == 1


def test_what_does_not_fit_is_refused_with_what_is_missing_and_what_would_do() -> None:
    with pytest.raises(
        ConfigurationError, match=r"copies=4,stages=1 does not fit.*GB are missing.*fits in 7 stages"
    ) as caught:
        choose_plan(
            sizes_of("235B-A22B"), Site(devices=(H100,) * 4, num_cores=64), Workload(), parse_layout("copies=4")
        )
    assert caught.value.field == "layout"


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="36 layers and cannot be cut into 37 stages"):
        choose_plan(sizes_of("8B"), Site(devices=(H100,), num_cores=64), Workload(), parse_layout("stages=37"))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.messages.vision import RowTarget
from broker_pipeline.messages.workers import BlockRange, WorkerRecord
from broker_pipeline.scheduling.routes import (
    PipelineIdentity,
    Route,
    StageInfo,
    choose_routes,
    missing_blocks,
    refusal_of,
)

IDENTITY = PipelineIdentity("main", "f" * 64, "bfloat16", 36)


def stage(name: str, start: int, stop: int, kv: int = 100, batch: int = 64) -> StageInfo:
    return StageInfo(f"{name}-1", name, f"bp.main.worker.{name}.1", BlockRange(start=start, stop=stop), kv, batch)


def record(**changes: object) -> WorkerRecord:
    fields: dict[str, object] = {
        "worker": "a", "instance": "i1", "role": "stage", "pipeline": "main", "subject": "bp.main.worker.a.i1",
        "fingerprint": "f" * 64, "dtype": "bfloat16", "blocks": BlockRange(start=0, stop=12), "num_layers": 36,
        "kv_capacity_tokens": 1000, "max_batch_tokens": 512,
    }  # fmt: skip
    return WorkerRecord(**(fields | changes))  # type: ignore[arg-type]


def names(routes: tuple[Route, ...]) -> set[str]:
    return {str(route) for route in routes}


def test_one_chain() -> None:
    routes = choose_routes([stage("b", 2, 5), stage("c", 5, 6), stage("a", 0, 2)], 6)
    assert names(routes) == {"a > b > c"}


@pytest.mark.parametrize(
    ("ranges", "gaps"),
    [
        ([(0, 2), (3, 6)], [(2, 3)]),
        ([(0, 2), (2, 5)], [(5, 6)]),
        ([(2, 6)], [(0, 2)]),
        ([], [(0, 6)]),
        ([(1, 2), (4, 5)], [(0, 1), (2, 4), (5, 6)]),
    ],
)
def test_no_route_over_a_gap(ranges: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    workers = [stage(f"w{index}", *blocks) for index, blocks in enumerate(ranges)]
    assert choose_routes(workers, 6) == ()
    assert [(gap.start, gap.stop) for gap in missing_blocks(workers, 6)] == gaps


def test_overlapping_ranges_make_no_route() -> None:
    workers = [stage("a", 0, 4), stage("b", 3, 6)]
    assert choose_routes(workers, 6) == ()
    assert missing_blocks(workers, 6) == ()


def test_replicas_are_paired_off_rather_than_multiplied() -> None:
    workers = [stage(name, start, stop) for start, stop in [(0, 3), (3, 6)] for name in (f"a{start}", f"b{start}")]
    assert names(choose_routes(workers, 6)) == {"a0 > a3", "b0 > b3"}


def test_a_worker_without_replica_serves_on_every_route() -> None:
    workers = [stage("a", 0, 3), stage("b", 0, 3), stage("c", 3, 6)]
    assert names(choose_routes(workers, 6)) == {"a > c", "b > c"}


def test_cuts_of_different_depth_serve_side_by_side() -> None:
    workers = [stage("whole", 0, 6), stage("a", 0, 3), stage("b", 3, 6)]
    assert names(choose_routes(workers, 6)) == {"whole", "a > b"}


def test_routes_stay_while_their_workers_do() -> None:
    a, b, c, d = stage("a", 0, 3), stage("b", 0, 3), stage("c", 3, 6), stage("d", 3, 6)
    crossed = (Route((a, d)), Route((b, c)))
    assert set(choose_routes([a, b, c, d], 6, crossed)) == set(crossed)
    assert names(choose_routes([b, c, d], 6, crossed)) == {"b > c", "b > d"}


def test_a_route_that_a_replacement_makes_redundant_goes() -> None:
    a, b, c, d = stage("a", 0, 3), stage("b", 0, 3), stage("c", 3, 6), stage("d", 3, 6)
    without_a = choose_routes([b, c, d], 6, (Route((a, c)), Route((b, d))))
    assert names(without_a) == {"b > d", "b > c"}
    assert names(choose_routes([a, b, c, d], 6, without_a)) == {"b > d", "a > c"}


def test_a_hundred_replicas_of_ten_ranges_are_a_hundred_routes() -> None:
    workers = [stage(f"w{start}-{index}", start, start + 1) for start in range(10) for index in range(100)]
    assert len(choose_routes(workers, 10)) == 100


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda r: r[0] < r[1]), max_size=12))
def test_routes_cover_all_layers_and_use_all_workers_that_can_be_used(ranges: list[tuple[int, int]]) -> None:
    workers = [stage(f"w{index}", *blocks) for index, blocks in enumerate(ranges)]
    routes = choose_routes(workers, 8)
    assert len(routes) <= len(workers)
    for route in routes:
        edges = [edge for worker in route.workers for edge in (worker.blocks.start, worker.blocks.stop)]
        assert edges[0] == 0
        assert edges[-1] == 8
        assert edges[1:-1:2] == edges[2:-1:2]
    used = {worker.key for route in routes for worker in route.workers}
    assert used == _on_a_chain(workers)


def _on_a_chain(workers: list[StageInfo]) -> set[str]:
    """All workers of all chains, by walking every one of them."""
    found: set[str] = set()

    def walk(chain: list[StageInfo], at: int) -> None:
        if at == 8:
            found.update(worker.key for worker in chain)
        for worker in workers:
            if worker.blocks.start == at:
                walk([*chain, worker], worker.blocks.stop)

    walk([], 0)
    return found


def test_route_offers_what_its_smallest_stage_does() -> None:
    route = Route((stage("a", 0, 3, kv=100, batch=64), stage("b", 3, 6, kv=70, batch=128)))
    assert route.kv_capacity_tokens == 70
    assert route.max_batch_tokens == 64
    assert route.work_subjects == ("bp.main.worker.a.1.work", "bp.main.worker.b.1.work")


def test_row_targets_are_the_first_stage_and_the_owners_of_the_first_layers() -> None:
    route = Route((stage("a", 0, 1), stage("b", 1, 3), stage("c", 3, 6)))
    assert route.row_targets(3) == (
        RowTarget(subject="bp.main.worker.a.1.rows", embeds=True, levels=(0,)),
        RowTarget(subject="bp.main.worker.b.1.rows", embeds=False, levels=(1, 2)),
    )


def test_a_fitting_record_is_accepted() -> None:
    assert refusal_of(record(), IDENTITY) is None
    assert refusal_of(record(role="vision", blocks=None, num_layers=0), IDENTITY) is None
    worker = StageInfo.from_record(record())
    assert (worker.key, worker.name, worker.kv_capacity_tokens) == ("i1", "a", 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": "other"}, "serves pipeline other"),
        ({"fingerprint": "0" * 64}, "its artifact is 000000000000, the pipeline's ffffffffffff; export once"),
        ({"fingerprint": ""}, "its artifact is (none)"),
        ({"contract": 4}, "version 4 of the contract"),
        ({"dtype": "float32"}, "computes in float32, the pipeline in bfloat16"),
        ({"blocks": None}, "announces no blocks"),
        ({"blocks": BlockRange(start=12, stop=40)}, "blocks 12 to 40; the model has blocks 0 to 36"),
        ({"blocks": BlockRange(start=4, stop=4)}, "blocks 4 to 4"),
        ({"num_layers": 28}, "believes in 28 layers"),
        ({"kv_capacity_tokens": 0}, "no room"),
        ({"max_batch_tokens": 0}, "no room"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_with_the_reason(changes: dict[str, object], words: str) -> None:
    reason = refusal_of(record(**changes), IDENTITY)
    assert reason is not None
    assert words in reason

from msgspec.structs import replace

from broker_pipeline.messages.merged_status import merged
from broker_pipeline.messages.status import HedgeCounts, KeptCounts, SessionLimits, VisionStatus
from broker_pipeline.messages.workers import BlockRange, TransportCounts
from tests.broker_pipeline.tools.operate.test_status_view import conductor


def vision(name: str, num_preparing: int) -> VisionStatus:
    return VisionStatus(
        worker=name, instance=name, state="ready", num_preparing=num_preparing, num_overtaken=1, busy=0.5
    )


def limits(max_tokens_in_all: int) -> SessionLimits:
    return SessionLimits(
        max_tokens_in_all=max_tokens_in_all,
        max_position_embeddings=9000,
        default_max_tokens=1,
        default_max_tokens_reasoning=1,
    )


def test_one_alone_stays_as_it_is() -> None:
    assert merged([]) is None
    assert merged([conductor()]) == conductor()


def test_totals_are_of_all_shares_and_each_is_named() -> None:
    a = conductor(share="a", vision=(vision("v", 3), vision("w", 1)), limits=limits(500))
    b = conductor(
        share="b", instance="c2", epoch=9, vision=(vision("v", 4),), limits=limits(400), num_finished={"failed": 1}
    )
    a, b = (replace(each, hedges=HedgeCounts(num_requests=100, num_hedges=3, num_won=1)) for each in (a, b))
    kept = KeptCounts(num_prefixes=2, num_tokens=64, num_hits=5, num_hit_tokens=160, num_evictions=1)
    a = replace(a, kept=kept)
    both = merged([a, b])
    assert both is not None
    assert both.kept == kept
    assert both.hedges == HedgeCounts(num_requests=200, num_hedges=6, num_won=2)
    assert (both.tokens_per_s, both.captions_per_s, both.num_replays) == (2 * 12.34, 1.0, 2)
    assert both.num_sessions == {"running": 6, "waiting": 0}
    assert both.num_finished == {"succeeded": 9, "failed": 1}
    assert both.num_jobs_waiting == 5, "they have one queue"
    assert both.routes == (*a.routes, *b.routes)
    assert [(each.instance, each.num_preparing) for each in both.vision] == [("v", 7), ("w", 1)]
    assert [each.num_overtaken for each in both.vision] == [2, 1]
    assert both.limits == limits(400), "any share may get the next job"
    assert [(each.share, each.instance, each.epoch, each.num_running) for each in both.shares] == [
        ("a", "c1", 7, 3),
        ("b", "c2", 9, 3),
    ]


def test_jobs_are_taken_while_one_share_takes_them_and_there_is_a_model_while_one_has_it() -> None:
    gap = (BlockRange(start=2, stop=6),)
    waits = conductor(share="a", waits_for="no route", routes=(), missing_blocks=gap)
    both = merged([waits, conductor(share="b")])
    assert both is not None
    assert (both.waits_for, both.missing_blocks) == (None, ())
    neither = merged([waits, replace(waits, share="b")])
    assert neither is not None
    assert (neither.waits_for, neither.missing_blocks) == ("no route", gap)


def test_messages_of_each_process_count_once() -> None:
    of = {"conductor": TransportCounts(num_reconnects=1), "stage-0": TransportCounts()}
    both = merged([conductor(share=share, instance=by, transport=of) for share, by in ("ax", "bx", "cy")])
    assert both is not None
    assert sorted(both.transport) == ["conductor-x", "conductor-y", "stage-0"]

"""The flat cache: lengths, errors, and contents that survive packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import KVCapacityError, KVPositionError, SessionUnknownError
from stages.cached_heads import put_heads
from stages.compute.kv.cache import KVCache


def cache(capacity: int = 16, layers: int = 2, *, in_fp8: bool = False) -> KVCache:
    device = torch.device("cpu")
    return KVCache(layers, capacity, kv_heads=2, head_dim=4, dtype=torch.float32, device=device, in_fp8=in_fp8)


def write(kv: KVCache, session: str, start: int, values: list[float], num_drafts: int = 0) -> None:
    first = kv.region(session).start + start
    slots = torch.arange(first, first + len(values))
    heads = torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 2, 4)
    for layer in range(2):
        put_heads(kv.keys(layer), slots, heads + layer)
        put_heads(kv.values(layer), slots, -heads - layer)
    kv.advance(session, start, len(values), num_drafts)


def read(kv: KVCache, session: str) -> list[float]:
    slots = slice(kv.region(session).start, kv.region(session).start + kv.length(session))
    for layer in range(2):
        assert torch.equal(kv.keys(layer)[slots], -kv.values(layer)[slots])
    assert torch.equal(kv.keys(1)[slots], kv.keys(0)[slots] + 1)
    return kv.keys(0)[slots][:, 0, 0].tolist()


def test_a_session_fills_its_region_in_order():
    kv = cache()
    kv.reserve("a", 5)
    write(kv, "a", 0, [1, 2, 3])
    write(kv, "a", 3, [4])
    assert kv.length("a") == 4
    assert read(kv, "a") == [1, 2, 3, 4]
    assert (kv.reserved_tokens, kv.capacity_tokens, kv.num_sessions) == (5, 16, 1)


def test_a_gap_a_repeat_and_an_overflow_are_refused():
    kv = cache()
    kv.reserve("a", 4)
    write(kv, "a", 0, [1, 2])
    with pytest.raises(KVPositionError, match="2 tokens cached; got a segment from 3"):
        kv.require("a", 3, 1)
    with pytest.raises(KVPositionError):
        kv.advance("a", 0, 2)
    with pytest.raises(KVCapacityError, match="reserved 4 KV tokens; 5 are needed"):
        kv.require("a", 2, 3)
    with pytest.raises(SessionUnknownError):
        kv.length("b")


def test_drafts_may_be_taken_back_until_the_next_step():
    kv = cache()
    kv.reserve("a", 8)
    write(kv, "a", 0, [1, 2])
    write(kv, "a", 2, [3, 8, 9], num_drafts=2)
    assert (kv.length("a"), kv.settled_length("a")) == (5, 3)
    for start in (2, 6):
        with pytest.raises(KVPositionError):
            kv.require("a", start, 1)
    write(kv, "a", 4, [5])
    assert read(kv, "a") == [1, 2, 3, 8, 5]
    with pytest.raises(KVPositionError):
        kv.require("a", 4, 1)


def test_a_region_that_moves_takes_its_drafts_along():
    kv = cache(12)
    kv.reserve("a", 3)
    kv.reserve("b", 3)
    write(kv, "b", 0, [1, 2, 3], num_drafts=2)
    kv.release("a")
    kv.grow("b", 9)
    write(kv, "b", 3, [4])
    assert read(kv, "b") == [1, 2, 3, 4]


def test_a_session_that_is_opened_anew_knows_no_drafts():
    kv = cache()
    kv.reserve("a", 4)
    write(kv, "a", 0, [1, 2, 3], num_drafts=2)
    kv.release("a")
    kv.reserve("a", 4)
    write(kv, "a", 0, [1, 2])
    assert kv.settled_length("a") == 2


@pytest.mark.parametrize("in_fp8", [False, True])
def test_packing_keeps_contents(in_fp8: bool):
    kv = cache(12, in_fp8=in_fp8)
    for session in "abcd":
        kv.reserve(session, 3)
    write(kv, "b", 0, [1, 2])
    write(kv, "d", 0, [7, 8, 9])
    kv.release("a")
    kv.release("c")
    kv.reserve("e", 6)
    assert [kv.region(session).start for session in "bde"] == [0, 3, 6]
    write(kv, "e", 0, [5] * 6)
    assert {session: read(kv, session) for session in "bde"} == {"b": [1, 2], "d": [7, 8, 9], "e": [5] * 6}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_room_is_refused_only_when_the_total_is_short(data):
    kv, held = cache(24), {}
    for step in range(25):
        action = data.draw(st.sampled_from(["reserve", "grow", "shrink", "write", "release"]))
        if action == "reserve":
            size = data.draw(st.integers(1, 12))
            if size <= kv.capacity_tokens - kv.reserved_tokens:
                kv.reserve(str(step), size)
                held[str(step)] = []
            else:
                with pytest.raises(KVCapacityError):
                    kv.reserve(str(step), size)
        elif held:
            session = data.draw(st.sampled_from(sorted(held)))
            if action == "grow":
                size = kv.region(session).size + data.draw(st.integers(0, 12))
                if size - kv.region(session).size <= kv.capacity_tokens - kv.reserved_tokens:
                    kv.grow(session, size)
                    assert kv.region(session).size == size
                else:
                    with pytest.raises(KVCapacityError):
                        kv.grow(session, size)
            elif action == "shrink" and held[session]:
                held[session] = held[session][: data.draw(st.integers(1, len(held[session])))]
                kv.shrink(session, len(held[session]))
                assert kv.region(session).size == kv.length(session)
            elif action == "release":
                kv.release(session)
                del held[session]
            elif kv.length(session) < kv.region(session).size:
                write(kv, session, kv.length(session), [float(step)])
                held[session].append(float(step))
        assert {session: read(kv, session) for session in held} == held

"""The flat cache: lengths, errors, and contents that survive packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import KVCapacityError, KVPositionError, SessionUnknownError
from stages.compute.kv.cache import KVCache


def cache(capacity: int = 16, layers: int = 2) -> KVCache:
    return KVCache(layers, capacity, kv_heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def write(kv: KVCache, session: str, start: int, values: list[float]) -> None:
    region = kv.region(session)
    for layer in range(2):
        for i, value in enumerate(values):
            kv.keys(layer)[region.start + start + i] = value + layer
            kv.values(layer)[region.start + start + i] = -value - layer
    kv.advance(session, start, len(values))


def read(kv: KVCache, session: str) -> list[float]:
    rows = slice(kv.region(session).start, kv.region(session).start + kv.length(session))
    for layer in range(2):
        assert torch.equal(kv.keys(layer)[rows], -kv.values(layer)[rows])
    assert torch.equal(kv.keys(1)[rows], kv.keys(0)[rows] + 1)
    return kv.keys(0)[rows, 0, 0].tolist()


def test_a_session_fills_its_region_in_order():
    kv = cache()
    kv.reserve("a", 5)
    write(kv, "a", 0, [1, 2, 3])
    write(kv, "a", 3, [4])
    assert kv.length("a") == 4
    assert read(kv, "a") == [1, 2, 3, 4]
    assert (kv.reserved_tokens, kv.free_tokens, kv.num_sessions) == (5, 11, 1)


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


def test_packing_keeps_contents():
    kv = cache(12)
    for session, size in (("a", 4), ("b", 4), ("c", 4)):
        kv.reserve(session, size)
    write(kv, "a", 0, [1, 2])
    write(kv, "c", 0, [7, 8, 9])
    kv.release("b")
    kv.grow("a", 8)
    assert read(kv, "a") == [1, 2]
    kv.release("a")
    kv.reserve("d", 8)
    write(kv, "d", 0, [5] * 8)
    assert read(kv, "c") == [7, 8, 9]
    assert read(kv, "d") == [5] * 8


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_room_is_refused_only_when_the_total_is_short(data):
    kv, held = cache(24), {}
    for step in range(25):
        action = data.draw(st.sampled_from(["reserve", "grow", "write", "release"]))
        if action == "reserve":
            size = data.draw(st.integers(1, 12))
            if size <= kv.free_tokens:
                kv.reserve(str(step), size)
                held[str(step)] = []
            else:
                with pytest.raises(KVCapacityError):
                    kv.reserve(str(step), size)
        elif held:
            session = data.draw(st.sampled_from(sorted(held)))
            if action == "release":
                kv.release(session)
                del held[session]
            elif action == "grow":
                kv.grow(session, kv.region(session).size + data.draw(st.integers(0, kv.free_tokens)))
            elif kv.length(session) < kv.region(session).size:
                write(kv, session, kv.length(session), [float(step)])
                held[session].append(float(step))
        assert {session: read(kv, session) for session in held} == held

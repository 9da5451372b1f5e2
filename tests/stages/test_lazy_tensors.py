"""Tensors read a little ahead of who asks for them, each once, and no further than there is room."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch import Tensor

from stages.lazy_tensors import LazyTensors
from tests.kit.waiting import wait_until

NAMES = tuple(f"t{number:02}" for number in range(20))


class Source:
    """Gives tensors by name, and tells which were asked for."""

    def __init__(self) -> None:
        self.num_reads: Counter[str] = Counter()
        self.is_open = threading.Event()
        self.is_open.set()

    def read(self, name: str) -> Tensor:
        self.num_reads[name] += 1
        assert self.is_open.wait(10)
        if name == "broken":
            raise ValueError(name)
        return torch.tensor([int(name[1:])])


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], (*NAMES[5:], *NAMES[:5])], ids=["ahead", "back", "ends last"])
def test_each_is_read_once_in_any_order(order: tuple[str, ...]) -> None:
    source = Source()
    with LazyTensors(dict.fromkeys(NAMES, 8), source.read) as tensors:
        assert [int(tensors[name]) for name in order] == [int(name[1:]) for name in order]
        assert tensors.num_bytes == 8 * len(NAMES)
    assert source.num_reads == Counter(NAMES)


def test_nothing_is_read_before_the_first_is_asked_for_and_then_what_follows_it() -> None:
    source = Source()
    with LazyTensors(dict.fromkeys(NAMES, 8), source.read) as tensors:
        assert not source.num_reads
        assert tensors[NAMES[3]]
        wait_until(lambda: source.num_reads[NAMES[4]] == 1)
        assert not {*NAMES[:3]} & source.num_reads.keys()


def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    source = Source()
    with LazyTensors(dict.fromkeys(NAMES, 3 * 2**30), source.read) as tensors:
        assert int(tensors[NAMES[0]]) == 0
        wait_until(lambda: source.num_reads[NAMES[1]] == 1)
        assert source.num_reads.keys() == {*NAMES[:2]}
        assert int(tensors[NAMES[1]]) == 1


def test_an_error_is_raised_to_who_asks_for_that_tensor() -> None:
    source = Source()
    with LazyTensors(dict.fromkeys(("t00", "broken", "t02"), 8), source.read) as tensors:
        assert int(tensors["t00"]) == 0
        assert int(tensors["t02"]) == 2
        with pytest.raises(ValueError, match="broken"):
            tensors["broken"]


def test_unknown_names_are_no_keys() -> None:
    with LazyTensors({"t00": 8}, Source().read) as tensors:
        assert list(tensors) == ["t00"]
        assert "t01" not in tensors
        with pytest.raises(KeyError):
            tensors["t01"]


def test_the_end_of_the_context_waits_for_threads_and_begins_nothing_more() -> None:
    source = Source()
    tensors = LazyTensors(dict.fromkeys(NAMES, 8), source.read)
    with tensors:
        assert int(tensors[NAMES[0]]) == 0
    num_reads = sum(source.num_reads.values())
    assert all(not thread.name.startswith("weights") for thread in threading.enumerate())
    assert sum(source.num_reads.values()) == num_reads

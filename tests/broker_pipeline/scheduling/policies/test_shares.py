from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.scheduling.policies.shares import Part, Shares, part_of
from tests.broker_pipeline.scheduling.test_routes import record

NAMES = st.sets(st.sampled_from("abcdefgh"), min_size=1)


class Leases:
    """What Redis would hold, and conductors that look at it one after the other."""

    def __init__(self, shares: set[str], members: set[str], holders: dict[str, str]) -> None:
        self.shares, self.members, self.holders = shares, members, holders

    def look(self, me: str) -> bool:
        """Do what a conductor does at one look; say whether that changed anything."""
        part, before = part_of(me, self.members, self.shares, self.holders), dict(self.holders)
        for share in [share for share, holder in self.holders.items() if holder == me and share not in part.keeps]:
            del self.holders[share]
        for share in part.free[: part.num_more]:
            self.holders[share] = me
        return self.holders != before

    def settle(self, order: list[str]) -> None:
        for _ in range(2 * len(self.shares) + 2):
            if not sum(self.look(me) for me in order):
                return
        raise AssertionError("they pass shares to and fro")


@given(NAMES, NAMES, st.data())
def test_everybody_gets_as_many_and_nothing_moves_any_more(
    shares: set[str], members: set[str], data: st.DataObject
) -> None:
    holders = data.draw(st.dictionaries(st.sampled_from(sorted(shares)), st.sampled_from(sorted(members))))
    leases = Leases(shares, members, holders)
    leases.settle(data.draw(st.permutations(sorted(members))))
    counts = Counter(leases.holders.values())
    assert set(leases.holders) == shares
    assert max(counts[each] for each in members) - min(counts[each] for each in members) <= 1


@given(NAMES, NAMES, st.data())
def test_of_one_more_or_one_fewer_no_more_moves_than_has_to(
    shares: set[str], members: set[str], data: st.DataObject
) -> None:
    leases = Leases(shares, members, {})
    leases.settle(sorted(members))
    before = dict(leases.holders)
    if len(members) > 1 and data.draw(st.booleans()):
        gone = data.draw(st.sampled_from(sorted(members)))
        leases.members = members - {gone}
        leases.holders = {share: holder for share, holder in before.items() if holder != gone}
    else:
        leases.members = members | {"new"}
    leases.settle(sorted(leases.members))
    moved = [share for share in shares if leases.holders[share] != before[share]]
    assert len(moved) <= -(-len(shares) // min(len(members), len(leases.members)))


def test_what_one_holds_who_has_died_is_waited_for() -> None:
    assert part_of("b", {"b"}, {"x", "y"}, {"x": "dead"}) == Part(frozenset(), ("y",), 2)


def test_shares_are_those_of_stages_and_without_any_the_one_without_a_name() -> None:
    stages = [record(instance=share, share=share) for share in ("x", "", "x")]
    assert Shares().see(stages, 0.0) == {"x", ""}
    assert Shares().see([], 0.0) == {""}
    assert Shares().see([record(role="vision", blocks=None)], 0.0) == {""}


def test_a_share_lasts_while_its_stages_may_be_writing_records_again_that_redis_lost() -> None:
    both = [record(instance=share, share=share) for share in ("x", "y")]
    shares = Shares()
    assert shares.see(both, 10.0) == {"x", "y"}
    assert shares.see(both[:1], 60.0) == {"x", "y"}  # Redis was away, and it is missed from now on
    assert shares.see(both[:1], 61.0) == {"x", "y"}
    assert shares.see(both[:1], 61.9) == {"x", "y"}
    assert shares.see(both[:1], 63.0) == {"x", "y"}, "Redis was away again"
    assert shares.see(both[:1], 64.0) == {"x", "y"}
    assert shares.see(both[:1], 64.9) == {"x", "y"}
    assert shares.see(both[:1], 65.1) == {"x"}
    for passed_s in (1.0, 1.9, 2.8):
        assert shares.see([], 65.1 + passed_s) == {"x"}
    assert shares.see([], 68.2) == {""}

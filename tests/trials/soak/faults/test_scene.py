"""Who can stand in for whom, and what stands in front of a service's command so that it can be ill."""

from __future__ import annotations

from pathlib import Path

from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.soak.faults import clocks
from trials.soak.faults.scene import others, places_for
from trials.soak.system import soak_system


def test_spares_stand_in_for_those_of_the_same_layers_and_share(tmp_path: Path) -> None:
    one = soak_system(tiny_artifact(), tmp_path, num_stages=2, num_spares=1)
    assert [set(others(one, f"stage-{index}")) for index in range(3)] == [set(), {"stage-2"}, {"stage-1"}]
    assert others(one, "vision-1") == {"vision-0"}
    assert others(one, "nats") == set()
    shares = soak_system(tiny_artifact(), tmp_path, num_stages=2, num_spares=2, has_shares=True)
    assert others(shares, "stage-0") == set()


def test_a_command_has_in_front_what_its_faults_need(tmp_path: Path) -> None:
    names = ("nats", "gateway-0", "stage-0")
    assert {place.prefix for place in places_for(names, ("kill", "stop"), None, tmp_path).values()} == {()}
    places = places_for(names, ("sick", "clock"), None, tmp_path)
    assert places["nats"].prefix == ()
    assert places["gateway-0"].prefix[0] == "env"
    assert places["stage-0"].prefix[-3:-1] == ("-m", "trials.soak.faults.sick_worker")
    assert {path.name for path in tmp_path.iterdir()} == {"gateway-0.clock", "stage-0.clock"}
    clocks.set_clock(tmp_path / "stage-0.clock", -60)
    assert (tmp_path / "stage-0.clock").read_text() == "-60\n"

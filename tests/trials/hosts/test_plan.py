"""`plan` from the command line: host files as people write them, right and wrong."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from broker_pipeline.cli import describe
from broker_pipeline.errors import ConfigurationError, PipelineError
from broker_pipeline.exit_codes import USAGE, exit_code_of
from broker_pipeline.tools.machine import MachineFacts
from trials.hosts.described import read_hosts
from trials.hosts.hosts_file import line_of
from trials.hosts.plan_command import command
from trials.hosts.probe_file import HostProbe, ProbedDevice, ProbedLink, ProbedStep, write_probe

TWO = """\
[network]
mbit_s = 1000

[[hosts]]
name = "front"
address = "10.0.0.1"
roles = ["broker", "gateway"]

[[hosts]]
name = "gpu-1"
address = "10.0.0.2"
cores = 16
devices = [{ name = "NVIDIA L40S", memory_gb = 48 }]

[[hosts]]
name = "gpu-2"
address = "10.0.0.3"
devices = [
  { name = "NVIDIA GeForce RTX 4090", memory_gb = 24 },
  { name = "NVIDIA GeForce RTX 4090", memory_gb = 24 },
]

[[links]]
between = ["gpu-1", "gpu-2"]
mbit_s = 10000
latency_ms = 0.2
"""
MACHINE = MachineFacts(
    cpu="one",
    num_cores=2,
    gpus=(),
    python="3.11",
    torch=None,
    platform="Linux",
    load_average=0.0,
    date="2026-11-27",
)


def probe_of(host: str, *links: ProbedLink) -> HostProbe:
    device = ProbedDevice(
        device="cuda:0",
        name="NVIDIA L40S",
        total_bytes=48 * 10**9,
        free_bytes=40 * 10**9,
        decode=(ProbedStep(num_sessions=64, num_tokens=64, layer_s=0.001),),
        prefill=(ProbedStep(num_sessions=8, num_tokens=2072, layer_s=0.008),),
        picture_s=0.01,
        num_visual_tokens=196,
    )
    return HostProbe(
        host=host,
        shape="8B",
        num_layers=2,
        context=259,
        memory_total_bytes=10**10,
        memory_free_bytes=10**10,
        machine=MACHINE,
        devices=(device,),
        links=links,
    )


def link_to(peer: str, mbit_s: float) -> ProbedLink:
    rate = mbit_s * 1e6 / 8
    return ProbedLink(
        peer=peer, nats_trip_s=0.003, nats_bytes_per_s=rate / 2, edge_trip_s=0.0022, edge_bytes_per_s=rate
    )


def plan(text: str, directory: Path, *options: str, model: str = "32B") -> Result:
    path = directory / "hosts.toml"
    path.write_text(text)
    return CliRunner().invoke(command, ["--hosts", str(path), "--model", model, *options])


def refusal(text: str, directory: Path, model: str = "32B") -> str:
    """Return what somebody reads who gives this file; nothing is written."""
    failed = plan(text, directory, "--env", str(directory / "env"), model=model).exception
    assert isinstance(failed, PipelineError), failed
    assert exit_code_of(failed) == USAGE
    assert not (directory / "env").exists()
    said = describe(failed)
    assert "\n" not in said
    return said


def test_a_plan_says_what_goes_where_and_what_links_need(tmp_path: Path) -> None:
    done = plan(TWO, tmp_path, "--target", "1")
    assert done.exit_code == 0, done.output
    assert "gpu-1" in done.output
    assert "blocks 0:" in done.output
    assert "gpu-1 to gpu-2" in done.output
    assert "the target of 1 captions/s is met" in done.output
    assert "9,400" in done.output


def test_a_target_that_is_not_met_says_what_would_do(tmp_path: Path) -> None:
    done = plan(TWO, tmp_path, "--target", "60")
    assert done.exit_code == 1
    assert "the target of 60 captions/s is not met" in done.output
    assert "more hosts like gpu-" in done.output


def test_env_files_say_what_each_host_runs(tmp_path: Path) -> None:
    done = plan(TWO, tmp_path, "--env", str(tmp_path / "env"))
    assert done.exit_code == 0, done.output
    files = {str(path.relative_to(tmp_path / "env")): path.read_text() for path in (tmp_path / "env").rglob("*.env")}
    assert set(files) == {
        "front/broker.env",
        "front/gateway.env",
        "gpu-1/stage-0.env",
        "gpu-2/stage-1.env",
        "gpu-2/stage-2.env",
    }
    stages = [dict(line.split("=") for line in files[name].splitlines()) for name in sorted(files)[2:]]
    bounds = [tuple(map(int, stage["BLOCKS"].split(":"))) for stage in stages]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 64
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert [(stage["WORKER"], stage["GPU"], stage["BROKER_HOST"]) for stage in stages] == [
        ("stage-0", "0", "10.0.0.1"),
        ("stage-1", "0", "10.0.0.1"),
        ("stage-2", "1", "10.0.0.1"),
    ]
    says = [
        "secrets add-host secrets gpu-1 --role stage",
        f"fetch --blocks {stages[0]['BLOCKS']}",
        "fetch --role conductor",
    ]
    assert all(f"  broker-pipeline {command}" in done.output for command in says), done.output
    starts = re.findall(r"^  (.*)\$ docker compose -f compose/(.*).yaml --env-file (.*) up", done.output, re.MULTILINE)
    assert starts[0] == ("front", "broker", "/srv/broker-pipeline/broker.env")
    assert starts[-1] == ("gpu-2", "stage", "/srv/broker-pipeline/stage-2.env")
    assert len(starts) == len(files)


def test_keys_and_values_in_fp8_make_room_and_stages_are_told(tmp_path: Path) -> None:
    rates = []
    for kv_dtype in ("auto", "fp8"):
        done = plan(TWO, tmp_path, "--kv-dtype", kv_dtype, "--env", str(tmp_path / kv_dtype))
        assert done.exit_code == 0, done.output
        rates.append(float(re.findall(r"predicted ([\d.]+) captions/s", done.output)[0]))
        files = {path.name: path.read_text() for path in (tmp_path / kv_dtype).rglob("*.env")}
        told = {name for name, text in files.items() if "BROKER_PIPELINE_KV_DTYPE=fp8" in text}
        assert told == ({name for name in files if name.startswith("stage")} if kv_dtype == "fp8" else set())
    assert rates[1] > 1.2 * rates[0]


def test_env_files_do_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine").write_text("kept")
    failed = plan(TWO, tmp_path, "--env", str(tmp_path / "env")).exception
    assert isinstance(failed, ConfigurationError)
    assert "not empty" in failed.message
    assert [path.name for path in (tmp_path / "env").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("cores = 16", "coers = 16", "line 12: unknown key coers; did you mean cores?"),
        ("memory_gb = 48", "memry_gb = 48", "line 13: unknown key memry_gb; did you mean memory_gb?"),
        ('"NVIDIA GeForce RTX 4090", memory_gb = 24 },\n]', '"x", memory = 24 },\n]', "line 20: unknown key memory;"),
        ("[network]", "[netwrk]", "line 1: unknown key netwrk; did you mean network?"),
        ("cores = 16", "cores = 0", "line 12: hosts[1].cores: expected `int` >= 1"),
        ("cores = 16", 'cores = "many"', "line 12: hosts[1].cores: expected `int`, got `str`"),
        ('name = "gpu-1"', 'name = "GPU_1"', "line 10: hosts[1].name: "),
        ('address = "10.0.0.2"\n', "", "line 9: hosts[1].address: object missing required field"),
        ("mbit_s = 1000\n", "mbit_s = \n", "(at line 2, column 10)"),
        ('"10.0.0.2"', '"10.0.0.3"', "2 hosts have the address 10.0.0.3"),
        ('"10.0.0.2"', '"10.0.0.200:7400"', "line 9: hosts[1]: address '10.0.0.200:7400' is neither a host's name nor"),
        ('"10.0.0.2"', '"10.0.0"', "line 9: hosts[1]: address '10.0.0' is neither a host's name nor an IP address"),
        ('"gpu-1"\nadd', '"gpu-2"\nadd', "2 hosts have the name gpu-2"),
        ('devices = [{ name = "NVIDIA L40S", memory_gb = 48 }]', "", "host gpu-1 has no device and no role: give it"),
        ("NVIDIA L40S", "NVIDIA L4OS", "host gpu-1 has a device called 'NVIDIA L4OS', whose rates are not known"),
        ("cores = 16", 'roles = ["broker"]', "front and gpu-1 both have the role broker"),
        ("cores = 16", 'probe = "gpu-1.json"', "host gpu-1 has both a probe and devices"),
        ('["gpu-1", "gpu-2"]', '["gpu-1", "gpu-3"]', "a link names gpu-3, and hosts are front, gpu-1, gpu-2"),
        ('["gpu-1", "gpu-2"]', '["gpu-1", "gpu-1"]', "a link joins gpu-1 with itself"),
        ("cores = 16", "port_mbit_s = 1000", "gpu-1 and gpu-2 has 10000 Mbit/s, the port of gpu-1 only 1000"),
        (
            "latency_ms = 0.2\n",
            'latency_ms = 0.2\n[[links]]\nbetween = ["gpu-2", "gpu-1"]\nmbit_s = 100\n',
            "two [[links]] say different things of gpu-2 and gpu-1",
        ),
        (
            "memory_gb = 48",
            "memory_gb = 48, picture_ms = 3",
            "times take all of `shape`, `decode_layer_ms` and `prefill_layer_ms`",
        ),
    ],
)
def test_what_is_wrong_in_a_host_file_is_said_in_one_sentence(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    assert TWO.count(before) >= 1
    assert said in refusal(TWO.replace(before, after, 1), tmp_path)


def test_what_cannot_fit_is_refused_with_what_would_do(tmp_path: Path) -> None:
    said = refusal(TWO, tmp_path, model="235B-A22B")
    assert "GB are missing; 10 more like the NVIDIA L40S with 48.0 GB of gpu-1 would do" in said


def test_no_host_has_a_device(tmp_path: Path) -> None:
    assert "no host has a device" in refusal(TWO[: TWO.index('[[hosts]]\nname = "gpu-1"')], tmp_path)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    assert "'9B' is no directory and none of 2B, 4B" in refusal(TWO, tmp_path, model="9B")


def with_probes(directory: Path, *probes: HostProbe) -> Path:
    entries = ""
    for number, probe in enumerate(probes):
        write_probe(directory / f"{probe.host}.json", probe)
        entries += f'[[hosts]]\nname = "{probe.host}"\naddress = "10.0.0.{number}"\nprobe = "{probe.host}.json"\n'
    path = directory / "hosts.toml"
    path.write_text(entries)
    return path


def test_probes_give_devices_and_links(tmp_path: Path) -> None:
    path = with_probes(tmp_path, probe_of("a", link_to("b", 900)), probe_of("b", link_to("a", 800), link_to("z", 1)))
    fleet = read_hosts(path).fleet
    assert [device.memory_bytes for devices in fleet.devices for device in devices] == [40 * 10**9] * 2
    assert not any(device.is_estimated for devices in fleet.devices for device in devices)
    link = fleet.network.link(0, 1)
    assert link.bytes_per_s == 100e6, "the slower of both"
    assert link.latency_s == pytest.approx(0.001)
    assert fleet.network.num_cores == (2, 2)


def test_probes_of_one_link_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = with_probes(tmp_path, probe_of("a", link_to("b", 900)), probe_of("b", link_to("a", 100)))
    with pytest.raises(ConfigurationError, match=r"probes of a and b contradict each other: 100 and 900 Mbit/s"):
        read_hosts(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        (b"{", "is no file of probe"),
        (b'{"host": "a"}', "is no file of this version's probe: shape"),
        (msgspec.json.encode(probe_of("other")), "was measured on a host called other, not on a"),
    ],
)
def test_a_probe_that_is_none_is_named(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = with_probes(tmp_path, probe_of("a"))
    if content is None:
        (tmp_path / "a.json").unlink()
    else:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_hosts(path)
    assert "a.json" in refused.value.message


def test_lines_are_those_of_the_table_that_is_meant() -> None:
    assert [line_of(TWO, f"hosts[{index}].name") for index in range(3)] == [5, 10, 16]
    assert line_of(TWO, "links[0].mbit_s") == 25
    assert line_of(TWO, "network.mbit_s") == 2

"""The files in compose/: what Docker Compose takes, nothing open, nothing with rights that it does not need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from broker_pipeline.cli import known_variables
from tests.kit.documents import ROOT
from tests.kit.hosts.compose_file import COMPOSE, ROLES, VariableMissingError, load_project, read_env_file, variables_of

SCHEMA = json.loads((ROOT / "tests/fixtures/compose-spec.json").read_text())
EXAMPLE = COMPOSE / ".env.example"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FILES = sorted(COMPOSE.rglob("*.yaml"))
NAMES = ["broker", "gateway", "single-host", "stage", "vision"]
PINNED = re.compile(r"[\w./-]+:[\w.-]*\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")
SERVICES = [
    pytest.param(service, id=f"{path.stem}-{name}")
    for path in ROLES
    for name, service in load_project(path, read_env_file(EXAMPLE)).services.items()
]


def sections() -> dict[str, dict[str, bool]]:
    """The variables that the example has for each file, and whether it says that they are needed."""
    found: dict[str, dict[str, bool]] = {name: {} for name in NAMES}
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", EXAMPLE.read_text(), re.MULTILINE | re.DOTALL):
        for comment, variables in re.findall(r"((?:^#.*\n)+)((?:^\w+=.*\n)+)", text, re.MULTILINE):
            for name in re.findall(r"^(\w+)=", variables, re.MULTILINE):
                for file in re.findall(r"([\w-]+)\.yaml", heading):
                    found[file][name] = comment.startswith("# Needed")
    return found


def test_there_is_a_file_for_each_role_with_a_project_of_its_own() -> None:
    assert [path.stem for path in ROLES] == NAMES
    env = read_env_file(EXAMPLE)
    projects = [load_project(path, env | {"WORKER": f"{path.stem}-7"}).name for path in ROLES]
    assert len(set(projects)) == len(NAMES)
    assert load_project(COMPOSE / "stage.yaml", env | {"WORKER": "stage-1"}).name == "broker-pipeline-stage-1"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_what_the_specification_allows(path: Path) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", ROLES, ids=lambda path: path.stem)
def test_the_example_explains_what_a_file_reads_and_nothing_else(path: Path) -> None:
    assert variables_of(path) == sections()[path.stem]


@pytest.mark.parametrize("path", ROLES, ids=lambda path: path.stem)
def test_nothing_starts_without_what_is_needed(path: Path) -> None:
    env = read_env_file(EXAMPLE)
    load_project(path, env)
    needed = [name for name, is_needed in variables_of(path).items() if is_needed]
    assert {"SECRETS", "SERVER_SECRETS"} & set(needed)
    for name in needed:
        with pytest.raises(VariableMissingError, match=f"set {name} to"):
            load_project(path, env | {name: ""})


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_may_do_nothing_that_it_does_not_need(service: dict[str, Any]) -> None:
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "userns_mode"} & service.keys()
    writable = [volume for volume in service["volumes"] if not volume.get("read_only")]
    assert {volume["target"] for volume in writable} <= {"/data", "/home/broker/.cache"}
    assert all(
        volume.get("bind") == {"create_host_path": False} for volume in service["volumes"] if volume["type"] == "bind"
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_limits_and_says_whether_it_is_well(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+g", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["ulimits"]["core"] == 0
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"


def test_one_host_has_what_the_files_of_roles_have_and_stops_what_drains_before_what_it_needs() -> None:
    env = read_env_file(EXAMPLE)
    together = load_project(COMPOSE / "single-host.yaml", env).services
    order = {name: service.pop("depends_on", []) for name, service in together.items()}
    assert order == {
        "nats": [],
        "redis": [],
        "stage": ["nats", "redis"],
        "conductor": ["stage"],
        "gateway": ["conductor"],
    }
    alone = [load_project(COMPOSE / f"{role}.yaml", env) for role in ("broker", "gateway", "stage")]
    assert together == {name: service for project in alone for name, service in project.services.items()}
    assert load_project(COMPOSE / "single-host.yaml", env).volumes == {
        name: volume for project in alone for name, volume in project.volumes.items()
    }


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_pinned_by_digest_or_built_from_this_release(service: dict[str, Any]) -> None:
    if "build" in service:
        assert service["image"] == f"broker-pipeline:{VERSION}-{service['build']['target']}"
    else:
        assert PINNED.fullmatch(service["image"])


def test_the_dockerfile_builds_from_a_pinned_image_what_runs_without_root() -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    default = re.search(r"^ARG PYTHON_IMAGE=(.*)$", text, re.MULTILINE)
    assert default is not None
    assert PINNED.fullmatch(default[1])
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert {origin for origin, _ in stages} <= {"${PYTHON_IMAGE}", *(name for _, name in stages)}
    for last in re.split(r"^FROM ", text, flags=re.MULTILINE)[3:]:
        users = re.findall(r"^USER (\S+)$", last, re.MULTILINE)
        assert not users or users[-1] == "broker"
    assert set(re.findall(rf"broker-pipeline:{re.escape(VERSION)}-(\w+)", text)) == {"slim", "worker"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_published_port_wants_credentials(service: dict[str, Any]) -> None:
    """The server's configuration is that of the secrets, or the service has a host's secrets, which bring keys."""
    if not service.get("ports") and service.get("network_mode") != "host":
        return
    secrets = {volume["source"]: volume["target"] for volume in service["volumes"] if volume.get("read_only")}
    env = read_env_file(EXAMPLE)
    if "build" in service:
        assert secrets[env["SECRETS"]] == service["environment"]["BROKER_PIPELINE_SECRETS"]
        assert "BROKER_PIPELINE_INSECURE" not in service["environment"]
    else:
        folder = secrets[env["SERVER_SECRETS"]]
        assert any(word.startswith(f"{folder}/") and word.endswith(".conf") for word in service["command"])


def test_redis_forgets_nothing_and_knows_how_much_it_may_hold() -> None:
    command = load_project(COMPOSE / "broker.yaml", read_env_file(EXAMPLE)).services["redis"]["command"]
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    assert flags["--appendonly"] == "yes"
    assert flags["--appendfsync"] == "always"
    assert flags["--maxmemory"] == "2gb"
    assert flags["--maxmemory-policy"] == "noeviction"


def test_services_are_told_what_their_commands_read() -> None:
    known = known_variables()
    for path in ROLES:
        for service in load_project(
            path, read_env_file(EXAMPLE) | dict.fromkeys(variables_of(path), "1")
        ).services.values():
            for name in service.get("environment", {}):
                assert not name.startswith("BROKER_PIPELINE_") or name in known, name


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker compose is not installed",
)
@pytest.mark.parametrize("path", ROLES, ids=lambda path: path.stem)
def test_docker_compose_reads_the_same(path: Path) -> None:
    command = ["docker", "compose", "-f", str(path), "--env-file", str(EXAMPLE), "config", "--format", "json"]
    mine = {name: value for name, value in os.environ.items() if name not in variables_of(path)}
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True, env=mine).stdout)
    ours = load_project(path, read_env_file(EXAMPLE))
    assert theirs["name"] == ours.name
    assert theirs["services"].keys() == ours.services.keys()
    for name, service in ours.services.items():
        for key in ("user", "read_only", "cap_drop", "security_opt", "command", "image", "network_mode", "runtime"):
            assert theirs["services"][name].get(key) == service.get(key), f"{name}: {key}"
        passed_on = theirs["services"][name].get("environment", {})
        assert {key: value for key, value in passed_on.items() if value} == service.get("environment", {})
        assert theirs["services"][name]["healthcheck"]["test"] == service["healthcheck"]["test"]

"""`broker-pipeline secrets`: what it makes, what it leaves alone, and what it says."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker_pipeline.errors import SecretsError
from broker_pipeline.security.credentials import Credentials, gateway_key_file, own_worker_name
from broker_pipeline.security.secrets_directory import DirectoryFacts, SecretsDirectory, local_secrets
from broker_pipeline.tools.operate.secrets_command import command

TLS_FILES = ("ca.crt", "tls.crt", "tls.key")


@pytest.fixture
def made(tmp_path: Path) -> SecretsDirectory:
    directory = SecretsDirectory.create(tmp_path / "secrets", DirectoryFacts("bp"))
    directory.add_host("hub", ("gateway", "conductor"))
    directory.add_host("gpu-1", ("stage", "vision"))
    return directory


def _texts(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_everything_is_for_its_owner_alone_and_nothing_partial_stays(made: SecretsDirectory) -> None:
    for path in (made.path, *made.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert not path.name.endswith(".partial")
    assert set(_texts(made.host_folder("gpu-1"))) == {
        *("host.json", "stage.nk", "stage.redis", "vision.nk", "vision.redis", *TLS_FILES),
    }


def test_the_servers_files_hold_no_secret(made: SecretsDirectory) -> None:
    secrets = [
        text.strip()
        for name, text in _texts(made.path).items()
        if Path(name).suffix in {".nk", ".redis", ".key"} and name != "servers/tls.key"
    ]
    assert len(secrets) == 2 * 4 + 2 + 3
    servers = "".join(_texts(made.path / "servers").values())
    assert not [secret for secret in secrets if secret in servers]


def test_doing_it_again_changes_nothing(made: SecretsDirectory) -> None:
    before = _texts(made.path)
    SecretsDirectory.create(made.path, DirectoryFacts("bp"))
    assert made.add_host("gpu-1", ("vision", "stage")) == []
    assert _texts(made.path) == before


def test_a_host_gets_more_roles_and_keeps_what_it_has(made: SecretsDirectory) -> None:
    before = _texts(made.host_folder("gpu-1"))
    assert made.add_host("gpu-1", ("stage", "operator")) == ["operator"]
    after = _texts(made.host_folder("gpu-1"))
    assert {name: after[name] for name in before} == before
    assert after["gateway.key"] == (made.path / "authority" / "gateway.key").read_text()


def test_what_was_interrupted_is_made_whole_by_doing_it_again(made: SecretsDirectory) -> None:
    (made.host_folder("gpu-1") / "stage.redis").unlink()
    (made.path / "hosts" / "gpu-2.partial").mkdir()
    assert made.add_host("gpu-1", ("stage",)) == ["stage"]
    made.add_host("gpu-2", ("stage",))
    assert made.hosts == {
        "gpu-1": ("vision", "stage"),
        "gpu-2": ("stage",),
        "hub": ("gateway", "conductor"),
    }


def test_rotating_renews_one_role_and_tells_the_servers(made: SecretsDirectory) -> None:
    before, servers = _texts(made.host_folder("gpu-1")), _texts(made.path / "servers")
    assert made.rotate("gpu-1", ("stage",)) == ["stage"]
    after = _texts(made.host_folder("gpu-1"))
    assert {name for name in after if after[name] != before[name]} == {"stage.nk", "stage.redis"}
    changed = {name for name, text in _texts(made.path / "servers").items() if text != servers[name]}
    assert changed == {"nats.conf", "users.acl"}


def test_rotating_everything_renews_the_key_to_the_gateway_too(made: SecretsDirectory) -> None:
    before = _texts(made.path)
    said = _run("rotate", made.path)
    after = _texts(made.path)
    assert {name for name in after if after[name] == before[name]} == {
        *("hosts/gpu-1/host.json", "hosts/hub/host.json", "secrets.json", "servers/redis.conf"),
        *("authority/ca.key", *(f"{folder}/ca.crt" for folder in ("authority", "servers", "hosts/gpu-1", "hosts/hub"))),
    }
    assert after["hosts/hub/gateway.key"] == after["authority/gateway.key"]
    assert "key to the gateway: new on hub" in said


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda made: SecretsDirectory.create(made.path, DirectoryFacts("other")), "is for namespace bp"),
        (lambda made: SecretsDirectory.create(made.path.parent, DirectoryFacts("bp")), "holds something else"),
        (lambda made: SecretsDirectory(made.path.parent), "holds no secrets: `broker-pipeline secrets init"),
        (lambda made: made.add_host("GPU_1", ("stage",)), "'GPU_1' is no name of a host: up to 32 small letters"),
        (lambda made: made.add_host("../hub", ("stage",)), "is no name of a host"),
        (lambda made: made.rotate("gpu-1", ("gateway",)), "gpu-1 has no secrets of a gateway"),
        (lambda made: made.rotate("gpu-9"), "gpu-9 has no secrets: "),
        (lambda made: Credentials.load(made.host_folder("hub"), "stage", "bp"), "stage.nk is missing: .*add-host"),
        (lambda made: Credentials.load(made.host_folder("hub"), "gateway", "b2"), "give it --namespace bp"),
        (lambda made: Credentials.load(made.path, "gateway", "bp"), "is no folder of a host's secrets"),
        (lambda made: gateway_key_file(made.host_folder("gpu-1")), "gateway.key is missing"),
    ],
)
def test_one_sentence_says_what_is_wrong_and_nothing_changes(made: SecretsDirectory, act, sentence: str) -> None:
    before = _texts(made.path)
    with pytest.raises(SecretsError, match=sentence):
        act(made)
    assert _texts(made.path) == before


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("stage.nk", "SUAnonsense\n", "no seed of an NKey"),
        ("stage.nk", "", "is empty"),
        ("stage.redis", "\u00e4", "cannot be read"),
        ("host.json", '{"host": "gpu-1", "namespace": "bp", "more": 1}', "cannot be used: .*more"),
        ("host.json", "{", "cannot be used"),
    ],
)
def test_a_file_that_was_altered_is_named(made: SecretsDirectory, name: str, text: str, sentence: str) -> None:
    (made.host_folder("gpu-1") / name).write_text(text)
    with pytest.raises(SecretsError, match=f"{name} .*{sentence}|{name}.*{sentence}"):
        Credentials.load(made.host_folder("gpu-1"), "stage", "bp")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SecretsError, match=r"cannot write .*file"):
        SecretsDirectory.create(tmp_path / "file" / "secrets", DirectoryFacts("bp"))


def test_secrets_are_not_shown(made: SecretsDirectory) -> None:
    credentials = Credentials.load(made.host_folder("gpu-1"), "stage", "bp")
    assert credentials.nkey_seed not in repr(credentials)
    assert credentials.redis_password not in repr(credentials)
    shown = _run("show", made.path) + _run("show", made.path, "--json")
    assert json.loads(_run("show", made.path, "--json"))["hosts"]["gpu-1"] == ["vision", "stage"]
    assert credentials.nkey_seed not in shown


def test_names_of_workers_begin_with_their_hosts(made: SecretsDirectory, tmp_path: Path) -> None:
    folder = made.host_folder("gpu-1")
    assert own_worker_name(folder, "stage-0") == own_worker_name(folder, "gpu-1_stage-0") == "gpu-1_stage-0"
    assert own_worker_name(None, "stage-0") == "stage-0"
    assert own_worker_name(local_secrets(tmp_path / "own", "bp"), "stage-0") == "stage-0"


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    assert "add hosts with" in _run("init", path)
    said = _run("add-host", path, "gpu-1", "--role", "stage")
    assert f"copy {path}/hosts/gpu-1 there, for stage" in said
    assert f"copy {path}/servers to the host of NATS and Redis" in said
    assert "nothing was changed" in _run("add-host", path, "gpu-1", "--role", "stage")
    with pytest.raises(click.exceptions.UsageError, match="'conducter' is not one of"):
        command.main(["add-host", str(path), "gpu-1", "--role", "conducter"], standalone_mode=False)

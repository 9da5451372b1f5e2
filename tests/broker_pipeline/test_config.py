"""Settings at the edge."""

from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from broker_pipeline.cli import known_variables
from broker_pipeline.config import CommonSettings, check_environment, env_name, given_flags, option, parse_settings
from broker_pipeline.errors import ConfigurationError


def test_a_flag_names_its_variable() -> None:
    assert env_name("--nats-url") == "BROKER_PIPELINE_NATS_URL"
    assert env_name("--wait/--no-wait") == "BROKER_PIPELINE_WAIT"


def test_unknown_variables_are_refused_with_a_suggestion() -> None:
    known = {"BROKER_PIPELINE_NATS_URL", "BROKER_PIPELINE_REDIS_URL"}
    check_environment(known, {"BROKER_PIPELINE_NATS_URL": "x", "HOME": "/"})
    with pytest.raises(ConfigurationError, match="did you mean BROKER_PIPELINE_NATS_URL"):
        check_environment(known, {"BROKER_PIPELINE_NATS_ULR": "x"})


@pytest.mark.parametrize(
    "wrong", [{"namespace": "no spaces"}, {"drain_s": -1.0}, {"unknown": 1}, {"log_format": "xml"}, {"pipeline": ""}]
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    [name] = wrong
    with pytest.raises(ConfigurationError, match=f"^--{name.replace('_', '-')}: ") as caught:
        parse_settings(CommonSettings, wrong)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("two words", ("two words",)),
        ("\n\n", ("\n\n",)),
        ('["two words", "END"]', ("two words", "END")),
        ('["[END]"]', ("[END]",)),
        ("[]", ()),
        (None, ()),
    ],
)
def test_a_repeatable_flags_variable_is_one_value_or_a_json_array(text: str | None, values: tuple[str, ...]) -> None:
    assert _ran(BROKER_PIPELINE_STOP=text).output == f"{values} ()\n"


def test_numbers_of_a_list_are_numbers() -> None:
    assert _ran(BROKER_PIPELINE_STOP_TOKEN_IDS="[5, 7]").output == "() (5, 7)\n"
    assert _ran(BROKER_PIPELINE_STOP_TOKEN_IDS="5").output == "() (5,)\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("STOP", "[END]"), ("STOP", '["a", ["b"]]'), ("STOP", '["a", null]'), ("STOP_TOKEN_IDS", "5 7")],
)
def test_a_variable_that_may_be_meant_either_way_is_refused(name: str, text: str) -> None:
    ran = _ran(**{f"BROKER_PIPELINE_{name}": text})
    assert ran.exit_code == 2
    assert f"--{name.lower().replace('_', '-')}" in ran.output


def _ran(**variables: str | None) -> Result:
    @click.command()
    @option("--stop", multiple=True)
    @option("--stop-token-ids", multiple=True, type=int)
    def command(stop: tuple[str, ...], stop_token_ids: tuple[int, ...]) -> None:
        click.echo(f"{stop} {stop_token_ids}")

    return CliRunner().invoke(command, env=variables)


def test_every_command_declares_its_variables() -> None:
    names = known_variables()
    assert {"BROKER_PIPELINE_NATS_URL", "BROKER_PIPELINE_BLOCKS", "BROKER_PIPELINE_PORT"} <= names
    assert all(name.startswith("BROKER_PIPELINE_") for name in names)


def test_the_flags_that_were_given_make_the_same_command_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came from the environment is not among them: a process inherits it, and a password stays out of `ps`."""
    monkeypatch.setenv("BROKER_PIPELINE_SECRET_URL", "redis://:password@host")
    seen: list[tuple[list[str], dict[str, Any]]] = []

    @click.command()
    @option("--secret-url")
    @option("--port", "-p", default=2, type=int)
    @option("--replicas", default=2, type=click.IntRange(1, 5))
    @option("--drain-s", default=2.0, type=float)
    @option("--network", multiple=True)
    @option("--name", default="a")
    @option("--open", is_flag=True)
    def command(**options: Any) -> None:
        seen.append((given_flags(click.get_current_context()), options))

    arguments = ["-p", "5", "--replicas", "1", "--drain-s", "1", "--network", "-x", "--network", "a b", "--open"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    flags, options = seen[0]
    assert flags == ["--port=5", "--replicas=1", "--drain-s=1.0", "--network=-x", "--network=a b", "--open"]
    assert CliRunner().invoke(command, [*flags, "--port=7"]).exit_code == 0
    assert seen[1][1] == options | {"port": 7}

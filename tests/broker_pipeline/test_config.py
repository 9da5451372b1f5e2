"""Settings at the edge."""

import pytest

from broker_pipeline.cli import known_variables
from broker_pipeline.config import CommonSettings, check_environment, env_name, parse_settings
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


def test_every_command_declares_its_variables() -> None:
    names = known_variables()
    assert {"BROKER_PIPELINE_NATS_URL", "BROKER_PIPELINE_BLOCKS", "BROKER_PIPELINE_PORT"} <= names
    assert all(name.startswith("BROKER_PIPELINE_") for name in names)

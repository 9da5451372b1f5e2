"""Lines of the log, as a service writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from broker_pipeline.logs import configure_logs


@pytest.fixture(autouse=True)
def _own_root_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.contextvars.clear_contextvars()


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_an_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("stage", log_format="json")
    structlog.get_logger().info("served", path="a\nb", name="Käse", subjects=("a", "b"), error=ValueError("no"))
    [line] = logged(capsys)
    assert (line["service"], line["level"], line["event"]) == ("stage", "info", "served")
    assert (line["path"], line["name"], line["subjects"]) == ("a\nb", "Käse", ["a", "b"])
    assert line["error"] == "ValueError('no')"


@pytest.mark.parametrize("value", ["caf\udce9.png", 2**70, {1: 2}])
def test_no_line_is_lost_for_a_value_that_orjson_does_not_write(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    configure_logs("stage", log_format="json")
    structlog.get_logger().warning("odd", value=value)
    [line] = logged(capsys)
    assert line["value"] == json.loads(json.dumps(value))


def test_libraries_log_in_the_same_form_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("stage", log_format="json")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("look: %s", 1)
    [line] = logged(capsys)
    assert (line["service"], line["level"], line["event"]) == ("stage", "warning", "look: 1")

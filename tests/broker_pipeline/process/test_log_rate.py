"""How often one event is logged: on a clock of the test's own, and as a service writes it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from broker_pipeline.logs import configure_logs
from broker_pipeline.process.log_rate import TROUBLE, LogRate, LogRateLimit
from tests.kit.fake_clock import FakeClock


@pytest.fixture
def _own_root_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.contextvars.clear_contextvars()


def test_a_burst_passes_then_a_rate_and_what_is_left_out_is_counted() -> None:
    clock = FakeClock()
    limit = LogRateLimit(LogRate(burst=3, per_s=2.0), LogRate(burst=100, per_s=1.0), clock)
    assert [limit.take("refused", "warning") for _ in range(10)] == [0, 0, 0, *[None] * 7]
    assert limit.take("refused", "info") == 0, "of another level"
    assert limit.take("lost", "error") == 0, "of another event"
    clock.pass_s(0.5)
    assert [limit.take("refused", "warning") for _ in range(2)] == [7, None]
    clock.pass_s(100.0)
    assert [limit.take("refused", "warning") for _ in range(4)] == [1, 0, 0, None]


@pytest.mark.usefixtures("_own_root_handlers")
def test_a_service_that_warns_without_end_writes_little(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("stage", log_format="json")
    for number in range(5_000):
        structlog.get_logger().warning("microbatch_refused", microbatch=number)
        logging.getLogger("library").warning("again: %s", number)
        structlog.get_logger().info("job_finished", job=number)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for event, most in [("microbatch_refused", 400), ("again: ", 400), ("job_finished", 5_000)]:
        num_lines = sum(line["event"].startswith(event) for line in lines)
        assert TROUBLE.burst <= num_lines <= most
    assert sum(line["event"] == "job_finished" for line in lines) == 5_000, "ordinary work is logged whole"

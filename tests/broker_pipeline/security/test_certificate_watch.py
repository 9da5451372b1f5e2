"""New files are taken while a process runs, bad ones are not, and ends are said once a day."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from structlog.testing import capture_logs

from broker_pipeline.security.authority import Authority
from broker_pipeline.security.certificate_watch import CertificateWatch
from broker_pipeline.security.tls_contexts import TlsContexts
from tests.kit.running.authority import NOW, host_secrets


class Day:
    """A calendar that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def test_an_end_is_said_at_the_start_and_daily(tmp_path: Path) -> None:
    day = Day()
    contexts = TlsContexts(host_secrets(tmp_path, Authority.create(), num_days=20), NOW)
    watch = CertificateWatch(contexts, day)
    said: list[int] = []
    for hour in range(72):
        day.now = NOW + timedelta(hours=hour)
        with capture_logs() as logs:
            watch.look()
        said += [hour] * len(logs)
        assert all(each["host"] == "host-a" and "secrets rotate" in each["reason"] for each in logs)
    assert said == [0, 24, 48]


def test_new_files_are_taken_and_half_copied_or_foreign_ones_are_not(tmp_path: Path) -> None:
    authority = Authority.create()
    directory = host_secrets(tmp_path, authority, num_days=20)
    contexts = TlsContexts(directory, NOW)
    watch = CertificateWatch(contexts, lambda: NOW)
    watch.look()
    first = contexts.fingerprint
    other = host_secrets(tmp_path, authority, "next", names=("host-a",))
    (directory / "tls.crt").write_bytes((other / "tls.crt").read_bytes())
    with capture_logs() as logs:
        watch.look()
        watch.look()
    assert [each["event"] for each in logs] == ["certificate_not_taken"]
    assert "tls.key is not the key of" in logs[0]["reason"]
    assert contexts.fingerprint == first
    (directory / "tls.key").write_bytes((other / "tls.key").read_bytes())
    with capture_logs() as logs:
        watch.look()
    assert [each["event"] for each in logs] == ["certificate_taken"], "and its end is far"
    assert contexts.fingerprint != first

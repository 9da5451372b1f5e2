"""The authority, hosts' certificates, and what is said of those that are no good."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest

from broker_pipeline import exit_codes
from broker_pipeline.errors import CertificateError, ConfigurationError
from broker_pipeline.security.authority import HOST_DAYS, Authority
from broker_pipeline.security.certificates import HostCertificate
from tests.kit.authority import LONG_AGO, NOW, host_secrets


def test_a_host_gets_a_certificate_for_its_names_and_addresses(tmp_path: Path) -> None:
    Authority.create().write(tmp_path / "authority")
    directory = host_secrets(
        tmp_path, Authority.load(tmp_path / "authority"), names=("gpu1.lan", "10.0.0.7", "fe80::1")
    )
    certificate = HostCertificate.read(directory)
    certificate.check(NOW)
    assert certificate.host == "host-a"
    assert certificate.names == ("gpu1.lan", "10.0.0.7", "fe80::1", "localhost", "127.0.0.1", "::1")
    assert certificate.ends_at - NOW > timedelta(days=HOST_DAYS - 1)
    for path in (*directory.iterdir(), *(tmp_path / "authority").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (directory, tmp_path / "authority"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_without_names_a_host_is_called_what_people_call_it(tmp_path: Path) -> None:
    assert "host-a" in HostCertificate.read(host_secrets(tmp_path, Authority.create())).names


def test_another_certificate_takes_the_place_of_the_first(tmp_path: Path) -> None:
    authority = Authority.create()
    first = HostCertificate.read(host_secrets(tmp_path, authority, names=("a", "b")))
    second = HostCertificate.read(host_secrets(tmp_path, authority, names=first.names))
    assert second.names == first.names
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü.example", "10.0.0.300/8", "10.0.0.300", "10.0.0", "10.0.0.3:22"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a host's name nor an IP address") as caught:
        host_secrets(tmp_path, Authority.create(), names=(name,))
    assert caught.value.field == "address"
    assert not (tmp_path / "host-a").exists(), "nothing is half done"


def test_an_end_is_warned_of_thirty_days_ahead_with_host_and_remedy(tmp_path: Path) -> None:
    certificate = HostCertificate.read(host_secrets(tmp_path, Authority.create(), num_days=40, now=NOW))
    assert certificate.warning(NOW + timedelta(days=9)) is None
    warning = certificate.warning(NOW + timedelta(days=12))
    assert warning is not None
    assert "in 27 days" in warning
    assert "secrets rotate DIR host-a --certificate" in warning


def test_the_authoritys_end_counts_too(tmp_path: Path) -> None:
    certificate = HostCertificate.read(host_secrets(tmp_path, Authority.create(num_days=20), num_days=400))
    assert certificate.warning(NOW) is not None


def test_one_that_has_ended_or_has_not_begun_is_said_with_its_file(tmp_path: Path) -> None:
    authority = Authority.create(now=LONG_AGO)
    ended = HostCertificate.read(host_secrets(tmp_path, authority, now=LONG_AGO))
    with pytest.raises(CertificateError, match=r"host-a/tls\.crt ended on .*secrets rotate DIR host-a") as caught:
        ended.check(NOW)
    assert exit_codes.exit_code_of(caught.value) == exit_codes.USAGE
    with pytest.raises(CertificateError, match="set the clock"):
        HostCertificate.read(host_secrets(tmp_path, authority)).check(LONG_AGO)


def test_two_authorities_may_follow_each_other(tmp_path: Path) -> None:
    old, new = Authority.create(), Authority.create()
    old_host = host_secrets(tmp_path, old)
    new.write(tmp_path / "authority")
    believed = tmp_path / "authority" / "ca.crt"
    believed.write_text(believed.read_text() + (old_host / "ca.crt").read_text())
    new_host = host_secrets(tmp_path, Authority.load(tmp_path / "authority"), "host-b")
    assert (new_host / "ca.crt").read_text() == believed.read_text(), "which believes hosts of the old one, too"
    (old_host / "ca.crt").write_text(believed.read_text())
    assert [HostCertificate.read(each).host for each in (old_host, new_host)] == ["host-a", "host-b"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("ca.crt", None, r"ca\.crt cannot be read .*--secrets names"),
        ("tls.crt", None, r"tls\.crt cannot be read"),
        ("tls.crt", "nonsense", r"tls\.crt is no certificate: copy it again"),
        ("tls.key", "nonsense", r"tls\.key cannot be read as a key"),
        ("tls.key", "host-b/tls.key", r"tls\.key is not the key of .*tls\.crt"),
        ("ca.crt", "foreign/ca.crt", r"tls\.crt is not signed by .*ca\.crt: .*secrets rotate"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    authority = Authority.create()
    directory = host_secrets(tmp_path, authority)
    host_secrets(tmp_path, authority, "host-b")
    host_secrets(tmp_path, Authority.create(), "foreign")
    if content is None:
        (directory / file).unlink()
    else:
        source = tmp_path / content
        (directory / file).write_bytes(source.read_bytes() if source.exists() else content.encode())
    with pytest.raises(CertificateError, match=words):
        HostCertificate.read(directory)


def test_an_authority_whose_key_is_anothers_signs_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Authority.create().write(tmp_path / name)
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of"):
        Authority.load(tmp_path / "one")
    (tmp_path / "one" / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.key cannot be read"):
        Authority.load(tmp_path / "one")

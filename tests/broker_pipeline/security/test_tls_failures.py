"""Which errors of TLS are about certificates, and so final, and which may pass."""

from __future__ import annotations

import ssl

import pytest

from broker_pipeline.security.tls_failures import tls_failure


def of_openssl(kind: type[ssl.SSLError], reason: str) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),
        TimeoutError(),
        of_openssl(ssl.SSLEOFError, "UNEXPECTED_EOF_WHILE_READING"),
        of_openssl(ssl.SSLError, "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"),
        of_openssl(ssl.SSLError, "TLSV1_ALERT_INTERNAL_ERROR"),
    ],
)
def test_a_connection_that_was_lost_says_nothing_of_certificates(error: Exception) -> None:
    assert tls_failure(error, "Redis") is None


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "it refused this host's certificate"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "it refused this host's certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", "it refused this host's certificate"),
        ("WRONG_VERSION_NUMBER", "is TLS on there"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "TLS 1.3 among what it speaks"),
    ],
)
def test_what_will_not_pass_by_itself_is_said_wherever_it_is_in_the_chain(reason: str, sentence: str) -> None:
    try:
        try:
            raise of_openssl(ssl.SSLError, reason)
        except ssl.SSLError as error:
            raise ConnectionError("Error while reading") from error
    except ConnectionError as error:
        found = tls_failure(error, "Redis at rediss://broker")
    assert found is not None
    assert found.message.startswith("Redis at rediss://broker: ")
    assert sentence in found.message
    assert found.field == "secrets"

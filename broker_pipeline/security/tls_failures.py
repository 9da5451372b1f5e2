"""What an error of TLS means, in a sentence that says what to do."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from broker_pipeline.errors import CertificateError

_ENDED, _NOT_YET, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers for why a certificate is not good."""
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")
"""In what the other side says of ours."""
_OTHER_PROTOCOLS = ("VERSION", "PROTOCOL", "RECORD_LAYER")
"""In what OpenSSL says of an answer that is not TLS, or none that is spoken here."""


class NotEncryptedError(ssl.SSLError):
    """A server beyond this host does not encrypt, and it must."""


def tls_failure(error: BaseException, peer: str) -> CertificateError | None:
    """Return what `error`, or what caused it, says of the certificates of `peer` and of this host.

    None where it says nothing of them: a connection that was lost, for one, may stand the next time.
    """
    for cause in causes(error):
        if isinstance(cause, NotEncryptedError):
            return CertificateError(f"{peer}: it does not encrypt, and with --secrets it has to: turn TLS on there")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateError(f"{peer}: {_unfit(cause)}")
        if isinstance(cause, ssl.SSLError) and (sentence := _refused(cause.reason or "")):
            return CertificateError(f"{peer}: {sentence}")
    return None


def _unfit(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _ENDED:
        return (
            "its certificate (tls.crt), or its authority's (ca.crt), has ended: `broker-pipeline secrets rotate` makes "
            "new ones; copy them there and reload it"
        )
    if error.verify_code == _NOT_YET:
        return "its certificate (tls.crt) is not good yet: set this host's clock, or that of where it was made"
    if error.verify_code in (_OTHER_HOST, _OTHER_ADDRESS):
        return (
            "its certificate (tls.crt) is of another host: use a name or address that it was made for, or make one for "
            "this address with `broker-pipeline secrets add-host`"
        )
    return (
        "its certificate (tls.crt) is of an authority that is not believed here (ca.crt): it is another pipeline's, or "
        "one of the two hosts has files of before `secrets init`; copy that host's directory of secrets again"
    )


def _refused(reason: str) -> str | None:
    said = reason.lower().replace("_", " ")
    if "ALERT" in reason and any(word in reason for word in _REFUSALS):
        return (
            f"it refused this host's certificate (tls.crt): {said}. Where it has ended, or is of another authority "
            "than the one in ca.crt there, run `broker-pipeline secrets rotate`, and copy this host's directory again"
        )
    if any(word in reason for word in _OTHER_PROTOCOLS):
        return f"the connection could not be encrypted ({said}): is TLS on there, and TLS 1.3 among what it speaks?"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it, nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

"""Whether the Python packages here are those that this release needs."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from broker_pipeline.tools.doctor.finding import Finding, fail, ok

_SHOWN = ("nats-py", "redis", "aiohttp", "msgspec", "torch", "triton")


def look_at_packages(extras: frozenset[str]) -> dict[str, str | None]:
    """Return the versions of what is needed with some extras, by requirement; None for what is not installed."""
    found: dict[str, str | None] = {}
    for text in metadata.requires("broker-pipeline") or ():
        needed = Requirement(text)
        if canonicalize_name(needed.name) == "broker-pipeline":
            continue
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found[f"{needed.name}{needed.specifier}"] = _version(needed.name)
    return found


def judge_packages(found: dict[str, str | None]) -> list[Finding]:
    """Say which packages are missing, or of a release that this one was not made for."""
    wrong = []
    for text, version in found.items():
        needed = Requirement(text)
        if version is None:
            wrong.append(f"{needed.name} is not installed")
        elif not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} is {version}, needed is {needed.specifier}")
    if wrong:
        return [fail("packages", "; ".join(wrong), "install this release again: pip install --upgrade broker-pipeline")]
    shown = {name: _version(name) for name in _SHOWN}
    said = ", ".join(f"{name} {version}" for name, version in shown.items() if version)
    return [ok("packages", f"{len(found)} as needed ({said})")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""Hub commits that were current when this was written: `export REPO` fetches these, so that it is repeatable."""

from __future__ import annotations

import re
from dataclasses import dataclass

from broker_pipeline.errors import HubError

PINNED_REVISIONS = {
    "Qwen/Qwen3-VL-235B-A22B-Thinking": "6664affde68449468deb7527186455c7450c13c0",
    "Qwen/Qwen3-VL-235B-A22B-Instruct": "710c13861be6c466e66de3f484069440b8f31389",
    "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8": "7fbcd8c9e2ad011808ed8a57d64c462605c3e381",
    "Qwen/Qwen3-VL-30B-A3B-Instruct": "9c4b90e1e4ba969fd3b5378b57d966d725f1b86c",
    "Qwen/Qwen3-VL-30B-A3B-Thinking": "d0ed0380729be07a546fdefafbb4fe411f341e92",
    "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8": "d9748a51ae66354c4dad665aab2c71f26cf2c8cd",
    "Qwen/Qwen3-VL-32B-Instruct": "0cfaf48183f594c314753d30a4c4974bc75f3ccb",
    "Qwen/Qwen3-VL-32B-Thinking": "7edd10ffd1196091948fb245ff63e406ccb2d4d1",
    "Qwen/Qwen3-VL-8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Qwen/Qwen3-VL-8B-Thinking": "92f3c4b4feadd3a016ef468d103bb5f58b2a2c6b",
    "Qwen/Qwen3-VL-4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Qwen/Qwen3-VL-4B-Thinking": "1de27d8c51f12e819435303b9e84c4e25ba8401e",
    "Qwen/Qwen3-VL-2B-Instruct": "89644892e4d85e24eaac8bacfd4f463576704203",
}
_REFERENCE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository of the hub at a commit, branch or tag."""

    repo: str
    revision: str


def parse_reference(text: str) -> HubReference:
    """Read `repo@revision`, or `repo` if its revision is pinned here.

    Raises:
        HubError: the text is neither, or the repository has no pinned revision.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise HubError(
            f"{text!r} is neither a directory on this host nor a repository of the hub (owner/name[@revision])",
            field="source",
        )
    repo = match["repo"]
    revision = match["revision"] or PINNED_REVISIONS.get(repo)
    if revision is None:
        known = ", ".join(sorted(PINNED_REVISIONS))
        raise HubError(
            f"there is no directory {text}, and no pinned revision for a repository of that name: "
            f"give one, {repo}@COMMIT. Pinned are {known}",
            field="source",
        )
    return HubReference(repo, revision)

"""One row of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from gateway.access.caller import Needed


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answers` maps a status to a struct, or to a media type where it is not JSON."""

    method: str
    path: str
    operation_id: str
    summary: str
    answers: dict[int, type[msgspec.Struct] | str]
    errors: tuple[int, ...] = ()
    query: type[msgspec.Struct] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    has_job_body: bool = False
    body: type[msgspec.Struct] | None = None
    """Of a request that is JSON and nothing else."""
    form: Mapping[str, Any] | None = None
    """Schema of a request that is a form and nothing else."""
    needs: Needed | Literal["nothing", "as method"] = "as method"
    """Scope of the key: `read` for what is read, `submit` for all else, unless it is said otherwise."""
    takes: Literal["nothing", "request", "place"] = "nothing"
    """What of its key's limits: one of a minute's requests, and a place among those under way where it makes a job."""
    streams: bool = False
    """Whether its success may also come as server-sent events."""

    @property
    def scope(self) -> Needed | None:
        """The scope of the key that this takes, or `any`; None where everybody may come."""
        if self.needs == "as method":
            return "read" if self.method == "get" else "submit"
        return None if self.needs == "nothing" else self.needs

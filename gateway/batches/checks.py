"""Decides whether a batch's input is right, line by line. Pure.

Of a line no more is decoded than what decides; whether its body is a request is found out when it is its turn, and said
in the error file: one wrong question does not keep the others from being answered.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from broker_pipeline.messages.wrong_value import WrongValue
from gateway.batches.batch_store import OFFSET_EVERY
from gateway.batches.lines import Line
from gateway.batches.records import LineError
from gateway.settings import BatchLimits

MAX_ERRORS = 1000
"""Of one input that are told; nobody reads more."""
_INLINE = b'"data:'
"""Where a JSON string is a `data:` URL."""


class RequestLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a batch's input."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a body says that has to be the same in all lines."""

    model: str | None = None
    stream: bool | None = None


_decode_line = msgspec.json.Decoder(RequestLine).decode
_decode_head = msgspec.json.Decoder(_Head).decode


def request_line(content: bytes) -> RequestLine:
    """Return a line that was checked before."""
    return _decode_line(content)


class LineChecker:
    """Takes all lines of an input in order. What it keeps of a line are 16 bytes."""

    def __init__(self, endpoint: str, limits: BatchLimits, model: str | None) -> None:
        """Check lines for one endpoint; `model` is the one that answers, None: nobody knows."""
        self.total = 0
        self._num_inline = 0
        self.offsets: list[int] = []
        """Where every `OFFSET_EVERY`th request begins."""
        self.model: str | None = None
        self._served = model
        self._endpoint = endpoint
        self._limits = limits
        self._errors: list[LineError] = []
        self._names = array("Q")
        self._numbers = array("Q")

    @property
    def is_hopeless(self) -> bool:
        """Whether reading on is of no use."""
        return len(self._errors) >= MAX_ERRORS or self._too_many() is not None

    def check(self, lines: Sequence[Line]) -> None:
        """Check some lines."""
        for line in lines:
            if self.total % OFFSET_EVERY == 0:
                self.offsets.append(line.offset)
            self.total += 1
            if self.is_hopeless:
                return
            self._check(line)

    def errors(self) -> list[LineError]:
        """Return what is wrong, in the order of lines, once all have been checked."""
        if self.total == 0:
            return [LineError(code="empty_file", message="the file has no requests")]
        if (said := self._too_many()) is not None:
            return [LineError(code="too_many_requests", message=said)]
        return sorted([*self._errors, *self._repeated()], key=lambda error: error.line or 0)[:MAX_ERRORS]

    def _too_many(self) -> str | None:
        if self.total > (most := self._limits.max_requests):
            return f"the file has more than {most} requests; split it"
        if self._num_inline > (most := self._limits.max_inline_requests):
            return f"more than {most} requests have pictures in them; split the file, or give http: or file: URLs"
        return None

    def _check(self, line: Line) -> None:
        if line.content is None:
            said = f"the line has more than {self._limits.max_line_bytes} bytes"
            return self._refuse(line, "line_too_long", said)
        self._num_inline += _INLINE in line.content
        place = ""
        try:
            request = _decode_line(line.content)
            place = "body"
            head = _decode_head(request.body)
        except msgspec.ValidationError as error:
            wrong = WrongValue.of(error)
            param = ".".join(filter(None, (place, wrong.path)))
            return self._refuse(line, "invalid_request", wrong.reason, param or None)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._refuse(line, "invalid_json_line", f"this is not valid JSON: {error}")
        self._names.append(int.from_bytes(hashlib.blake2b(request.custom_id.encode(), digest_size=8).digest()))
        self._numbers.append(line.number)
        if request.url != self._endpoint:
            return self._refuse(line, "invalid_url", f"the batch's endpoint is {self._endpoint}", "url")
        if head.stream:
            return self._refuse(line, "invalid_request", "a batch has no streams", "body.stream")
        return self._check_model(line, head.model)

    def _check_model(self, line: Line, model: str | None) -> None:
        if not model:
            return self._refuse(line, "invalid_request", "the body names no model", "body.model")
        if self.model is None:
            self.model = model
            if self._served is not None and model != self._served:
                said = f"there is no model {model!r}; {self._served!r} answers here"
                return self._refuse(line, "model_not_found", said, "body.model")
        elif model != self.model:
            said = f"the model is {model!r} here and {self.model!r} in earlier lines"
            return self._refuse(line, "mismatched_model", said, "body.model")
        return None

    def _refuse(self, line: Line, code: str, message: str, param: str | None = None) -> None:
        self._errors.append(LineError(code=code, message=message, line=line.number, param=param))

    def _repeated(self) -> list[LineError]:
        names = np.frombuffer(self._names, dtype=np.uint64)
        order = np.argsort(names, kind="stable")
        is_repeat = names[order][1:] == names[order][:-1]
        said = "an earlier line has the same custom_id"
        lines = sorted(self._numbers[index] for index in order[1:][is_repeat].tolist())
        return [
            LineError(code="duplicate_custom_id", message=said, line=line, param="custom_id")
            for line in lines[:MAX_ERRORS]
        ]

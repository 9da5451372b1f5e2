"""What `bench serve` is asked, and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to send."""

    url: str
    """Of the API, with its `/v1`."""
    model: str
    num_prompts: int
    rate: float | None
    """Requests per second; None: as many as `num_in_flight` allows."""
    num_in_flight: int | None
    prompt: str
    picture_side: int
    """Pixels; 0 sends no picture."""
    num_output_tokens: int
    num_unread: int
    """Further clients that ask for a stream and never read it."""
    seed: int


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its client saw it: seconds of the machine's monotonic clock."""

    due: float
    """When it was to be sent: a client that is late counts as waiting."""
    chunks: tuple[float, ...] = ()
    """When each piece of text came."""
    ended: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    problem: str | None = None

    @property
    def first_s(self) -> float:
        """Seconds until the first text."""
        return self.chunks[0] - self.due

    @property
    def whole_s(self) -> float:
        """Seconds until the end."""
        return self.ended - self.due

    @property
    def per_token_s(self) -> float:
        """Seconds for each token after the first."""
        return (self.whole_s - self.first_s) / max(1, self.num_output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of many measurements, in milliseconds."""

    mean: float
    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """Sum up measurements in seconds; NaN of none."""
        if not seconds:
            return cls(mean=float("nan"), median=float("nan"), p90=float("nan"), p99=float("nan"))
        median, p90, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 90, 99)))
        return cls(mean=1e3 * float(np.mean(seconds)), median=median, p90=p90, p99=p99)


class ServeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, under the names that vLLM's `bench serve` has made usual."""

    completed: int
    failed: dict[str, int]
    """Requests without a whole answer, by reason."""
    duration_s: float
    request_throughput: float
    """Requests per second."""
    total_input_tokens: int
    total_output_tokens: int
    output_throughput: float
    """Tokens per second."""
    ttft_ms: Percentiles
    """Time to first token."""
    tpot_ms: Percentiles
    """Time per output token after the first."""
    itl_ms: Percentiles
    """Between two pieces of a stream."""
    e2el_ms: Percentiles
    """From a request's due time to its end."""


def row_of(requests: Sequence[RequestTimes]) -> ServeRow:
    """Sum up all requests of a run."""
    whole = [each for each in requests if each.problem is None]
    duration_s = max((each.ended for each in requests), default=0.0) - min(each.due for each in requests)
    num_output_tokens = sum(each.num_output_tokens for each in whole)

    def percentiles(of: Callable[[RequestTimes], float], among: Sequence[RequestTimes] = whole) -> Percentiles:
        return Percentiles.of([of(each) for each in among])

    return ServeRow(
        completed=len(whole),
        failed=dict(Counter(each.problem for each in requests if each.problem is not None)),
        duration_s=duration_s,
        request_throughput=len(whole) / duration_s,
        total_input_tokens=sum(each.num_prompt_tokens for each in whole),
        total_output_tokens=num_output_tokens,
        output_throughput=num_output_tokens / duration_s,
        ttft_ms=percentiles(lambda each: each.first_s),
        tpot_ms=percentiles(lambda each: each.per_token_s, [each for each in whole if each.num_output_tokens > 1]),
        itl_ms=Percentiles.of([gap for each in whole for gap in each.gaps_s]),
        e2el_ms=percentiles(lambda each: each.whole_s),
    )

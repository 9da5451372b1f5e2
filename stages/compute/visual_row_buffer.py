"""Visual rows that wait at a stage until their span is prefilled.

    vision worker ──visual rows──► put(session, attempt) ─┐
                                                          ├─► find() at each prefill chunk, discard() at the last row,
    conductor ──envelope with visual spans────────────────┘   at close, at a new epoch or when they expire

They may come before the session is opened. The buffer is filled by the event loop and read by the compute thread,
hence the lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import (
    PayloadTooLargeError,
    StaleAttemptError,
    TensorMismatchError,
    VisualRowsMissingError,
    WorkerBusyError,
)
from stages.compute.microbatch import SessionKey


@dataclass(frozen=True, slots=True)
class VisualRows:
    """What one stage needs of a session's pictures, a row per visual token, in prompt order.

    `embeds` `[r, H]` or None replace the pad tokens' embeddings; `levels[j]` `[r, H]` are added after decoder layer j.
    """

    embeds: Tensor | None
    levels: Mapping[int, Tensor]

    def __post_init__(self) -> None:
        lengths = {tensor.shape[0] for tensor in self._tensors()}
        if len(lengths) > 1:
            raise TensorMismatchError(f"visual rows of one delivery differ in number: {sorted(lengths)}")

    @property
    def num_rows(self) -> int:
        """Rows of each tensor."""
        tensors = self._tensors()
        return tensors[0].shape[0] if tensors else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def copied(self, *, is_pinned: bool) -> VisualRows:
        """Return these rows in memory of their own, on the host; `is_pinned`: page-locked, for copies to a GPU.

        Raises:
            WorkerBusyError: there is no such memory at this moment.
        """

        def copy(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned).copy_(tensor)

        try:
            embeds = None if self.embeds is None else copy(self.embeds)
            return VisualRows(embeds, {level: copy(tensor) for level, tensor in self.levels.items()})
        except RuntimeError as error:
            raise WorkerBusyError(f"no memory for {self.num_bytes} bytes of visual rows: {error}") from error

    def _tensors(self) -> list[Tensor]:
        return [*([self.embeds] if self.embeds is not None else []), *self.levels.values()]


@dataclass(frozen=True, slots=True)
class _Entry:
    visual_rows: VisualRows
    epoch: int
    expires_at: float


class VisualRowBuffer:
    """Visual rows under (session, attempt), at most `max_bytes` of them, each for at most `ttl_s` seconds."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: dict[SessionKey, _Entry] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_sessions(self) -> int:
        """Sessions whose visual rows are here."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._num_bytes

    def put(self, session: str, attempt: int, epoch: int, visual_rows: VisualRows) -> None:
        """Keep visual rows; they replace those of the same attempt and of older ones.

        Raises:
            StaleAttemptError: visual rows of a newer attempt are here.
            WorkerBusyError: there is no room yet.
            PayloadTooLargeError: there never will be.
        """
        if visual_rows.num_bytes > self._max_bytes:
            raise PayloadTooLargeError(
                f"{visual_rows.num_bytes} bytes of visual rows are more than the {self._max_bytes} that are kept here; "
                "give this stage a larger --row-buffer-bytes"
            )
        with self._lock:
            self._drop(lambda _, entry: entry.expires_at <= self._clock())
            if any(other == session and newer > attempt for other, newer in self._entries):
                raise StaleAttemptError(
                    f"visual rows of a newer attempt of session {session} are here", field="attempt"
                )
            self._drop(lambda key, _: key[0] == session)
            if self._num_bytes + visual_rows.num_bytes > self._max_bytes:
                raise WorkerBusyError(
                    f"no room for {visual_rows.num_bytes} bytes of visual rows: {self._num_bytes} of "
                    f"{self._max_bytes} are taken by sessions that are not prefilled yet"
                )
            self._entries[session, attempt] = _Entry(visual_rows, epoch, self._clock() + self._ttl_s)
            self._num_bytes += visual_rows.num_bytes

    def find(self, session: str, attempt: int) -> VisualRows:
        """Return a session's visual rows.

        Raises:
            VisualRowsMissingError: they never came, or were kept too long.
        """
        with self._lock:
            self._drop(lambda _, entry: entry.expires_at <= self._clock())
            entry = self._entries.get((session, attempt))
        if entry is None:
            raise VisualRowsMissingError(
                f"visual rows of session {session}, attempt {attempt}, are not here (never delivered, or expired)"
            )
        return entry.visual_rows

    def num_rows(self, session: str, attempt: int) -> int:
        """Return how many visual rows of a session are here."""
        with self._lock:
            entry = self._entries.get((session, attempt))
        return entry.visual_rows.num_rows if entry else 0

    def discard(self, session: str, attempt: int) -> None:
        """Forget the visual rows of this attempt and of older ones."""
        with self._lock:
            self._drop(lambda key, _: key[0] == session and key[1] <= attempt)

    def drop_before(self, epoch: int) -> None:
        """Forget visual rows that older epochs sent."""
        with self._lock:
            self._drop(lambda _, entry: entry.epoch < epoch)

    def _drop(self, is_void: Callable[[SessionKey, _Entry], bool]) -> None:
        for key in [key for key, entry in self._entries.items() if is_void(key, entry)]:
            self._num_bytes -= self._entries.pop(key).visual_rows.num_bytes

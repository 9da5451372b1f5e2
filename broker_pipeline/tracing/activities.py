"""What a profile shows: every kind of work that a process records, its colour class and its row.

Work without a row stands on the row of the thread that did it. What may overlap with itself (messages under way,
requests that are waited for) has a row of its own and is written as asynchronous slices, since slices of one thread
have to nest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["wire", "queue", "compute", "copy", "publish", "host", "bubble", "wait"]
"""wire: between two processes; queue: received and not begun; compute: the model; copy: between host and device;
publish: encoding and handing to the socket; host: other work of the processor; bubble: a stage with sessions and
nothing to do; wait: for somebody else, such as the media store."""


@dataclass(frozen=True, slots=True)
class Activity:
    """One kind of work. `row` is None for the row of the thread that does it."""

    name: str
    kind: Kind
    row: str | None = None
    overlaps: bool = False
    """Whether several may be under way at a time on its row."""


# Every process that speaks to others.
ENCODE = Activity("encode", "publish")
"""A message becomes bytes; its end is when the message leaves."""
SEND = Activity("send", "publish", "sending", overlaps=True)
"""The bytes are handed to the connection, which may have to wait for room."""
RECEIVE = Activity("receive", "host")
"""Bytes become a message; its beginning is when the message has arrived."""

# Conductor.
PLAN = Activity("plan", "host")
BUILD = Activity("build", "host")
COMPLETE = Activity("complete", "host")
COMMIT = Activity("commit", "wait", "commits", overlaps=True)
"""Tokens on their way to Redis, until it has taken them."""
TELL = Activity("tell", "publish", "commits", overlaps=True)
"""Committed tokens are published for streaming clients."""

JOB = Activity("job", "wait", "jobs", overlaps=True)
"""From its acceptance to its end."""
ATTEMPT = Activity("attempt", "wait", "jobs", overlaps=True)

# Stage.
SESSION = Activity("session", "wait", "sessions", overlaps=True)
"""A session's time on a stage, from its opening to its closing."""
CHECK = Activity("check", "host")
"""An envelope is checked against the contract, and its tensors become views."""
QUEUE = Activity("queue", "queue", "queue", overlaps=True)
"""A checked envelope waits for the compute thread."""
STEP = Activity("step", "compute")
"""A processor computes a microbatch."""
LAUNCH = Activity("launch", "host")
"""Where a GPU computes: its microbatch is checked, admitted and queued."""
AWAIT = Activity("await GPU", "wait")
COLLECT = Activity("collect", "host")
"""Results of a microbatch become what is sent on."""
BUBBLE = Activity("bubble", "bubble", "bubbles")
"""Sessions are open, and no microbatch is here."""
DEVICE = Activity("microbatch", "compute", "device")
"""A microbatch on the GPU, by the GPU's own clock: from the first thing queued for it to the last."""
COPY_IN = Activity("to device", "copy", "device")
COPY_OUT = Activity("to host", "copy", "device copies")

# Vision worker.
PREPARE = Activity("prepare", "wait", "requests", overlaps=True)
FETCH = Activity("fetch", "wait", "fetching", overlaps=True)
DECODE = Activity("decode", "host")
LAY_OUT = Activity("lay out prompt", "host")
PATCHES = Activity("patches", "host")
TOWER = Activity("tower", "compute", "tower")
DELIVER = Activity("deliver rows", "publish", "deliveries", overlaps=True)

# Gateway.
REQUEST = Activity("request", "wait", "requests", overlaps=True)
STORE_MEDIA = Activity("store media", "wait", "stores", overlaps=True)
CREATE_JOB = Activity("create job", "wait", "stores", overlaps=True)
QUEUE_JOB = Activity("queue job", "wait", "stores", overlaps=True)

# Made when traces are joined.
OUTBOX = Activity("outbox", "queue", "outbox", overlaps=True)
"""A stage has computed, and its event loop has not begun to send."""
WIRE = Activity("wire", "wire", "wire", overlaps=True)
IN_FLIGHT = Activity("microbatch", "wait", "in flight", overlaps=True)

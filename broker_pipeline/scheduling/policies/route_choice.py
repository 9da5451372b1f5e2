"""Which route a new session goes to, and which routes are too slow to be given any. Pure.

    route   sessions   a step takes   one session more: sessions * step
    a       20         10 ms          210 ms
    b       9          20 ms          200 ms     ◄── half as fast, so it gets half as many
    c       0          110 ms         a straggler: its one session would take eleven times as long as those on a

A straggler takes over `_STRAGGLES` times as long for a step as the fastest route, and what stragglers could compute all
together is little of the whole: otherwise slow hosts are what the pipeline is made of. Nobody is judged by larger steps
than it has had: in proportion, one with a single session would be slow beside one with many. A route without sessions
is taken for faster by and by, so that one that has become faster is found out.

Questions about one picture go to one route, if that has hardly more sessions than others: KV is copied there and the
picture is encoded already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState

_STRAGGLES = 4.0
_LITTLE = 0.25  # of the speed of all routes
_HALF_S = 30.0  # idle for so long, a route is taken for twice as fast
_WORTH_SESSIONS = 4  # that a route with sessions like a new one may have more
_REPLAY_S = 1.0  # for preparing a session again, beyond the prefill


@dataclass(frozen=True, slots=True)
class RouteLoad:
    """A route as a new session finds it."""

    route: Route
    num_sessions: int
    """Sessions that run on it, wait for it or are prepared for it."""
    room_tokens: int
    """KV that none of these have or will ask for."""
    step_s: float | None
    """Seconds of its slowest stage for a microbatch of the usual size; None before that is known."""
    seen_step_s: float | None
    """The same, but of no more tokens than it has had."""
    idle_s: float = 0.0

    @property
    def taken_step_s(self) -> float | None:
        """What a step of the usual size is taken to last."""
        return self._taken(self.step_s)

    @property
    def taken_seen_step_s(self) -> float | None:
        """What a step that it has had is taken to last."""
        return self._taken(self.seen_step_s)

    def _taken(self, step_s: float | None) -> float | None:
        return None if step_s is None else step_s * float(0.5 ** (self.idle_s / _HALF_S))


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Workers, by key, that a session should rather not meet."""

    failed: Collection[str] = ()
    """It has failed on them."""
    spared: Collection[str] = ()
    """Others have failed on them lately, or one session at a time is what they are given, and they have that."""


def choose_route(loads: Sequence[RouteLoad], num_tokens: int, unwanted: Unwanted, alike: tuple[str, ...] = ()) -> Route:
    """Return the route where a session of `num_tokens` does best; `alike` is the key of one with sessions like it."""
    slow = stragglers(loads)
    known = [load.taken_step_s for load in loads if load.taken_step_s is not None]
    fastest_s = min(known, default=1.0)

    def order(load: RouteLoad) -> tuple[object, ...]:
        keys = load.route.key
        step_s = fastest_s if load.taken_step_s is None else load.taken_step_s  # one that is new gets its share
        return (
            sum(key in unwanted.failed for key in keys),
            sum(key in unwanted.spared for key in keys),
            load.route in slow,
            load.room_tokens < num_tokens,
            (load.num_sessions + 1 - _WORTH_SESSIONS * (keys == alike)) * step_s,
            -load.room_tokens,
        )

    return min(loads, key=order).route


def stragglers(loads: Sequence[RouteLoad]) -> list[Route]:
    """Return the routes that new sessions are kept from."""
    steps = {load.route: load.taken_seen_step_s for load in loads if load.taken_seen_step_s}
    if len(steps) < 2:
        return []
    slow = [route for route, step_s in steps.items() if step_s > _STRAGGLES * min(steps.values())]
    speed = sum(1 / step_s for step_s in steps.values())
    return slow if sum(1 / steps[route] for route in slow) < _LITTLE * speed else []


def worth_moving(
    sessions: Iterable[SessionState],
    slow: RouteLoad,
    others: Sequence[RouteLoad],
    step_s: Callable[[Route, float], float | None],
) -> list[SessionState]:
    """Return those sessions of a slow route that would end earlier on another that has room, longest first.

    Half of the tokens that a session may still have are expected. `step_s` tells what a step of so many tokens takes.
    """
    rooms = {load.route: load.room_tokens for load in others}
    moved = []
    for session in sorted(sessions, key=lambda each: each.num_tokens - each.num_kv_tokens):
        load = max(others, key=lambda each: rooms[each.route])
        gain_s = 0.5 * (session.num_kv_tokens - session.num_tokens) * ((slow.step_s or 0.0) - (load.step_s or 0.0))
        replay_s = _REPLAY_S + (step_s(load.route, session.num_tokens) or 0.0)
        num_tokens = max(session.num_reserved_tokens, session.num_tokens)
        can_end_there = session.num_kv_tokens <= load.route.kv_capacity_tokens
        if can_end_there and num_tokens <= rooms[load.route] and gain_s > replay_s:
            rooms[load.route] -= num_tokens
            moved.append(session)
    return moved

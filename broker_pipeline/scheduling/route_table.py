"""Which workers may be used now, and the routes and lanes that they make. Pure.

usable      on routes; new sessions come unless it drains
suspended   did not answer: on no route, but its process may live, and with it the KV of its sessions; once it
            answers again it is usable
gone        its process has ended: nothing of it is left
"""

from __future__ import annotations

from collections.abc import Iterable

from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.routes import Route, StageInfo, choose_routes


class RouteTable:
    """Usable workers, suspended workers, the routes open for new sessions, and the lanes of all routes in use."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._usable: dict[str, StageInfo] = {}
        self._suspended: dict[str, StageInfo] = {}
        self._draining: set[str] = set()
        self._lanes: dict[tuple[str, ...], Lane] = {}
        self.open_routes: tuple[Route, ...] = ()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes of all routes that are open or still have sessions."""
        return tuple(self._lanes.values())

    @property
    def usable(self) -> tuple[StageInfo, ...]:
        """Workers that routes may use."""
        return tuple(self._usable.values())

    @property
    def suspended(self) -> tuple[StageInfo, ...]:
        """Workers that did not answer and have yet to do so."""
        return tuple(self._suspended.values())

    def find_suspended(self, key: str) -> StageInfo | None:
        """Return a suspended worker, None when this one is not."""
        return self._suspended.get(key)

    def is_usable(self, route: Route) -> bool:
        """Whether every worker of a route is there."""
        return all(worker.key in self._usable for worker in route.workers)

    def is_open(self, route: Route) -> bool:
        """Whether new sessions may come to a route."""
        return any(route.key == each.key for each in self.open_routes)

    def lane(self, route: Route) -> Lane:
        """Return the lane of a usable route."""
        lane = self._lanes.get(route.key)
        if lane is None:
            lane = self._lanes[route.key] = Lane(route)
        return lane

    def join(self, worker: StageInfo) -> None:
        """Use a worker, whether it is new or was suspended."""
        self._suspended.pop(worker.key, None)
        self._usable[worker.key] = worker
        self._choose()

    def drain(self, key: str) -> None:
        """Send a worker no new sessions."""
        if key not in self._draining:
            self._draining.add(key)
            self._choose()

    def suspend(self, key: str) -> list[Lane]:
        """Stop using a worker and return the lanes that end with that."""
        worker = self._usable.pop(key, None)
        if worker is None:
            return []
        self._suspended[key] = worker
        return self._end_lanes(key)

    def leave(self, key: str) -> list[Lane]:
        """Forget a worker and return the lanes that end with that."""
        self._usable.pop(key, None)
        self._suspended.pop(key, None)
        self._draining.discard(key)
        return self._end_lanes(key)

    @property
    def has_spare_lanes(self) -> bool:
        """Whether there are lanes of routes that are not open, which `tidy` may find to be of no use."""
        return len(self._lanes) > len(self.open_routes)

    def tidy(self, wanted: Iterable[Route]) -> None:
        """Forget lanes that are empty and neither open nor `wanted`."""
        keep = {route.key for route in (*self.open_routes, *wanted)}
        for key, lane in list(self._lanes.items()):
            if key not in keep and not lane.running and not lane.in_flight:
                del self._lanes[key]

    def _end_lanes(self, key: str) -> list[Lane]:
        ended = [lane for lane in self._lanes.values() if key in lane.route.key]
        for lane in ended:
            del self._lanes[lane.route.key]
        self._choose()
        return ended

    def _choose(self) -> None:
        workers = [worker for key, worker in self._usable.items() if key not in self._draining]
        self.open_routes = choose_routes(workers, self._num_layers, self.open_routes)
        for route in self.open_routes:
            self.lane(route)

"""Does faults to a world, and takes them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.kit.acting.workers import ActingStage
from tests.simulation.faults import Fault, Kind
from tests.simulation.world import World

_ENDS: tuple[Kind, ...] = ("kill", "drain")


class Havoc:
    """What is ill already in the same way, or ends already, is left alone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ill: set[tuple[str, Kind]] = set()

    def expect(self, fault: Fault) -> None:
        if fault.kind == "power":
            self._world.loop.call_at(fault.synced_s, self._world.redis.sync)
        self._world.loop.call_at(fault.at_s, self._begin, fault)

    def _begin(self, fault: Fault) -> None:
        alike = _ENDS if fault.kind in _ENDS else (fault.kind,)
        if any((fault.target, kind) in self._ill for kind in alike):
            return
        self._ill.add((fault.target, fault.kind))
        done = _DO[fault.kind](self._world, fault)
        done.__enter__()
        self._world.loop.call_at(fault.ends_s, self._end, fault, done)

    def _end(self, fault: Fault, done: AbstractContextManager[None]) -> None:
        self._ill.discard((fault.target, fault.kind))
        done.__exit__(None, None, None)


@contextmanager
def _killed(world: World, fault: Fault) -> Iterator[None]:
    world.processes[fault.target].kill()
    yield
    world.start_again(fault.target)


@contextmanager
def _drained(world: World, fault: Fault) -> Iterator[None]:
    world.drain_conductor(fault.target)
    yield
    world.replace_conductor(fault.target)


@contextmanager
def _stopped(world: World, fault: Fault) -> Iterator[None]:
    process = world.redis if fault.target == "redis" else world.processes[fault.target]
    process.stop()
    yield
    process.go_on()


@contextmanager
def _cut_off(world: World, fault: Fault) -> Iterator[None]:
    link, client = world.links[fault.target], world.clients[fault.target]
    link.cut(detect_s=0.7 + 3.0 * fault.detail)
    client.cut()
    yield
    client.heal()
    link.heal()


@contextmanager
def _slow(world: World, fault: Fault) -> Iterator[None]:
    servers = {"nats": world.broker, "redis": world.redis}
    slow = servers.get(fault.target) or world.workers[fault.target]
    field = "slowness" if fault.target in servers else "step_s" if isinstance(slow, ActingStage) else "prepare_s"
    before = getattr(slow, field)
    setattr(slow, field, before + fault.detail * (200.0 if fault.target in servers else 0.8))
    yield
    setattr(slow, field, before)


@contextmanager
def _hung(world: World, fault: Fault) -> Iterator[None]:
    worker = world.workers[fault.target]
    worker.is_hung = True
    yield
    worker.is_hung = False


@contextmanager
def _sick(world: World, fault: Fault) -> Iterator[None]:
    worker = world.workers[fault.target]
    worker.is_sick = True
    yield
    worker.is_sick = False


@contextmanager
def _leaking(world: World, fault: Fault) -> Iterator[None]:
    link = world.links[fault.target]
    link.leak = 0.5 * fault.detail
    yield
    link.leak = 0.0


@contextmanager
def _losing(world: World, fault: Fault) -> Iterator[None]:
    stage = world.stages[fault.target]
    stage.num_to_lose = 1 + int(3 * fault.detail)
    yield
    stage.num_to_lose = 0


@contextmanager
def _restarted(world: World, fault: Fault) -> Iterator[None]:
    if fault.target == "redis":
        world.redis.is_up = False
        yield
        world.redis.is_up = True
    else:
        world.broker.kill()
        yield
        world.broker.start(forgets=fault.detail < 0.3)


@contextmanager
def _powerless(world: World, _: Fault) -> Iterator[None]:
    world.redis.is_up = False
    before = world.ended
    world.redis.lose_unsynced()
    world.forgotten |= before - world.ended
    yield
    world.redis.is_up = True


@contextmanager
def _muted(world: World, fault: Fault) -> Iterator[None]:
    world.redis.lost_answers = 0.2 + 0.6 * fault.detail
    yield
    world.redis.lost_answers = 0.0


_DO: dict[Kind, Callable[[World, Fault], AbstractContextManager[None]]] = {
    "kill": _killed,
    "drain": _drained,
    "stop": _stopped,
    "cut": _cut_off,
    "slow": _slow,
    "hang": _hung,
    "sick": _sick,
    "lose": _losing,
    "leak": _leaking,
    "restart": _restarted,
    "power": _powerless,
    "mute": _muted,
}

"""Several workers in one process: each lives its own life, and the process is ready when all of them are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker_pipeline.service import ServiceContext


class Roles:
    """The roles of one process. A signal reaches all; each drains, and the process ends with the last."""

    def __init__(self, context: ServiceContext, names: Sequence[str]) -> None:
        """Take the first role's facts for those of the process; those of others are named after them."""
        self._context = context
        self._names = tuple(names)
        self._facts: dict[str, dict[str, object]] = {}

    def part(self, name: str) -> ServiceContext:
        """Return what one role sees of the service's life."""
        return _RoleContext(self._context, name, lambda facts: self._note_ready(name, facts))

    def _note_ready(self, name: str, facts: dict[str, object]) -> None:
        self._facts[name] = facts
        if len(self._facts) == len(self._names):
            self._context.ready(**self._all_facts())

    def _all_facts(self) -> dict[str, object]:
        first, *others = self._names
        named = {f"{role}_{key}": value for role in others for key, value in self._facts[role].items()}
        return self._facts[first] | named


class _RoleContext(ServiceContext):
    def __init__(self, whole: ServiceContext, role: str, note_ready: Callable[[dict[str, object]], None]) -> None:
        super().__init__(f"{whole.name} ({role})", whole.settings)
        self.stopping = whole.stopping
        self._note_ready = note_ready

    def ready(self, **facts: object) -> None:
        """Tell the whole service."""
        self._note_ready(facts)

"""Who sent a request, and what that one may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from broker_pipeline.messages.keys import KeyLimits, Scope

Needed: TypeAlias = Scope | Literal["any"]
"""What a route asks of a caller: a scope, or whichever."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One who may do what `scopes` say with the jobs of `tenant`; operators may do everything with everybody's."""

    scopes: frozenset[Scope]
    tenant: str = ""
    """Empty for operators without a key, and where the gateway knows no keys: all jobs are everybody's there."""
    key_hash: str = ""
    limits: KeyLimits = field(default_factory=KeyLimits)

    def may(self, needed: Needed) -> bool:
        """Say whether a route that needs this is for this one."""
        return needed == "any" or needed in self.scopes or "operate" in self.scopes

    @property
    def sees_all(self) -> bool:
        """Whether other tenants' jobs are this one's to see and to stop."""
        return not self.tenant or "operate" in self.scopes

    def may_see(self, tenant: str) -> bool:
        """Say whether a tenant's jobs are there for this one."""
        return self.sees_all or tenant == self.tenant

    @property
    def listed_tenant(self) -> str:
        """Whose jobs a list shows; empty: everybody's."""
        return "" if self.sees_all else self.tenant


_CALLER: ContextVar[Caller] = ContextVar("caller")

ANYBODY = Caller(frozenset({"submit", "read"}))
OPERATOR = Caller(frozenset({"submit", "read", "operate"}))


def set_caller(caller: Caller) -> None:
    """Note who sent the request that this task works on."""
    _CALLER.set(caller)


def current_caller() -> Caller:
    """Return who sent the request that this task works on: the guard has let it through."""
    return _CALLER.get()

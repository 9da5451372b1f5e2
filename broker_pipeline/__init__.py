"""The core of broker-pipeline: contract, transport, state, scheduling. Imports no torch.

`Client` and `AsyncClient` ask for captions from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker_pipeline.captioning.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from broker_pipeline.captioning import client  # noqa: PLC0415 - services need none of it

    return getattr(client, name)

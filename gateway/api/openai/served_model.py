"""The model that is served here."""

from __future__ import annotations

from broker_pipeline.errors import ModelNotFoundError
from gateway.settings import Limits


def check_model(name: str, limits: Limits) -> None:
    """Raise `ModelNotFoundError` for a model that is not served; while nobody knows which one is, any may be."""
    if limits.model is not None and name != limits.model:
        raise ModelNotFoundError(f"no model is called {name!r} here; there is {limits.model!r}", field="model")

"""`/v1/models`: the model that is served, as vLLM lists its own."""

from __future__ import annotations

import secrets
import time
from typing import Literal

import msgspec
from aiohttp import web

from broker_pipeline.errors import ModelNotFoundError
from gateway.api.json_answer import json_answer
from gateway.api.openai.served_model import check_model
from gateway.settings import Limits
from gateway.wiring import GATEWAY

_OWNER = "broker-pipeline"
_STARTED_AT = int(time.time())


class ModelPermission(msgspec.Struct, frozen=True, kw_only=True):
    """What may be done with a model: everything that this API has."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served. `max_model_len` is for prompt and output together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = _OWNER
    root: str
    parent: str | None = None
    max_model_len: int | None
    permission: tuple[ModelPermission, ...]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models that are served: one, or none while no conductor is active."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


def routes() -> list[web.RouteDef]:
    """Return the routes of this file; names of models from the hub have a slash."""
    return [web.get("/v1/models", list_models), web.get("/v1/models/{model:.+}", show_model, allow_head=False)]


async def list_models(request: web.Request) -> web.Response:
    """Show the models that are served."""
    limits = await request.app[GATEWAY].reader.limits()
    return json_answer(ModelList(data=(_model(limits.model, limits),) if limits.model else ()))


async def show_model(request: web.Request) -> web.Response:
    """Show one of them."""
    limits = await request.app[GATEWAY].reader.limits()
    name = request.match_info["model"]
    check_model(name, limits)
    if limits.model is None:
        raise ModelNotFoundError("no conductor is active, so that no model is served", field="model")
    return json_answer(_model(name, limits))


def _model(name: str, limits: Limits) -> Model:
    permission = ModelPermission(id=f"modelperm-{secrets.token_hex(8)}", created=_STARTED_AT)
    return Model(
        id=name, created=_STARTED_AT, root=name, max_model_len=limits.max_tokens_in_all, permission=(permission,)
    )

"""Unloading a model, and letting one that failed be loaded again.

Who may use the API at all may do both: they change when a model is loaded on this box, which any request for it does.
"""

from __future__ import annotations

import json
from typing import Final

from agent.errors import BadRequestError
from agent.http.exchange import Exchange, text_of
from agent.http.services import ModelServices

_MAX_NAME: Final = 256


class ModelsApi:
    """Handlers below /v1/fleet/models."""

    def __init__(self, services: ModelServices) -> None:
        self._services = services

    async def unload(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/unload: {"model": NAME}."""
        await exchange.reply(200, self._services.unload(_model(text_of(await exchange.body()))))

    async def retry(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/retry: {"model": NAME}."""
        await exchange.reply(200, self._services.retry(_model(text_of(await exchange.body()))))


def _model(text: str) -> str:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    model = body.get("model") if isinstance(body, dict) and set(body) == {"model"} else None
    if not isinstance(model, str) or not 0 < len(model) <= _MAX_NAME:
        raise BadRequestError(f'expected {{"model": NAME}}, a name or hash of at most {_MAX_NAME} characters')
    return model

"""The `openai` backend: models on an OpenAI-compatible server that is already running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longeval.backends.base import BACKENDS, Backend, Capabilities
from longeval.backends.openai.server import ask_server
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel
    from longeval.request import ModelRequest


CONCURRENCY = 16
"""Requests under way at once."""


def _check(spec: ModelRequest) -> None:
    if spec.base_url is None:
        raise LongEvalError(
            "--backend openai: needs a server", "Give its address, such as --base-url http://127.0.0.1:8000/v1."
        )


def _load(spec: ModelRequest, model: PreparedModel) -> Backend:
    from longeval.backends.openai.backend import OpenAIBackend
    from longeval.backends.openai.client import own_key

    assert spec.base_url is not None
    return OpenAIBackend(
        base_url=spec.base_url,
        api_key=own_key(),
        model=spec.served_model,
        tokenizer=model.tokenizer,
        concurrency=CONCURRENCY,
    )


def _params(spec: ModelRequest, length_dependent: bool) -> dict[str, Any]:
    return {"base_url": spec.base_url, "served_model": spec.served_model}


BACKENDS.register(
    "openai",
    Capabilities(
        load=_load,
        heeds=frozenset({"base_url", "served_model"}),
        remote=True,
        windows_at_once=CONCURRENCY,
        check=_check,
        params=_params,
        connect=ask_server,
    ),
)

"""What vLLM's server adds to `/v1/models` when `longeval serve` started it: its method, and the table that it holds.

An ASGI middleware, which vLLM takes by name (`--middleware`). It reads the method from the model's configuration, where
`longeval serve` put it beside our table, and asks the engine's workers which table they hold.
Interface: https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from longeval.backends.served import KEY

NAME = f"{__name__}.MethodCard"
"""The value of vLLM's `--middleware`."""
CONFIG_KEY = "longeval_served"
"""Attribute of the model's configuration that has the method: a `ServedMethod` without digests, and `keeps_others`."""
KEEPS_OTHERS = "keeps_others"
"""Whether some of the model's layers rotate by vLLM's own modules, as they were trained."""

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Callable[[], Awaitable[Message]], Send], Awaitable[None]]


class MethodCard:
    """Adds the method to the cards of `/v1/models`; everything else passes as it is.

    Args:
        app: The server.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._told: dict[str, Any] | None = None

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not scope["path"].endswith("/v1/models"):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        start, parts = messages[0], messages[1:]
        body = b"".join(part.get("body", b"") for part in parts)
        if start["status"] == HTTPStatus.OK:
            if self._told is None:  # the engine is asked once: its table stays what it is
                self._told = await served_by(scope["app"].state)
            if self._told is not None:
                body = _with_card(body, self._told)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send(start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


async def served_by(state: Any) -> dict[str, Any] | None:
    """The method of vLLM's running server, with the digests of the tables that its workers hold; None: not ours.

    Args:
        state: Of vLLM's application: its configuration and its client of the engine.
    """
    told = getattr(state.vllm_config.model_config.hf_config, CONFIG_KEY, None)
    if told is None:
        return None
    told = dict(told)
    keeps_others = told.pop(KEEPS_OTHERS)
    workers = await state.engine_client.collective_rpc("longeval_held_tables", args=(told["length"],))
    digests = sorted({digest for worker in workers for digest in worker["digests"]})
    wrong = any(worker["problems"] or (worker["others"] and not keeps_others) for worker in workers)
    return told | {"rope_digests": [] if wrong else digests}


def _with_card(body: bytes, told: dict[str, Any]) -> bytes:
    """The list of models with the method on each card."""
    listed = json.loads(body)
    for card in listed["data"]:
        card[KEY] = told
    return json.dumps(listed).encode()

"""Which model of an OpenAI-compatible server is meant, and how long its inputs may be.

Interface: https://platform.openai.com/docs/api-reference/models; `max_model_len` is vLLM's.
"""

from __future__ import annotations

from typing import NamedTuple

from longeval.backends.openai.client import Client, ServerError
from longeval.errors import LongEvalError, did_you_mean


class ServedModel(NamedTuple):
    """A model of a server."""

    name: str
    """Its name there."""
    max_length: int | None
    """Most tokens of a prompt with its answer; None where the server doesn't say."""


def find_model(client: Client, wanted: str | None) -> ServedModel:
    """Asks a server which models it has.

    Args:
        client: The server.
        wanted: The model's name there; None: the only one.

    Raises:
        LongEvalError: The server can't be reached, refuses the key, isn't one of this kind, or it can't be told which
            of its models is meant.
    """
    try:
        told = client.get("models")
    except ServerError as error:
        raise LongEvalError(f"--base-url: {error}", _NOT_ONE) from None
    cards = told.get("data") if isinstance(told, dict) else None
    if not isinstance(cards, list) or not all(isinstance(card, dict) and _is_name(card.get("id")) for card in cards):
        raise LongEvalError(f"--base-url {client.shown}: lists no models as OpenAI's interface does", _NOT_ONE)
    models = {card["id"]: card for card in cards}
    if wanted is None:
        if len(models) != 1:
            more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
            has = f"several models ({', '.join(sorted(models)[:_MOST_NAMED])}{more})" if models else "no model"
            raise LongEvalError(f"--base-url {client.shown}: has {has}", "Name one with --served-model.")
        (wanted,) = models
    if wanted not in models:
        raise LongEvalError(
            f"--served-model {wanted}: not at {client.shown}", did_you_mean(wanted, list(models)[:_MOST_NAMED])
        )
    length = models[wanted].get("max_model_len")
    return ServedModel(wanted, length if isinstance(length, int) and not isinstance(length, bool) else None)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME


_MOST_NAMED = 400
"""Models of a server that are named in a message."""
_LONGEST_NAME = 300
_NOT_ONE = "It must be an OpenAI-compatible server, and its address up to the version: http://127.0.0.1:8000/v1."

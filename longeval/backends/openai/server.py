"""The server of a request, as a plan sees it: the name of its model, how much it has room for, how it reads token ids.

A request without `--served-model` means the one model that is there now. Records and cell ids must name it: otherwise
results of one model would be taken for those of another that is served later under the same address.
Interface: https://platform.openai.com/docs/api-reference/models; `max_model_len` is vLLM's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from longeval.backends.base import AnyRequest
from longeval.backends.openai.client import own_key
from longeval.errors import LongEvalError, did_you_mean
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.backends.openai.client import Client
    from longeval.request import ModelRequest


_MOST_NAMED = 400
"""Models of a server that are named in a message."""
_LONGEST_NAME = 300
_NOT_ONE = "It must be an OpenAI-compatible server, and its address up to the version: http://127.0.0.1:8000/v1."


def check_named(spec: ModelRequest) -> None:
    """Raises LongEvalError where a request names no server."""
    if spec.base_url is None:
        raise LongEvalError(
            "--backend openai: no server named", "Give its address: --base-url http://127.0.0.1:8000/v1."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIServer:
    """A server that answered. See `longeval.backends.base.Server`."""

    base_url: str
    """Its address up to the version."""
    model: str
    """The model's name there."""
    max_length: int | None
    """Most tokens of a prompt with its answer; None where it doesn't say."""

    def check_room(self, length: int, needed: int, what: str) -> None:
        """See `Server.check_room`."""
        if self.max_length is None or needed <= self.max_length:
            return
        raise LongEvalError(
            f"--lengths {format_length(length)}: {what}, and {self.model} at {self.base_url} has room for "
            f"{self.max_length}",
            f"Ask for shorter --lengths, or start the server with more room: longeval serve --length "
            f"{format_length(length)}, or vLLM's --max-model-len {needed}.",
        )

    def check_reads(self, tokenizers: Sequence[Any], *, scores: bool) -> None:
        """See `Server.check_reads`."""
        from longeval.backends.openai.client import ServerError
        from longeval.backends.openai.dialect import Dialect

        with contextlib.closing(_client(self.base_url)) as client:
            for tokenizer in tokenizers:
                dialect = Dialect(client, self.model, tokenizer)
                try:
                    if scores:
                        dialect.route()
                    else:
                        dialect.check_reading()
                except ServerError as error:
                    remedy = "Its log may say why; ask again once it answers."
                    raise LongEvalError(f"--base-url: {error}", remedy) from None


def ask_server(spec: AnyRequest) -> tuple[AnyRequest, OpenAIServer]:
    """Asks the server of a request which model it has.

    Returns:
        The request with the model's name there and the address in one form, and the server.

    Raises:
        LongEvalError: The request names more than a server has, or the server can't be reached, refuses the key, or
            doesn't have that model (see `find_model`).
    """
    _check_one(spec)
    assert spec.base_url is not None
    with contextlib.closing(_client(spec.base_url)) as client:
        served = find_model(client, spec.served_model)
        address = client.shown
    asked = spec.replaced(base_url=address, served_model=served.name)
    return asked, OpenAIServer(base_url=address, model=served.name, max_length=served.max_length)


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
    from longeval.backends.openai.client import ServerError

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


def _check_one(spec: ModelRequest) -> None:
    """A server computes with one model and one method: of several names all but one would be wrong."""
    for flag, names, what in (("--model", spec.model, "one model"), ("--pe", spec.pe, "the one method")):
        if len(names) > 1:
            raise LongEvalError(
                f"{flag} {','.join(names)}: a server computes with {what} that it was started with",
                "Name that one; for others start a server each, and give the same --out.",
            )


def _client(base_url: str) -> Client:
    from longeval.backends.openai.client import ANSWER_S, Client

    return Client(base_url, own_key(), timeout_s=ANSWER_S, connections=1)

"""Asks the server of a request about its models and its longest prompt, and checks how it reads token ids.

A request without `--served-model` means the only model of the server. Records and cell ids name this model, so that
they can't be mistaken for those of another model that is served later at the same address.
Interface: https://platform.openai.com/docs/api-reference/models; `max_model_len` is vLLM's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longeval.backends.base import AnyRequest
from longeval.backends.openai.client import ANSWER_S, Client, ServerError, own_key
from longeval.backends.openai.dialect import Dialect
from longeval.backends.served import KEY, ServedMethod
from longeval.errors import LongEvalError, did_you_mean
from longeval.plain import canonical_json, made_from
from longeval.rope.base import RopeTable
from longeval.rope.build import ALL
from longeval.values import format_length

_MOST_NAMED = 400
"""Most models that are named in a message."""
_LONGEST_NAME = 300
_LONGEST = 1 << 21
"""Most positions, in tokens, of which a table is computed to compare it."""
_MOST_TOLD = 1 << 16
"""Characters of what a server says of its method; factors of LongRoPE take some thousands."""
_NOT_ONE = "Give the address of an OpenAI-compatible server including the version, such as http://127.0.0.1:8000/v1."


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIServer:
    """A server that answered, and the model to use on it. See `longeval.backends.base.Server`."""

    base_url: str
    """Its address including the version."""
    model: str
    """The model's name at the server."""
    max_length: int | None
    """Most tokens of a prompt with its answer; None where it doesn't say."""
    method: ServedMethod | None = None
    """Its method, where `longeval serve` started it; None: not known."""

    def proves(self, asked: ServedMethod, table: RopeTable) -> bool:
        """See `Server.proves`."""
        if self.method is None:
            return False
        flags = self.method.flags_from(asked)
        found = f"{self.base_url} computes with {self.method.described()}"
        ways = f"{' '.join(flags) or 'the --model, --scale-from and --layers that it was started with'}"
        remedy = f"Use {ways}, or start another server with longeval serve."
        if flags:
            raise LongEvalError(f"--pe {asked.pe}: is asked for with {asked.described()}, and {found}", remedy)
        if self.method.pin_length is not None or not self.method.rope_digests:
            return False
        if not self.method.holds(table):
            raise LongEvalError(f"--pe {asked.pe}: {found}, by another table of cosines and sines", remedy)
        return True

    def check_room(self, length: int, needed: int, what: str) -> None:
        """See `Server.check_room`."""
        if self.max_length is not None and needed > self.max_length:
            raise too_long(
                length, needed, f"{what}, and {self.model} at {self.base_url} has room for {self.max_length}"
            )

    def check_reads(self, tokenizers: Sequence[Any], *, scores: bool) -> None:
        """See `Server.check_reads`."""
        with contextlib.closing(_client(self.base_url)) as client:
            for tokenizer in tokenizers:
                dialect = Dialect(client, self.model, tokenizer)
                try:
                    if scores:
                        _ = dialect.route
                    else:
                        dialect.check_reading()
                except ServerError as error:
                    remedy = "Look into the server's log, and try again."
                    raise LongEvalError(f"--base-url: {error}", remedy) from None


def too_long(length: int, needed: int, what: str) -> LongEvalError:
    """The error for a window on a server that would need room for `needed` tokens; `what` says what is too long."""
    shown = format_length(length)
    return LongEvalError(
        f"--lengths {shown}: {what}",
        f"Use shorter --lengths, or start the server for longer prompts: longeval serve --length {shown}, or vLLM's "
        f"--max-model-len {needed}.",
    )


def ask_server(spec: AnyRequest) -> tuple[AnyRequest, OpenAIServer]:
    """Asks the server of a request for its model.

    Returns:
        The request with the model's name at the server and the normalised address, and the server.

    Raises:
        LongEvalError: The request has several models or methods, or see `find_model`.
    """
    for flag, names, what in (("--model", spec.model, "one model"), ("--pe", spec.pe, "the one method")):
        if len(names) > 1 or (flag, *names) == ("--pe", ALL):
            raise LongEvalError(
                f"{flag} {','.join(names)}: a server has only {what} that it was started with",
                "Give that one. For others, start a server for each, and use the same --out.",
            )
    assert spec.base_url is not None
    with contextlib.closing(_client(spec.base_url)) as client:
        server = find_model(client, spec.served_model)
    return spec.replaced(base_url=server.base_url, served_model=server.model), server


def find_model(client: Client, wanted: str | None) -> OpenAIServer:
    """Finds the model called `wanted` on a server, or with None the server's only model.

    Raises:
        LongEvalError: The server can't be reached, refuses the key, has another interface, or doesn't have the model;
            or no model is given and the server has several.
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
    is_number = isinstance(length, int) and not isinstance(length, bool)
    return OpenAIServer(
        base_url=client.shown,
        model=wanted,
        max_length=length if is_number else None,
        method=_method(models[wanted].get(KEY)),
    )


def _method(told: object) -> ServedMethod | None:
    """What a server says of its method; None where that is nothing of ours."""
    try:
        found = made_from(ServedMethod, told)
        size = len(canonical_json(told))
    except ValueError:
        return None
    return found if 2 <= found.length <= _LONGEST and size <= _MOST_TOLD else None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME


def _client(base_url: str) -> Client:
    return Client(base_url, own_key(), timeout_s=ANSWER_S, connections=1)

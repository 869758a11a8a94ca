"""What a plan learns from a server: the name of its model, how much it has room for, and how it reads our token ids.

A request without `--served-model` means the one model that is there now. Records and cell ids must name it: otherwise
results of one model would be taken for those of another that is served later under the same address.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from longeval.backends.openai.key import own_key
from longeval.errors import LongEvalError
from longeval.request import ModelRequest
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.backends.openai.client import Client

AnyRequest = TypeVar("AnyRequest", bound=ModelRequest)


class Server(NamedTuple):
    """A server that answered."""

    shown: str
    """Its model and address, for messages."""
    max_length: int | None
    """Most tokens of a prompt with its answer; None where it doesn't say."""


def ask_server(spec: AnyRequest) -> tuple[AnyRequest, Server | None]:
    """Asks the server of a request which model it has.

    Args:
        spec: The request.

    Returns:
        The request with the model's name there and the address in one form, and the server; with another backend, the
        request as it is and None.

    Raises:
        LongEvalError: The request names more than a server has, or the server can't be reached, refuses the key, or
            doesn't have that model (see `find_model`).
    """
    if spec.backend != "openai":
        return spec, None
    from longeval.backends.openai.served import find_model

    _check_one(spec)
    with contextlib.closing(_client(spec)) as client:
        served = find_model(client, spec.served_model)
        address = client.shown
    asked = spec.replaced(base_url=address, served_model=served.name)
    return asked, Server(shown=f"{served.name} at {address}", max_length=served.max_length)


def _check_one(spec: ModelRequest) -> None:
    """A server computes with one model and one method: of several names all but one would be wrong."""
    for flag, names, what in (("--model", spec.model, "one model"), ("--pe", spec.pe, "the one method")):
        if len(names) > 1:
            raise LongEvalError(
                f"{flag} {','.join(names)}: a server computes with {what} that it was started with",
                "Name that one; for others start a server each, and give the same --out.",
            )


def check_reads(spec: ModelRequest, tokenizers: Sequence[Any], *, scores: bool) -> None:
    """Makes sure that a request's server reads token ids as our tokenizer writes them, where it shows that.

    Args:
        spec: The request, as `ask_server` returned it; nothing is asked with another backend.
        tokenizers: transformers' tokenizers of its models.
        scores: Whether log-probabilities of prompts are needed; a server without them is refused then.

    Raises:
        LongEvalError: It serves another model, or doesn't understand what is to be asked.
    """
    if spec.backend != "openai":
        return
    from longeval.backends.openai.client import ServerError
    from longeval.backends.openai.dialect import Dialect

    assert spec.served_model is not None
    with contextlib.closing(_client(spec)) as client:
        for tokenizer in tokenizers:
            dialect = Dialect(client, spec.served_model, tokenizer)
            try:
                if scores:
                    dialect.route()
                else:
                    dialect.check_reading()
            except ServerError as error:
                raise LongEvalError(f"--base-url: {error}", "Its log may say why; ask again once it answers.") from None


def check_room(server: Server | None, length: int, needed: int, what: str) -> None:
    """Refuses a window that a server has no room for, where it says how much it has.

    Args:
        server: The server; None: there is none.
        length: The window in tokens.
        needed: Tokens of the longest prompt with what is generated, at most `length` and one more.
        what: A clause that says what takes so many.

    Raises:
        LongEvalError: It doesn't fit.
    """
    if server is None or server.max_length is None or needed <= server.max_length:
        return
    raise LongEvalError(
        f"--lengths {format_length(length)}: {what}, and {server.shown} has room for {server.max_length}",
        f"Ask for shorter --lengths, or start the server with more room: longeval serve --length "
        f"{format_length(length)}, or vLLM's --max-model-len {needed}.",
    )


def _client(spec: ModelRequest) -> Client:
    from longeval.backends.openai.client import ANSWER_S, Client

    assert spec.base_url is not None
    return Client(spec.base_url, own_key(), timeout_s=ANSWER_S, connections=1)

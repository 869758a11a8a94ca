"""The key of an OpenAI-compatible server: where it is read from, and what one may consist of."""

from __future__ import annotations

import os

from longeval.errors import LongEvalError

KEY_VARIABLE = "LONGEVAL_API_KEY"
"""Where the key is read from: on a command line, in a spec or in a record somebody could read it."""


def own_key() -> str | None:
    """The key that the environment holds, fit for a header; None for none.

    Raises:
        LongEvalError: It can't be sent. It is not shown, since it may be nearly right.
    """
    return checked_key(os.environ.get(KEY_VARIABLE))


def checked_key(key: str | None) -> str | None:
    """See `own_key`."""
    stripped = (key or "").strip()
    if not (stripped.isascii() and stripped.isprintable() and " " not in stripped):
        raise LongEvalError(
            f"{KEY_VARIABLE}: has characters in it that no header can hold",
            "Use ASCII letters and digits, without blanks and line breaks.",
        )
    return stripped or None

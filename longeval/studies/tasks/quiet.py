"""Keeps what lm-eval and the code of its tasks say off the user's terminal while they work for us.

lm-eval logs, warns and prints for people who run lm-eval; what concerns our user comes back as a value or an exception.
`-v` lets all of it through, to stderr: stdout may be a pipe that waits for JSON. Stderr itself is left alone otherwise,
since our own progress is drawn there, from another thread.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences logging, warnings, prints and progress bars inside the block, unless longeval itself is verbose."""
    if logging.getLogger("longeval").isEnabledFor(logging.DEBUG):
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _without_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Switches off bars of `tqdm`, which task code draws as it likes."""
    from tqdm import std  # type: ignore[import-untyped]  # its annotations are a package of their own

    bar: Any = std.tqdm
    original = bar.__init__
    bar.__init__ = functools.partialmethod(original, disable=True)
    try:
        yield
    finally:
        bar.__init__ = original

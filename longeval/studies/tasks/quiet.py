"""Keeps what lm-eval and the code of its tasks say off the user's terminal while they work for us.

lm-eval logs, warns and prints for people who run lm-eval; what concerns our user comes back as a value or an exception.
`-v` lets all of it through. Stderr itself is left alone: our own progress is drawn there, from another thread.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silences logging, warnings and prints inside the block, unless longeval itself is verbose."""
    if logging.getLogger("longeval").isEnabledFor(logging.DEBUG):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

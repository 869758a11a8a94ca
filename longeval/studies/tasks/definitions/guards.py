"""What holds while lm-eval builds a task: a seed, no code from the hub, no waiting for a hub that is out of reach."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from longeval.data.corpora import HubDataset
from longeval.data.hub import HubUnavailableError, resolve_revision
from longeval.errors import LongEvalError


@contextlib.contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Gives attributes of a module or class other values inside the block."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences logging, warnings, prints and progress bars inside the block, unless longeval itself is verbose.

    lm-eval and the code of its tasks speak to people who run lm-eval; what concerns our user comes back as a value or
    an exception. `-v` lets all of it through, to stderr: stdout may be a pipe that waits for JSON. Stderr itself is
    left alone otherwise, since our own progress is drawn there, from another thread.
    """
    if logging.getLogger("longeval").isEnabledFor(logging.DEBUG):
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    from tqdm import std  # type: ignore[import-untyped]  # its annotations are a package of their own

    no_bars = functools.partialmethod(std.tqdm.__init__, disable=True)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), changed(std.tqdm, __init__=no_bars):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Sets the generators that task code draws from, and puts them back: a task is the same whatever was built before.

    Seed 0 is what lm-eval's own runs begin with (random 0, numpy 1234).
    """
    import numpy as np

    python, array = random.getstate(), np.random.get_state()  # the generator that lm-eval's tasks use
    random.seed(seed)
    np.random.seed((1234 + seed) % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def forbid_metric_scripts() -> None:
    """Makes `evaluate.load` refuse, for the rest of the process: it downloads Python from the hub and runs it.

    Task code calls it when it is imported, while a task is built, or at the first score. The package takes seconds to
    import and nothing else of it is used, so a stand-in takes its place where it isn't imported yet.
    """
    stand_in = ModuleType("evaluate", "A stand-in for the package, whose scripts aren't run.")
    stand_in.__spec__ = ModuleSpec("evaluate", None)  # who looks for the package finds it
    vars(sys.modules.setdefault("evaluate", stand_in))["load"] = _refuse


def _refuse(path: str, *args: Any, **kwargs: Any) -> Any:
    raise LongEvalError(
        f"metric {path} is a script of the hub, which would be downloaded and executed",
        "longeval runs no such code; leave out the task that asks for it.",
    )


@functools.cache
def why_unreachable(hub_id: str) -> str | None:
    """Asks the hub, once, whether it has a data set; returns why not, or None if it has. Fails within seconds."""
    try:
        resolve_revision(HubDataset(id=hub_id, field="", split=""))
    except HubUnavailableError as error:
        return f"{error}. {error.remedy}".rstrip(". ")
    return None


@contextlib.contextmanager
def hub_offline(off: bool) -> Iterator[None]:
    """With `off`, clients of the hub look into their cache only, instead of trying again for half a minute."""
    import datasets
    import huggingface_hub

    state = {"HF_HUB_OFFLINE": True} if off else {}
    with changed(datasets.config, **state), changed(huggingface_hub.constants, **state):
        yield

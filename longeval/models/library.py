"""Helpers for transformers: a faster import, silenced messages, and models without weights."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def import_transformers_lean() -> None:
    """Imports transformers without scikit-learn and scipy, and without pandas and pyarrow, which these import.

    If they are installed, transformers imports scikit-learn for assisted decoding and scipy for losses of object
    detection. longeval uses neither, and without them a model's configuration is read in two thirds of the time.
    """
    import transformers.utils
    from transformers.utils import import_utils

    for module in (import_utils, transformers.utils):
        vars(module)["is_sklearn_available"] = vars(module)["is_scipy_available"] = lambda: False


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' logging, warnings and progress bars inside the block, and restores them afterwards.

    They are advice for people who call transformers themselves (set this flag, pass that argument); what concerns our
    user comes back as an exception. Download bars of the hub stay, on a terminal only: gigabytes should be seen to
    arrive. What is printed on stdout is dropped: gptqmodel shows a banner there, and stdout is for results.
    """
    import huggingface_hub.utils
    from transformers.utils import logging

    hub: Any = huggingface_hub.utils
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_silent = hub.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()  # also switches the hub's bars off
    if sys.stderr.isatty() and not hub_silent:
        hub.enable_progress_bars()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_silent:
            hub.disable_progress_bars()
        else:
            hub.enable_progress_bars()


def empty_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """Builds the causal language model of a `PreTrainedConfig` on the "meta" device, without memory for weights."""
    import torch
    import transformers

    with torch.device("meta"), quiet_transformers():
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)

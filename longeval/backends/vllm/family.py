"""Model families that vLLM can't run under a table of ours, or doesn't run as transformers does.

Most are recognised by the model's configuration. Families whose code in vLLM doesn't take a table are recognised only
by the error with which the installed vLLM ends (`remedy_for_family`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longeval.errors import LongEvalError

_QUERY_SCALING = "llama_4_scaling_beta"
"""Grows queries with their position. transformers reads it from `rope_parameters` (Ministral 3, Mistral 4), vLLM 0.32
from a key of Mistral's own format, `llama_4_scaling`, which such configurations lack: it leaves the growth out."""

_REMEDY = "Use another model, or --backend hf (ppl and tasks)."


def check_family(name: str, config: Any) -> None:
    """Raises LongEvalError for a model that `--backend vllm` would refuse, or make another one of.

    Args:
        name: As the user named the model.
        config: transformers' PreTrainedConfig.
    """
    text = config.get_text_config()
    if text is not config:
        raise LongEvalError(
            f"--model {name}: can also see or hear, and vLLM can't be given the table of such a model",
            _REMEDY,
        )
    given = getattr(text, "rope_parameters", None) or {}
    for settings in (given, *given.values()):
        if isinstance(settings, Mapping) and settings.get(_QUERY_SCALING):
            raise LongEvalError(
                f"--model {name}: scales its queries by position ({_QUERY_SCALING}), which vLLM leaves out for "
                "models in this format: it would be another model beyond its original length",
                _REMEDY,
            )


PLUGINS_VARIABLE = "VLLM_PLUGINS"
"""Where it is set, vLLM loads only the plugins that it names, separated by commas."""

_NO_TABLE = re.compile(r"KeyError: '?longeval_table")
"""How transformers' code says that it doesn't know our type: its functions of rope types are in a dictionary."""

_NO_PLUGIN = re.compile(r"Unknown RoPE scaling type '?longeval_table")
"""How vLLM's own `get_rope` says it, where ours didn't take its place."""


def remedy_for_family(problem: str, *, serving: bool = False) -> str | None:
    """What to do about an engine that didn't start because it doesn't take our table; None for any other reason.

    Args:
        problem: Its own reason, as `log.cause_of` finds it.
        serving: Whether it is a server's, for which there is no other backend.
    """
    if _NO_TABLE.search(problem):
        return (
            "vLLM runs this family through transformers' code, which doesn't take our table (docs/vllm.md lists such "
            f"families): {'serve a model of another one' if serving else 'use --backend hf'}."
        )
    if _NO_PLUGIN.search(problem):
        return (
            "longeval's plugin wasn't loaded, or failed, in vLLM's process: -v shows its log; install longeval into "
            f"the same Python, and unset {PLUGINS_VARIABLE}."
        )
    return None

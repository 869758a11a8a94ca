"""Models that vLLM can't run under a table of ours, or doesn't run as transformers does: told from the configuration.

Families whose code in vLLM doesn't take a table can only be told by the vLLM that is installed: see
`backends.vllm_options.remedy_for_family`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longeval.errors import LongEvalError

_QUERY_SCALING = "llama_4_scaling_beta"
"""Grows queries with their position. transformers reads it from `rope_parameters` (Ministral 3, Mistral 4), vLLM 0.32
from a key of Mistral's own format, `llama_4_scaling`, which such configurations lack: it leaves the growth out."""

_REMEDY = "Use another model, or --backend hf (ppl and tasks)."


def check_for_vllm(name: str, config: Any) -> None:
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

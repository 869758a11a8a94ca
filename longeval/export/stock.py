"""Checks with the installed transformers that an exported configuration gives our frequencies.

The family's rotary module is built from the new `config.json` and run at near and far positions, more than once,
because some modules choose their frequencies when they see a long sequence. If its cosines differ from ours for any
reason, the export is refused.

Shapes: F features, T positions, D rotary dimensions = 2F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError, reason
from longeval.export.encoding import Encoding, StockError, multiplied, stock_error
from longeval.export.form import GLOBAL_LAYERS
from longeval.models.folder import read_config
from longeval.models.library import empty_model, quiet_transformers
from longeval.models.resolve import ModelRef, config_path
from longeval.rope.base import FloatArray, RopeTable

_CLOSE = 1e-6
"""Largest relative error of float32 frequencies and cosines that rounding explains."""

INTERLEAVED = frozenset(
    ["cohere", "cohere2", "cohere2_moe", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "glm", "glm4"]
)
"""Model types whose rotated pairs are neighbours. vLLM's longrope class can only rotate halves: vLLM 0.32 fails on
these types, except on ERNIE 4.5 (and on GLM before 0.32), which it rotates wrongly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stock:
    """The result of stock transformers with an exported configuration."""

    transformers: str
    """Version of transformers."""
    error: StockError
    """Its largest error up to the target length."""

    def to_json(self) -> dict[str, Any]:
        """The entry `engine` of an export's note."""
        return {"name": "transformers", "version": self.transformers, **self.error.to_json()}


def check_stock_type(ref: ModelRef) -> None:
    """Raises LongEvalError for a model that needs Python code of its own, which is not exported."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = read_config(config_path(ref), ref.name).get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise LongEvalError(
            f"--model {ref.name}: model type {model_type!r} needs Python code of its own, which is not exported",
            "Export a model of a family that transformers knows.",
        )


def check_stock(folder: str, encoding: Encoding, original: Any) -> Stock:
    """Compares the rotary module that stock transformers builds from `folder/config.json` with the encoding.

    `original` is the model's unchanged PreTrainedConfig, for layers that must stay as they were.

    Raises:
        LongEvalError: transformers can't read it, or gives other frequencies than ours.
    """
    import transformers

    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            module = _rotary_module(config, encoding)
            errors = _check_module(module, encoding, original)
    except LongEvalError:
        raise
    except Exception as error:  # families raise any kind of error for settings that they don't understand
        raise _refused(encoding, reason(error)) from error
    worst = max(errors, key=lambda error: error.largest)
    return Stock(transformers=transformers.__version__, error=worst)


def _rotary_module(config: Any, encoding: Encoding) -> Any:
    """The family's rotary module on the CPU, without the weights of the model."""
    modules = [
        module
        for module in empty_model(config).modules()
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "rope_type")
    ]
    if len(modules) != 1:
        raise _refused(encoding, f"it has {len(modules)} rotary modules")
    return type(modules[0])(modules[0].config)


def _check_module(module: Any, encoding: Encoding, original: Any) -> list[StockError]:
    """The error for each layer type that the export scales. Raises LongEvalError if a layer type is wrong."""
    if not isinstance(module.rope_type, dict):
        return [_check_kind(module, None, encoding.table, encoding)]
    before = _rotary_module(original, encoding)
    errors = []
    for kind in module.rope_type:
        table = encoding.table if kind == GLOBAL_LAYERS else encoding.table.local
        if table is not None:
            errors.append(_check_kind(module, kind, table, encoding))
        elif not np.array_equal(_frequencies(module, kind), _frequencies(before, kind)):
            raise _refused(encoding, f"its {kind} layers would change")
    return errors


def _check_kind(module: Any, kind: str | None, table: RopeTable, encoding: Encoding) -> StockError:
    """Checks that one layer type has our frequencies and attention factor; returns its error."""
    far = encoding.target_length - 1
    probes = sorted({0, 1, min(encoding.native_length, far), far})
    for positions in ([far], probes, [0, 1]):  # in some families a second long pass, or a short pass after it, differs
        cos_TF, sin_TF = _forward(module, kind, positions, len(table.inv_freq_F))
        inv_freq_F = _frequencies(module, kind)
        if inv_freq_F.shape != table.inv_freq_F.shape:
            raise _refused(encoding, f"it rotates {2 * len(inv_freq_F)} dimensions, not {2 * len(table.inv_freq_F)}")
        off = float(np.abs(inv_freq_F / table.inv_freq_F - 1.0).max())
        if not off <= _CLOSE:
            raise _refused(encoding, f"its frequencies are off by {off:.1e}")
        angle_TF = multiplied(inv_freq_F)(np.array(positions, dtype=np.float32))
        for got_TF, function in ((cos_TF, np.cos), (sin_TF, np.sin)):
            wanted_TF = function(angle_TF.astype(np.float64)) * table.attention_factor
            if not float(np.abs(got_TF - wanted_TF).max()) <= _CLOSE * table.attention_factor:
                raise _refused(encoding, "its cosines are not those of its frequencies and our attention factor")
    stock = multiplied(_frequencies(module, kind))
    return stock_error(stock, table.attention_factor, table, encoding.target_length)


def _forward(module: Any, kind: str | None, positions: list[int], num_features: int) -> tuple[FloatArray, FloatArray]:
    """The module's cosines and sines at some positions, shape (T, F) each."""
    import torch

    position_ids_BT = torch.tensor([positions])
    parts = module(torch.zeros(1, 1, 1), position_ids_BT, *(() if kind is None else (kind,)))
    columns = []
    for part_BTD in parts:
        part_TD = part_BTD[0].to(torch.float64).numpy()
        if part_TD.shape[-1] != 2 * num_features:
            raise ValueError(f"cos and sin have {part_TD.shape[-1]} columns, not {2 * num_features}")
        halves = np.array_equal(part_TD[:, :num_features], part_TD[:, num_features:])
        columns.append(part_TD[:, :num_features] if halves else part_TD[:, ::2])
    return columns[0], columns[1]


def _frequencies(module: Any, kind: str | None) -> npt.NDArray[np.float32]:
    """The module's current float32 frequencies, shape (F,)."""
    frequencies: npt.NDArray[np.float32] = getattr(module, "inv_freq" if kind is None else f"{kind}_inv_freq").numpy()
    return frequencies


def _refused(encoding: Encoding, why: str) -> LongEvalError:
    """The error for a family that gives other frequencies than ours."""
    import transformers

    return LongEvalError(
        f"--model {encoding.rope.model}: stock transformers {transformers.__version__} doesn't give a "
        f"{encoding.rope.model_type} model these frequencies from its configuration ({why})",
        "Such a model can't be exported; longeval itself measures it with any method.",
    )


def vllm_reason(model_type: str) -> str | None:
    """The reason why vLLM can't use an export of this family, or None if none is known."""
    if model_type in INTERLEAVED:
        return (
            f"not for vLLM: its longrope rotates halves of a head, and a {model_type} model neighbouring pairs; "
            "it refuses this folder or scores it wrongly"
        )
    return None

"""The rotary module that vLLM's models get: one float32 table, from float64 angles, cast to the model's dtype last.

Imported only inside vLLM's processes, through the plugin and as the extension of vLLM's worker.

Shapes: T positions, F features, D = 2F rotated dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from longeval.backends.vllm.rope import ROPE_TYPE, EngineTable, from_parameters
from longeval.hf.parameters import NATIVE, ROPE_TYPES, read_parameters
from longeval.rope.base import CosSin, Geometry, table_digest
from longeval.rope.build import build_table, make_parameters


def table_of(parameters: Mapping[str, Any], head_size: int, max_position: int) -> EngineTable | None:
    """The table that `rope_parameters` mean, or None where their type isn't ours.

    Args:
        parameters: As vLLM hands them to `get_rope`: of ROPE_TYPE, or of a type that `longeval.hf` registers, as in a
            model that was trained and saved with it.
        head_size: Dimensions of a head.
        max_position: What the model's file says; an engine that takes longer prompts gets a longer table.

    Raises:
        LongEvalError: Impossible settings of one of the types of `longeval.hf`.
    """
    rope_type = parameters.get("rope_type")
    if rope_type == ROPE_TYPE:
        return from_parameters(parameters)
    if rope_type not in ROPE_TYPES:
        return None
    settings = read_parameters(str(rope_type), parameters)
    part = parameters.get("partial_rotary_factor")
    geometry = Geometry(
        head_dim=int(head_size * (1.0 if part is None else part)),
        theta=float(parameters["rope_theta"]),
        native_length=settings.native_length or int(parameters[NATIVE]),
        factor=settings.factor,
    )
    table = build_table(str(rope_type), geometry, make_parameters(settings.name.base, settings.arguments))
    config = get_current_vllm_config_or_none()  # of the engine that is being built
    engine_length = 0 if config is None or config.model_config is None else int(config.model_config.max_model_len)
    return EngineTable(table, max(max_position, engine_length))


class VLLMTableRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]  # vLLM may not be installed where types are checked
    """Drop-in for vLLM's `RotaryEmbedding`, whose kernels only read `cos_sin_cache` (T, 2F), cosines then sines.

    Args:
        head_size: Dimensions of a head.
        engine_table: What to hold, and for how many positions.
        is_neox_style: Whether feature j sits at dimensions (j, j+F), else (2j, 2j+1).
        dtype: What the engine's cache is cast to, last of all.
    """

    def __init__(self, head_size: int, engine_table: EngineTable, *, is_neox_style: bool, dtype: torch.dtype) -> None:
        table, length = engine_table
        self.longeval_table: CosSin = table.cos_sin(np.arange(length, dtype=np.int64))
        rotary_dim = 2 * len(table.inv_freq_F)
        super().__init__(head_size, rotary_dim, length, 0.0, is_neox_style, dtype)

    def _compute_cos_sin_cache(self) -> torch.Tensor:
        # vLLM builds models under their device and moves nothing there afterwards; from_numpy would stay on the host.
        return torch.as_tensor(np.concatenate(self.longeval_table, axis=1), device=torch.get_default_device())

    def is_intact(self) -> bool:
        """Whether the engine's cache still is `longeval_table`, cast to the cache's dtype."""
        cache = self.cos_sin_cache.detach().cpu()
        expected = torch.from_numpy(np.concatenate(self.longeval_table, axis=1))
        return torch.equal(cache, expected.to(cache.dtype))


class HeldTables(TypedDict):
    """What one worker's model rotates by."""

    digests: list[str]
    """Of the tables of our rotary modules for the asked positions, each once."""
    others: list[str]
    """Classes of rotary modules that aren't ours."""
    problems: list[str]
    """What is wrong with tables of ours."""


class RopeWitness:
    """What the backend asks of vLLM's worker processes, by `collective_rpc`: which tables their models rotate by.

    vLLM mixes this class into its worker class (`worker_extension_cls`).
    """

    def longeval_held_tables(self, length: int) -> HeldTables:
        """The tables that this worker's part of the model holds for positions 0 … length−1."""
        model: Any = self.get_model()  # type: ignore[attr-defined]  # vLLM's worker has it
        digests, others, problems = set(), set(), set()
        for module in model.modules():  # each once, however many layers share it
            if isinstance(module, VLLMTableRotaryEmbedding):
                cos_TF, sin_TF = module.longeval_table
                if not module.is_intact():
                    problems.add("the engine's table of cosines and sines isn't the one it was given")
                elif len(cos_TF) < length:
                    problems.add(f"the engine holds {len(cos_TF)} positions, not {length}")
                else:
                    digests.add(table_digest(CosSin(cos_TF[:length], sin_TF[:length])))
            elif hasattr(module, "cos_sin_cache"):
                others.add(type(module).__name__)
        return HeldTables(digests=sorted(digests), others=sorted(others), problems=sorted(problems))

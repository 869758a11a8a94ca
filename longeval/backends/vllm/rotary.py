"""The rotary module for vLLM's models, with a float32 table from float64 angles, cast to the model's dtype at the end.

It is imported only in vLLM's processes, by the plugin and as the extension of vLLM's worker.

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
from longeval.rope.build import build_table, read_arguments


def table_of(parameters: Mapping[str, Any], head_size: int, max_position: int) -> EngineTable | None:
    """The table for some `rope_parameters`, or None if their type isn't ours.

    Args:
        parameters: The argument of vLLM's `get_rope`. Its type is ROPE_TYPE, or one of `longeval.hf` if the model was
            trained and saved with it.
        head_size: Dimensions of a head.
        max_position: The model's number of positions; an engine for longer prompts gets a longer table.

    Raises:
        LongEvalError: Impossible settings of a type of `longeval.hf`.
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
    method, resonance = read_arguments(settings.name, settings.arguments)
    table = build_table(str(rope_type), geometry, method, resonance=resonance)
    config = get_current_vllm_config_or_none()  # the config of the engine that is being built
    engine_length = 0 if config is None or config.model_config is None else int(config.model_config.max_model_len)
    return EngineTable(table, max(max_position, engine_length))


class VLLMTableRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]  # vLLM may not be installed where types are checked
    """Replaces vLLM's `RotaryEmbedding`, whose kernels only read `cos_sin_cache` (T, 2F), cosines then sines.

    Args:
        head_size: Dimensions of a head.
        engine_table: The table and its number of positions.
        is_neox_style: Whether feature j is at dimensions (j, j+F), else at (2j, 2j+1).
        dtype: The dtype to which the engine's cache is cast at the end.
    """

    def __init__(self, head_size: int, engine_table: EngineTable, *, is_neox_style: bool, dtype: torch.dtype) -> None:
        table, length = engine_table
        self.longeval_table: CosSin = table.cos_sin(np.arange(length, dtype=np.int64))
        rotary_dim = 2 * len(table.inv_freq_F)
        super().__init__(head_size, rotary_dim, length, 0.0, is_neox_style, dtype)

    def _compute_cos_sin_cache(self) -> torch.Tensor:
        # vLLM builds models on their device and moves nothing afterwards; from_numpy would stay on the host.
        return torch.as_tensor(np.concatenate(self.longeval_table, axis=1), device=torch.get_default_device())

    def is_intact(self) -> bool:
        """Whether the engine's cache still equals `longeval_table`, cast to the cache's dtype."""
        cache = self.cos_sin_cache.detach().cpu()
        expected = torch.from_numpy(np.concatenate(self.longeval_table, axis=1))
        return torch.equal(cache, expected.to(cache.dtype))


class HeldTables(TypedDict):
    """The rotary tables of one worker's model."""

    digests: list[str]
    """Digests of the tables in our rotary modules for the requested positions, without duplicates."""
    others: list[str]
    """Classes of rotary modules that aren't ours."""
    problems: list[str]
    """Problems of our tables."""


class RopeWitness:
    """Reports the tables of a worker's model to the backend, which calls it by `collective_rpc`.

    vLLM mixes this class into its worker class (`worker_extension_cls`).
    """

    def longeval_held_tables(self, length: int) -> HeldTables:
        """The tables that this worker's part of the model holds for positions 0 … length−1."""
        model: Any = self.get_model()  # type: ignore[attr-defined]  # vLLM's worker has it
        digests, others, problems = set(), set(), set()
        for module in model.modules():  # a module that layers share comes once
            if isinstance(module, VLLMTableRotaryEmbedding):
                cos_TF, sin_TF = module.longeval_table
                if not module.is_intact():
                    problems.add("the engine's table of cosines and sines was changed")
                elif len(cos_TF) < length:
                    problems.add(f"the engine holds {len(cos_TF)} positions, not {length}")
                else:
                    digests.add(table_digest(CosSin(cos_TF[:length], sin_TF[:length])))
            elif hasattr(module, "cos_sin_cache"):
                others.add(type(module).__name__)
        return HeldTables(digests=sorted(digests), others=sorted(others), problems=sorted(problems))

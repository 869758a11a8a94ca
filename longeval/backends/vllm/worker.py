"""What the backend asks of vLLM's worker processes: which tables their models rotate by.

vLLM mixes `RopeWitness` into its worker class (`worker_extension_cls`) and calls its methods by `collective_rpc`.
"""

from __future__ import annotations

from typing import Any, TypedDict

from longeval.rope.base import CosSin, table_digest


class HeldTables(TypedDict):
    """What one worker's model holds."""

    digests: list[str]
    """Of the tables of our rotary modules for the asked positions, each once."""
    others: list[str]
    """Classes of rotary modules that aren't ours."""
    error: str | None
    """What is wrong with a table."""


class RopeWitness:
    """Methods for vLLM's workers."""

    def longeval_held_tables(self, length: int) -> HeldTables:
        """The tables that this worker's part of the model holds for positions 0 … length−1."""
        from longeval.backends.vllm.rotary import TableRotaryEmbedding

        model: Any = self.get_model()  # type: ignore[attr-defined]  # vLLM's worker has it
        digests: set[str] = set()
        others: set[str] = set()
        for module in model.modules():  # each once, however many layers share it
            if isinstance(module, TableRotaryEmbedding):
                try:
                    held = module.held()
                except ValueError as error:
                    return HeldTables(digests=[], others=[], error=str(error))
                if len(held.cos_TF) < length:
                    reason = f"the engine holds {len(held.cos_TF)} positions, not {length}"
                    return HeldTables(digests=[], others=[], error=reason)
                digests.add(table_digest(CosSin(held.cos_TF[:length], held.sin_TF[:length])))
            elif hasattr(module, "cos_sin_cache"):
                others.add(type(module).__name__)
        return HeldTables(digests=sorted(digests), others=sorted(others), error=None)

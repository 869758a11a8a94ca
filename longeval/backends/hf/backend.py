"""The `hf` backend: a transformers causal language model, run window by window.

The decoder runs once over a window; logits are computed only at positions whose next token is scored (see `parts`).
Choices and answers share the key/value caches of prompts that begin alike (see `prefix_cache`, `hf_answers`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from longeval.backends.base import Backend, ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.backends.hf import answers as hf_answers
from longeval.backends.hf import memory
from longeval.backends.hf.parts import LOGITS_BYTES, ModelParts, memory_told, replace_rotary
from longeval.errors import LongEvalError
from longeval.models.device import device_name
from longeval.rope.base import RopeTable

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


__all__ = ["LOGITS_BYTES", "HFBackend", "load_backend"]


class HFBackend:
    """A loaded transformers model with its rotary module replaced. See `Backend`.

    Args:
        model: A causal language model in eval mode. It is changed: its rotary module is replaced for good.

    Raises:
        LongEvalError: The rotary embedding can't be found or replaced, or the model has no separable decoder.
    """

    name = "hf"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._parts = ModelParts(model)
        self._rotary, self.shipped = replace_rotary(model, model.config.model_type)
        self.device = device_name(str(self._parts.device))

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`."""
        self._rotary.serve(table, length)

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`."""
        return self._rotary.digest(length)

    @torch.inference_mode()
    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        assert 1 <= first_scored <= len(tokens_T)
        with memory_told():
            ids_T = torch.from_numpy(tokens_T.astype(np.int64)).to(self._parts.device)
            # The last token predicts nothing that is scored: it stays out of the pass.
            decoded = self._parts.decoder(input_ids=ids_T[None, :-1], use_cache=False)
            hidden_SH = decoded.last_hidden_state[0, first_scored - 1 :]
            return self._parts.score(decoded, hidden_SH, ids_T[first_scored:]).nll_S.cpu().numpy()

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`."""
        return hf_answers.choices(self._parts, requests, self._rotary.length)

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`."""
        return hf_answers.generate(self._parts, requests, tokenizer, self._rotary.length)

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`."""
        if self._parts.device.type == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        else:
            memory.reset_peak()

    def peak_memory_bytes(self) -> int | None:
        """See `Backend.peak_memory_bytes`."""
        if self._parts.device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        return memory.peak_bytes() if self._parts.device.type == "cpu" else None

    def close(self) -> None:
        """See `Backend.close`."""
        del self.model, self._parts, self._rotary, self.shipped
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_backend(model: PreparedModel) -> Backend:
    """Loads a prepared model into the `hf` backend, and makes sure that its frequencies are what its config says."""
    backend = HFBackend(model.load())
    for length in model.rope.shipped.probes():
        held, planned = backend.shipped.table(length), model.rope.shipped_table(length)
        same = held.inv_freq_F.shape == planned.inv_freq_F.shape and np.allclose(
            held.inv_freq_F, planned.inv_freq_F, rtol=1e-5, atol=0
        )
        if not same or abs(held.attention_factor - planned.attention_factor) > 1e-5:
            raise LongEvalError(
                f"--model {model.name}: its rotary embedding doesn't hold the frequencies that its configuration says",
                "Its RoPE is of a kind that longeval doesn't know; use a model of another family.",
            )
    return backend

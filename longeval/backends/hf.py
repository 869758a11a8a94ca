"""The `hf` backend: a transformers causal language model, run window by window.

The decoder runs once over a window; logits are computed in chunks and only at positions whose next token is scored, so
no tokens × vocabulary matrix ever exists. The chunk's logits come from the model's own forward with its decoder stood
in for, so whatever a family does between hidden states and logits (soft caps, scales) is done by the family's own
code.

Shapes: B batch (1), T tokens, S scored tokens, C a chunk of them, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longeval.backends import memory
from longeval.backends.base import OutOfMemoryError
from longeval.backends.rotary import replace_rotary
from longeval.errors import LongEvalError
from longeval.models.load import is_out_of_memory
from longeval.rope.base import RopeTable

LOGITS_BYTES = 128 * 1024 * 1024
"""Size of the float32 logits of one chunk: large enough for full speed, small beside any model."""


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
        self._decoder: Any = getattr(model, model.base_model_prefix, None)
        if self._decoder is None:
            raise LongEvalError(f"--model: a {model.config.model_type} model has no decoder apart from its head")
        self._rotary, self.shipped = replace_rotary(model, model.config.model_type)
        self._device: torch.device = model.get_input_embeddings().weight.device
        self.device = _device_name(self._device)

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
        try:
            return self._score(torch.from_numpy(tokens_T.astype(np.int64)).to(self._device), first_scored)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(str(error).splitlines()[0] if str(error) else "MemoryError") from error

    def _score(self, tokens_T: torch.Tensor, first_scored: int) -> npt.NDArray[np.float32]:
        # The last token predicts nothing that is scored: it stays out of the pass.
        decoded = self._decoder(input_ids=tokens_T[None, :-1], use_cache=False)
        hidden_SH = decoded.last_hidden_state[0, first_scored - 1 :]
        targets_S = tokens_T[first_scored:].to(hidden_SH.device)
        nll_S = torch.empty(len(targets_S), dtype=torch.float32, device=hidden_SH.device)
        chunk = max(1, LOGITS_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        with self._head(decoded) as head:
            for start in range(0, len(targets_S), chunk):
                logits_CV = head(hidden_SH[start : start + chunk])
                targets_C = targets_S[start : start + chunk].to(logits_CV.device)
                nll_C = torch.nn.functional.cross_entropy(logits_CV.float(), targets_C, reduction="none")
                nll_S[start : start + chunk] = nll_C.to(nll_S.device)
        return nll_S.cpu().numpy()

    @contextmanager
    def _head(self, decoded: Any) -> Iterator[Any]:
        """Yields a function from hidden states (C, H) to logits (C, V): the model's forward, its decoder stubbed."""
        stand_in = copy.copy(decoded)  # of the family's own class, with whatever else its forward looks at
        own_forward = self._decoder.__dict__.get("forward")  # an instance attribute only where accelerate put one
        self._decoder.forward = lambda *_, **__: stand_in
        unused_BT = torch.zeros(1, 1, dtype=torch.long, device=self._device)

        def head(hidden_CH: torch.Tensor) -> torch.Tensor:
            stand_in.last_hidden_state = hidden_CH[None]
            logits_CV: torch.Tensor = self.model(input_ids=unused_BT, use_cache=False).logits[0]
            return logits_CV

        try:
            yield head
        finally:
            if own_forward is None:
                del self._decoder.forward
            else:
                self._decoder.forward = own_forward

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`."""
        if self._device.type == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        else:
            memory.reset_peak()

    def peak_memory_bytes(self) -> int | None:
        """See `Backend.peak_memory_bytes`."""
        if self._device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        return memory.peak_bytes() if self._device.type == "cpu" else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({_processor_name()}, {torch.get_num_threads()} threads)"


def _processor_name() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

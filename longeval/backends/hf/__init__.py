"""Models run by transformers in this process, with a rotary module of ours in the place of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longeval.backends.base import BACKENDS, Backend, Capabilities

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel
    from longeval.request import ModelRequest


def _load(spec: ModelRequest, model: PreparedModel) -> Backend:
    from longeval.backends.hf.backend import load_backend

    return load_backend(model)


BACKENDS.register(
    "hf",
    Capabilities(
        load=_load,
        heeds=frozenset({"device_map", "attn", "device", "dtype", "batch_size", "adapter"}),
        estimates=True,
        transformers_attention=True,
    ),
)

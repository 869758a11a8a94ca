"""A model's folder with FP8 weights as DeepSeek stores them, and the numbers that they stand for."""

from __future__ import annotations

import json

BLOCK = 16
"""Rows and columns of a matrix that share a scale."""


def is_linear(name):
    return "_proj." in name


def to_fp8(folder):
    """Quantises the folder's linear layers in place; returns the weights that the files stand for now, by name."""
    import torch
    from safetensors.torch import load_file, save_file

    stored, meant = {}, {}
    for name, weight_OI in load_file(folder / "model.safetensors").items():
        stored[name] = meant[name] = weight_OI
        if is_linear(name):
            scale = weight_OI.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).abs().amax((-1, -2)) / 448
            spread_OI = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            stored[name] = (weight_OI / spread_OI).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            meant[name] = stored[name].float() * spread_OI
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return meant

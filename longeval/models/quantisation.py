"""Quantised weights: what a checkpoint's `quantization_config` says, and whether transformers can load it here.

transformers' own quantisers read the weights (`transformers.quantizers`). Most need a package of their method, some a
GPU, and some put the weights back to plain numbers where the device has no kernels for them. All of that is asked
before anything is loaded, and what was found stands in the record.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError, reason
from longeval.models.folder import Stored
from longeval.models.library import quiet_transformers

_PACKAGES: dict[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "auto-round": ("auto-round",),
    "compressed-tensors": ("compressed-tensors",),
    "torchao": ("torchao",),
    "quanto": ("optimum-quanto",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "higgs": ("flute-kernel", "fast-hadamard-transform"),
    "fp_quant": ("fp_quant",),
    "fbgemm_fp8": ("fbgemm-gpu-genai",),
    "eetq": ("kernels",),
    "nvfp4": ("kernels",),
}
"""What transformers 5.19 needs for a method, as pip calls it."""

_FP8_KERNELS = ("kernels",)
"""What FP8 weights need beside that where they stay FP8."""

_GPU_ONLY = frozenset({"eetq", "fbgemm_fp8", "fp_quant", "higgs", "hqq", "nvfp4", "spqr", "vptq"})
"""Methods whose weights transformers 5.19 can't use on a CPU."""

_FP8 = frozenset({"fp8", "mxfp8"})
"""Methods whose weights transformers puts back to plain numbers where there is no GPU with kernels for them."""

_BITS = dict.fromkeys(("fp8", "mxfp8", "fbgemm_fp8", "eetq"), 8) | dict.fromkeys(("mxfp4", "nvfp4"), 4)
"""Bits of a weight where the method's name says them."""

_FLOATS = ("F16", "BF16", "F32")
"""Types of stored weights that aren't quantised, as safetensors calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How a model's weights are quantised."""

    method: str
    """As `quant_method` names it: bitsandbytes, gptq, fp8, …"""
    bits: int | None
    """Bits of one weight, without its share of a scale; None where the configuration has no one number."""
    format: str | None
    """What tells kinds of one method apart: nf4, pack-quantized, Int8WeightOnlyConfig, …"""
    group_size: int | None
    """Weights that share a scale, where the configuration says it as one number."""
    dequantised: bool = False
    """Whether the model computes with plain numbers in its dtype that were made of the weights."""

    @property
    def params(self) -> dict[str, Any]:
        """What a record has of it; parts that are not known are left out."""
        known = {"method": self.method, "bits": self.bits, "format": self.format, "group_size": self.group_size}
        said = {key: value for key, value in known.items() if value is not None}
        return said | ({"dequantized": True} if self.dequantised else {})


def quantization_settings(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a transformers config, or of its text part; None where weights aren't quantised."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if isinstance(settings, dict):
            return settings
    return None


def read_quantisation(settings: Mapping[str, Any]) -> Quantisation:
    """Tells method, bits and kind from a `quantization_config`, in the words of each method."""
    method = "bitsandbytes" if _is_bitsandbytes(settings) else str(settings.get("quant_method", "unknown"))
    bits: Any = _first(settings, "bits", "w_bit", "nbits") or _BITS.get(method)
    kind: Any = _first(settings, "format", "checkpoint_format", "quant_algo")
    group_size: Any = _first(settings, "group_size", "q_group_size")
    if method == "bitsandbytes":
        bits = 4 if settings.get("load_in_4bit") else 8
        kind = settings.get("bnb_4bit_quant_type", "fp4") if bits == 4 else "int8"
    elif method == "compressed-tensors":
        weights = list(_weights_of_groups(settings))
        several = {args.get("num_bits") for args in weights}
        bits = several.pop() if len(several) == 1 else None
        sizes = {args.get("group_size") for args in weights}
        group_size = sizes.pop() if len(sizes) == 1 else None
    elif method in ("torchao", "quanto"):
        kind = _kind_name(settings.get("quant_type", settings.get("weights")))
        # Int8DynamicActivationInt4WeightConfig: the weights come last.
        numbers = re.findall(r"(?:int|float|fp)(\d+)", kind or "", re.IGNORECASE)
        bits = int(numbers[-1]) if numbers else None
    elif method == "hqq":
        inner = settings.get("quant_config")
        inner = inner.get("weight_quant_params") if isinstance(inner, dict) else None
        bits, group_size = (inner.get("nbits"), inner.get("group_size")) if isinstance(inner, dict) else (None, None)
    return Quantisation(
        method=method,
        bits=bits if type(bits) is int else None,
        format=kind if isinstance(kind, str) else None,
        group_size=group_size if type(group_size) is int else None,
    )


def _is_bitsandbytes(settings: Mapping[str, Any]) -> bool:
    """Whether it is bitsandbytes: old checkpoints don't name their method."""
    return bool(settings.get("load_in_4bit") or settings.get("load_in_8bit"))


def _first(settings: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first key that there is; None without any."""
    return next((settings[key] for key in keys if settings.get(key) is not None), None)


def _weights_of_groups(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What compressed-tensors says of the weights of each group of layers."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            yield group["weights"]


def _kind_name(said: Any) -> str | None:
    """The name of what torchao or quanto did: text, or what torchao writes of an object of its own."""
    if isinstance(said, dict):
        default = said.get("default", said)
        said = default.get("_type") if isinstance(default, dict) else default
    return said if isinstance(said, str) else None


def set_up_quantised(name: str, config: Any, *, dtype: str, device_map: Any) -> tuple[Quantisation, str]:
    """Asks transformers whether it can load a quantised checkpoint here, and settles how.

    Args:
        name: The model, as the user named it.
        config: transformers' PreTrainedConfig; it gets `dequantize` where the weights are to become plain numbers.
        dtype: From `resolve_dtype`.
        device_map: What `from_pretrained` will be given: `{"": device}`, or a word of accelerate's.

    Returns:
        How the weights are quantised, and the dtype that the model computes in: some methods have only one.

    Raises:
        LongEvalError: A package isn't installed, the method needs a GPU, or transformers refuses for another reason.
    """
    import torch
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    settings = quantization_settings(config)
    assert settings is not None, "not quantised"
    found = read_quantisation(settings)
    if found.method not in {
        key.removesuffix("_4bit").removesuffix("_8bit") for key in AUTO_QUANTIZATION_CONFIG_MAPPING
    }:
        raise _cannot_load(name, found, "transformers doesn't know this method")
    on_gpu = isinstance(device_map, str) or not str(device_map[""]).startswith(("cpu", "mps"))
    if found.method in _GPU_ONLY and not (on_gpu and torch.cuda.is_available()):
        raise _cannot_load(name, found, "transformers loads it on a GPU only")
    _check_packages(name, found, _PACKAGES.get(found.method, ()))
    if found.method == "bitsandbytes":  # it warns at every layer of every pass that 8 bits are computed in float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # compressed-tensors would do it at the first pass of the whole model; longeval runs decoder and head by themselves.
    if found.method == "compressed-tensors" or (found.method in _FP8 and not on_gpu):
        settings["dequantize"] = True
    try:
        with quiet_transformers():
            quantiser = AutoHfQuantizer.from_config(dict(settings))
            quantiser.validate_environment(device_map=device_map, weights_only=True)
            dtype = str(quantiser.update_dtype(getattr(torch, dtype))).removeprefix("torch.")
    except Exception as error:  # of whatever kind: methods check in their own ways
        raise _cannot_load(name, found, reason(error)) from error
    dequantised = bool(getattr(quantiser.quantization_config, "dequantize", False))
    if found.method in _FP8 and not dequantised:
        _check_packages(name, found, _FP8_KERNELS)
    return dataclasses.replace(found, dequantised=dequantised), dtype


def _cannot_load(name: str, found: Quantisation, why: str) -> LongEvalError:
    return LongEvalError(
        f"--model {name}: its weights are quantised ({found.method}) and can't be loaded here ({why})",
        "Use another machine or --dtype if that is the reason, --backend vllm, or the model without quantisation.",
    )


def _check_packages(name: str, found: Quantisation, packages: Iterable[str]) -> None:
    """Raises LongEvalError with the command for packages that aren't installed.

    The command holds torch and transformers where they are: a package's newest version may want newer ones than
    longeval works with, and pip then takes an older one of it.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return
    held = [
        f"{package}=={importlib.metadata.version(package).partition('+')[0]}" for package in ("transformers", "torch")
    ]
    raise LongEvalError(
        f"--model {name}: its weights are quantised ({found.method}), and {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not installed",
        f"Install what it needs: pip install {' '.join([*missing, *held])}",
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def stored_bytes(stored: Iterable[Stored], width: int) -> int:
    """Bytes that a quantised checkpoint takes in memory.

    Args:
        stored: Its tensors.
        width: Bytes of a number in the model's dtype, to which weights that aren't quantised are cast.
    """
    return sum(
        math.prod(tensor.shape) * (8 * width if tensor.dtype in _FLOATS else _stored_bits(tensor.dtype)) // 8
        for tensor in stored
    )


def _stored_bits(dtype: str) -> int:
    """Bits of one element as safetensors stores it: 8 for U8 and F8_E4M3, 4 for F4, 32 for I32; 8 for BOOL."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8

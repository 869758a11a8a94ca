"""Loads a resolved model with transformers: config, tokenizer, and weights, which must be safetensors.

The dtype is given at loading. `model.to(bfloat16)` afterwards would also cast the rotary frequencies, and wavelengths
would differ from their integers by up to half a token.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

from longeval.errors import LongEvalError, prefix_errors, reason
from longeval.models.adapter import check_fits, merge
from longeval.models.device import resolve_attention, resolve_device_map
from longeval.models.folder import check_adapter, read_config
from longeval.models.geometry import check_raw
from longeval.models.hub import cached_weights, open_hub, unreachable_hub
from longeval.models.library import import_transformers_lean, quiet_transformers
from longeval.models.quantisation import Quantisation, quantization_settings, read_quantisation, set_up_quantised
from longeval.models.resolve import QUANTISATION_FILE, ModelRef, config_path, local_folder
from longeval.models.tokenizer import open_tokenizer
from longeval.models.weights import check_complete, check_stored, zero_biases

_log = logging.getLogger(__name__)

_MOST = 10_000
"""Most layers or labels that a config may state; transformers takes time for each before weights are checked."""
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_labels")
"""Keys of the number of layers in configurations, and of the number of labels."""

_READ = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files in a model's folder that transformers reads as JSON objects."""

_REMEDIES = {
    "config": "Check its config.json.",
    "tokenizer": "The folder needs the tokenizer's files (tokenizer.json): tokenizer.save_pretrained(FOLDER).",
    "generation settings": "Correct its generation_config.json, or remove it: then its config.json counts.",
    "weights": "Check its config.json; it may be another model's than the weights.",
    "model": "Weights must be the safetensors of a causal language model that transformers knows.",
    "quantization_config": "Check its config.json.",
}
"""The remedy for each part of a model that can't be loaded."""


class CodeError(LongEvalError):
    """A model needs Python code of its own, which is not allowed to run.

    Args:
        problem: See `LongEvalError`.
        code: A noun phrase for the code, which completes "Read …" in the remedy.
    """

    def __init__(self, problem: str, code: str) -> None:
        super().__init__(problem, f"Read {code}, and if you trust it add --trust-remote-code; a dry run runs none.")
        self.code = code


def load_config(ref: ModelRef, *, trust_remote_code: bool = False) -> Any:
    """Returns the model's `PreTrainedConfig`; reads no weights, and runs the model's own code only if it is trusted.

    Raises:
        LongEvalError: The model can't be read, its type is unknown, or it needs code that isn't trusted.
    """
    import_transformers_lean()
    import transformers

    import longeval.hf  # a model may be saved with one of our rope types

    longeval.hf.register()
    source = _source(ref)
    _check_config(ref, trust_remote_code)
    if trust_remote_code:
        tell_code(ref, "runs")
    with _reading(ref, "config"):
        # The config's own dtype may be one that torch doesn't have, so another is given.
        config = transformers.AutoConfig.from_pretrained(**source, dtype="float32", trust_remote_code=trust_remote_code)
        config._attn_implementation = None  # `--attn` or transformers decides, not the config
        if not isinstance(config.get_text_config(), transformers.PreTrainedConfig):
            raise LongEvalError(
                f"--model {ref.name}: its config.json has a text_config, text_encoder, decoder or generator, which a "
                f"model of type {config.model_type} doesn't have",
                "Remove it, or correct model_type.",
            )
        return config


def load_tokenizer(ref: ModelRef, *, trust_remote_code: bool = False) -> Any:
    """Returns the model's tokenizer (see `models.tokenizer`); raises LongEvalError if it can't be read."""
    source = _source(ref)
    config = load_config(ref, trust_remote_code=trust_remote_code)
    with _reading(ref, "tokenizer"):
        tokenizer = open_tokenizer(source, trust_remote_code=trust_remote_code, config=config)
        tokenizer("a")  # some wrong settings raise only at the first text
        return tokenizer


def load_generation_settings(ref: ModelRef, config: Any) -> Any:
    """Returns the model's `GenerationConfig`: from its file, or without one, derived from its config."""
    import transformers

    source = _source(ref)
    where = source.pop("pretrained_model_name_or_path")
    folder = local_folder(ref)
    settings = None
    if folder is None or os.path.lexists(os.path.join(folder, "generation_config.json")):
        with _reading(ref, "generation settings"):
            try:
                settings = transformers.GenerationConfig.from_pretrained(where, **source)
            except OSError as error:  # a hub model may have no such file
                if folder is not None or "JSON" in str(error):
                    raise
    if settings is None:
        settings = transformers.GenerationConfig.from_model_config(config)
    ends = settings.eos_token_id
    if not all(one is None or type(one) is int for one in (ends if isinstance(ends, list) else [ends])):
        raise LongEvalError(
            f"--model {ref.name}: eos_token_id of its generation settings is {ends!r}, which is not a token id",
            "Correct its generation_config.json or, if it has none, its config.json.",
        )
    return settings


def check_weights(ref: ModelRef, config: Any, *, own_quantised: bool = False) -> bool:
    """Compares the headers of the model's weights on this machine with its configuration; loads no weights.

    Weights that are not on this machine, quantised weights (whose names and dtypes depend on the quantisation method)
    and models with code of their own are not compared here, but in `load_model`. An adapter is
    compared with the configuration in any case.

    Args:
        ref: The model.
        config: Its PreTrainedConfig.
        own_quantised: Whether the engine also reads a quantisation from QUANTISATION_FILE, as vLLM does.

    Returns:
        Whether the names and shapes of the weights were compared.

    Raises:
        LongEvalError: Weights are missing, unexpected, or of another shape; the folder holds an adapter; or
            the adapter of `ref` doesn't fit.
    """
    folder, files = os.path.dirname(config_path(ref)), _file_names(ref)
    check_adapter(ref.name, files)
    own_code = not type(config).__module__.startswith("transformers.")
    if ref.adapter is not None:
        if own_code:
            raise LongEvalError(
                f"--adapter {ref.adapter.name}: {ref.name} runs code of its own, so whether it fits can't be checked",
                "Merge it with peft (merge_and_unload, save_pretrained), and give that folder as --model.",
            )
        check_fits(ref.adapter, ref.name, config)
    if (
        (ref.kind == "hub" and not cached_weights(ref.location, open_hub(ref).commit))
        or (own_quantised and QUANTISATION_FILE in files)
        or quantization_settings(config) is not None
        or own_code
    ):
        return False
    with _reading(ref, "weights"):
        check_stored(ref.name, folder, config)
    return True


def _file_names(ref: ModelRef) -> set[str]:
    """Names of a model's files, those included that are on the hub still."""
    names = set(os.listdir(os.path.dirname(config_path(ref))))
    return names | set(open_hub(ref).files) if ref.kind == "hub" else names


def set_up_quantisation(
    ref: ModelRef, config: Any, *, dtype: str, device: str, device_map: str | None, own_quantised: bool = False
) -> tuple[Quantisation | None, str]:
    """How a model's weights are quantised, and the dtype that it computes in; nothing is loaded.

    Args:
        ref: From `resolve`.
        config: transformers' PreTrainedConfig; see `set_up_quantised`.
        dtype: From `resolve_dtype`.
        device: From `resolve_device`.
        device_map: accelerate's word, which wins over `device`.
        own_quantised: Whether the backend reads quantised weights itself, also those that only a file beside the
            config tells of.

    Raises:
        LongEvalError: transformers, which is to load them, can't do so here.
    """
    settings = quantization_settings(config)
    if settings is not None:
        with _reading(ref, "quantization_config"):
            found = read_quantisation(settings)
            if own_quantised:
                return found, dtype
            return set_up_quantised(ref.name, config, dtype=dtype, device_map=device_map or {"": device})
    if own_quantised and QUANTISATION_FILE in _file_names(ref):  # on the hub its content isn't read
        return read_quantisation({"quant_method": "modelopt"}), dtype
    return None, dtype


def load_model(
    ref: ModelRef,
    *,
    dtype: str,
    device: str,
    device_map: str | None = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads a model with its weights, in eval mode and without gradients; an adapter is merged into them.

    Args:
        ref: From `resolve`.
        dtype: From `resolve_dtype`.
        device: From `resolve_device`; used unless `device_map` is given.
        device_map: accelerate's placement (`auto`, `balanced`, …) for a model that needs several devices.
        attn: The value of `--attn`.
        trust_remote_code: Whether Python code that comes with the model may run.

    Returns:
        A transformers `PreTrainedModel` for causal language modelling.

    Raises:
        LongEvalError: The weights can't be read, are not safetensors, don't fit the config, or don't fit into memory;
            or the adapter can't be merged.
    """
    import torch
    import transformers

    source = _source(ref)
    config = load_config(ref, trust_remote_code=trust_remote_code)
    quantisation, dtype = set_up_quantisation(ref, config, dtype=dtype, device=device, device_map=device_map)
    checked = check_weights(ref, config)
    options: dict[str, Any] = {"attn_implementation": name} if (name := resolve_attention(attn, device)) else {}
    if device_map is not None or device != "cpu" or quantisation is not None:  # quantisers would choose a device
        options["device_map"] = resolve_device_map(device_map) or {"": device}
    try:
        with _reading(ref, "model"):
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                **source,
                **options,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except LongEvalError as error:
        if error.__cause__ is None or not is_out_of_memory(error.__cause__):
            raise
        raise LongEvalError(
            f"--model {ref.name}: its weights in {dtype} don't fit into the memory of {device}",
            "Try --dtype bfloat16, --device-map auto, or a smaller model; --dry-run estimates what is needed.",
        ) from error.__cause__
    if not checked and ref.kind == "hub":  # its files have been downloaded meanwhile
        checked = check_weights(ref, config)
    if checked:  # check_weights knows which unexpected weights are harmless
        loading["unexpected_keys"] = set()
    else:
        unexpected = set(loading["unexpected_keys"])
        method = None if quantisation is None else quantisation.method
        zeros = zero_biases(os.path.dirname(config_path(ref)), unexpected, method)
        loading["unexpected_keys"] = unexpected - zeros
    check_complete(ref.name, loading, config)
    if ref.adapter is not None:
        return merge(model, ref.adapter)
    return model.eval().requires_grad_(False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory; the CPU allocator and mmap raise general classes for that."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


@functools.cache
def tell_code(ref: ModelRef, does: str) -> None:
    """Warns once about the Python code that a model's config or tokenizer names; `does` is the verb, such as `runs`."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = _source(ref)
    config = read_config(config_path(ref), ref.name)
    with _reading(ref, "tokenizer"):
        tokenizer = get_tokenizer_config(where.pop("pretrained_model_name_or_path"), **where)
    for file, plain in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if plain.get("auto_map"):
            _log.warning("%s %s Python that its %s names: %s", ref.name, does, file, json.dumps(plain["auto_map"]))


def _source(ref: ModelRef) -> dict[str, Any]:
    """The location of the model, a folder or a commit on the hub, as arguments of `from_pretrained`."""
    folder = local_folder(ref)
    if folder is not None:
        return {"pretrained_model_name_or_path": folder, "local_files_only": True}
    snapshot = open_hub(ref)
    return {
        "pretrained_model_name_or_path": snapshot.hub_id,
        "revision": snapshot.commit,
        "local_files_only": snapshot.local_only,
    }


def _check_config(ref: ModelRef, trust_remote_code: bool) -> None:
    """Raises LongEvalError for a config.json that transformers can't or shouldn't read."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_config(config_path(ref), ref.name)
    for key in ("configuration_files", "transformers_weights"):
        if config.get(key) is not None:
            raise LongEvalError(
                f"--model {ref.name}: its config.json names other files that replace the usual ones ({key})",
                f"Remove {key} from it, and give the files their usual names.",
            )
    for settings in (config, *config.values()):
        if isinstance(settings, dict) and not isinstance(settings.get("quantization_config"), dict | None):
            raise LongEvalError(
                f"--model {ref.name}: quantization_config in its config.json is not a JSON object",
                "Fetch the model again, or correct its config.json.",
            )
        for key in _COUNTS:
            if isinstance(settings, dict) and isinstance(n := settings.get(key), int) and n > _MOST:
                raise LongEvalError(
                    f"--model {ref.name}: {key} in its config.json is {n}, more than any model has",
                    "Fetch the model again, or correct its config.json.",
                )
    with prefix_errors(f"--model {ref.name}", unless=()):
        check_raw(config)
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return
    if not config.get("auto_map"):
        raise LongEvalError(
            f"--model {ref.name}: transformers {transformers.__version__} doesn't know model type {model_type!r}",
            "Its config.json must name a causal language model that transformers has.",
        )
    if not trust_remote_code:
        problem = f"--model {ref.name}: model type {model_type} runs Python code that comes with the model"
        raise CodeError(problem, f"that code ({json.dumps(config['auto_map'])})")


@contextlib.contextmanager
def _reading(ref: ModelRef, part: str) -> Iterator[None]:
    """Turns any exception of transformers about a model's files into a LongEvalError.

    transformers checks little, so damaged files raise any class of exception.
    """
    try:
        # Errors of our rope types don't name the model, so its name is added.
        with quiet_transformers(), prefix_errors(f"--model {ref.name}", unless=("--model",)):
            yield
    except LongEvalError:
        raise
    except Exception as error:
        if _is_bug(error):
            raise
        raise (_damaged(ref) or _unloadable(ref, part, error)) from error


def _is_bug(error: Exception) -> bool:
    """Whether an exception is a bug of longeval rather than a library's error about a file.

    It is one if it was raised in our code. Compiled libraries have no Python frame, so their errors seem to come from
    ours; only classes that they don't raise for files count.
    """
    if not isinstance(error, TypeError | AttributeError | NameError | LookupError | ZeroDivisionError | AssertionError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "longeval"


def _damaged(ref: ModelRef) -> LongEvalError | None:
    """The error for the first JSON file of a model that can't be read; it is clearer than that of transformers."""
    folder = local_folder(ref)
    for name in () if folder is None else sorted(os.listdir(folder)):
        if name in _READ or name.endswith(".safetensors.index.json"):
            try:
                read_config(f"{folder}/{name}", ref.name)
            except LongEvalError as error:
                return error
    return None


def _unloadable(ref: ModelRef, part: str, error: Exception) -> LongEvalError:
    """The error for a part of a model that transformers could not load."""
    if ref.kind == "hub" and isinstance(error, OSError):
        snapshot = open_hub(ref)
        if snapshot.local_only:
            return unreachable_hub(snapshot.hub_id, ref.name, f"its {part} was never downloaded")
    if "trust_remote_code" in str(error):
        return CodeError(f"--model {ref.name}: its {part} runs Python code that comes with the model", "that code")
    remedy = _REMEDIES[part]
    settings = read_config(config_path(ref), ref.name).get("quantization_config")
    if part == "model" and isinstance(settings, dict):
        remedy = f"It is quantised ({settings.get('quant_method')}): mend what the reason says, or give it unquantised."
    return LongEvalError(f"--model {ref.name}: its {part} can't be loaded ({reason(error)})", remedy)

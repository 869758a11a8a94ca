"""Checks from file headers that a model's files hold exactly the weights that its configuration describes.

transformers initialises missing weights at random, ignores unexpected ones, some of them silently
(`_keys_to_ignore_on_load_unexpected`), and casts integers to floats. Here the names in the files are compared with a
model on the "meta" device, with transformers' own renaming and merging of weights, so that errors are found before
anything is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from longeval.cache import file_digest, file_stamp
from longeval.errors import LongEvalError
from longeval.models.folder import CONFIG, Stored, stored_tensors, weight_files
from longeval.models.library import empty_model

if TYPE_CHECKING:
    import torch

_SHOWN = 3
"""Most names in a message."""

_LEFTOVER = re.compile(
    "|".join(
        (
            r"(^|\.)rotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)$",  # frequencies, computed from the config
            r"(^|\.)position_ids$",  # the numbers 0, 1, 2, …
            r"(^|\.)mtp(_layers|_block)?\.",  # layers that predict further tokens (Qwen3-Next, MiMo, Nemotron-H, …)
            r"\.(k|v|q|kv)_scale$",  # scales of a quantised key/value cache, which is not used here
            r"^v_head\.",  # a value head of reinforcement learning, beside the output head
        )
    )
)
"""Names of unexpected weights that don't affect a language model."""

_MASK = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias)$")
"""Causal masks that GPT-NeoX and GPT-2 store: a square matrix, and the number for masked logits."""

_MTP_LAYER = re.compile(r"^(.*\blayers\.(\d+)\.)eh_proj\.")
"""A layer after the last one that predicts a further token (DeepSeek, GLM); only such layers have `eh_proj`."""

_MULTIMODAL = re.compile(r"^(model\.)?(visual|vision|audio|image|embed_vision|embed_audio|multi_modal|mm_)")
"""Vision and audio parts of a multimodal model, of which only the language model is loaded."""

_SCALES = re.compile(r"\.(input|output)_scale$")
"""Scales of activations in quantised files, for configurations that compute them at run time."""

_checked: set[tuple[Any, ...]] = set()
"""Folders whose weights match their configuration, each with the state of its files."""


def check_stored(name: str, folder: str, config: Any) -> None:
    """Raises LongEvalError unless the files of an unquantised model hold exactly the weights of its configuration.

    The check runs once per process and state of the files, because both plan and run call it.
    """
    stamps = [tuple(file_stamp(os.path.join(folder, file))) for file in weight_files(folder)]
    state = (folder, file_digest(os.path.join(folder, CONFIG)), *stamps)
    if state not in _checked:
        _compare(name, folder, config)
        _checked.add(state)


def _compare(name: str, folder: str, config: Any) -> None:
    """Does the work of `check_stored`."""
    stored = stored_tensors(name, folder)
    num_layers = _num_layers(config)
    if isinstance(num_layers, int) and num_layers > len(stored):  # checked before a model with so many layers is built
        raise LongEvalError(
            f"--model {name}: its config says {num_layers} layers, but its files hold {len(stored)} weights",
            "Correct num_hidden_layers in its config.json.",
        )
    model = empty_model(config)
    for key, target in _targets(name, model, stored).items():
        if target.is_floating_point() and not stored[key].dtype.startswith(("F", "BF")):
            raise LongEvalError(
                f"--model {name}: {key} is stored as integers ({stored[key].dtype}), but its config names no "
                "quantisation",
                "The files belong to another model, or config.json lacks its quantization_config.",
            )
    _check_tied(name, folder, model, stored)
    loading = _load(model, stored)
    text = config.get_text_config()
    text_only = text is not config and model.config.model_type == text.model_type
    check_complete(name, loading, config, stored=stored, text_only=text_only)


def check_complete(
    name: str,
    loading: Mapping[str, Any],
    config: Any,
    *,
    stored: Mapping[str, Stored] | None = None,
    text_only: bool = False,
) -> None:
    """Raises LongEvalError if weights are missing, have another shape, or are in the files but not in the model.

    `loading` is transformers' loading info, and `stored` the tensors in the files, if known. `text_only`: whether only
    the language model of a multimodal model was loaded.
    """
    missing, mismatched, failed, unexpected = (
        sorted(_names(loading.get(kind)))
        for kind in ("missing_keys", "mismatched_keys", "conversion_errors", "unexpected_keys")
    )
    num_layers = _num_layers(config)
    further = tuple(
        layer[1] for key in unexpected if (layer := _MTP_LAYER.match(key)) is not None and int(layer[2]) >= num_layers
    )
    unexpected = [
        key
        for key in unexpected
        if not key.startswith(further) and not _is_leftover(key, config, (stored or {}).get(key), text_only)
    ]
    for keys, kind in (
        (missing, "missing"),
        (mismatched + failed, "mismatched, of another shape in its files"),
        (unexpected, "unexpected, in its files but not in the model, which would ignore them"),
    ):
        if keys:
            shown = ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
            count = "1 weight is" if len(keys) == 1 else f"{len(keys)} weights are"
            raise LongEvalError(
                f"--model {name}: its files don't fit its config, {count} {kind} ({shown})",
                "Check that it is a causal language model, that the download is complete, and its config.json.",
            )


def _num_layers(config: Any) -> Any:
    return getattr(config.get_text_config(), "num_hidden_layers", 0)


def _names(keys: Any) -> list[str]:
    """Names of weights. transformers lists mismatched ones as (name, shapes)."""
    return [str(key[0]) if isinstance(key, tuple) else str(key) for key in keys or ()]


def _is_leftover(key: str, config: Any, tensor: Stored | None, text_only: bool) -> bool:
    """Whether an unexpected weight is known to be unused."""
    if _LEFTOVER.search(key):
        return True
    if _MASK.search(key):  # a real bias has one dimension
        return tensor is not None and (len(tensor.shape) == 4 or tensor.shape in ((), (1,)))
    if text_only and _MULTIMODAL.search(key):
        return True
    return getattr(config, "quantization_config", None) is not None and _SCALES.search(key) is not None


def zero_biases(folder: str, keys: Iterable[str], method: str | None) -> set[str]:
    """Returns those of a model's unexpected weights that are all-zero biases, which AutoGPTQ stores for every layer."""
    biases = {key for key in keys if key.endswith(".bias")} if method == "gptq" else set()
    return {key for key, tensor in _read_tensors(folder, biases).items() if not tensor.any()}


def _read_tensors(folder: str, names: Set[str]) -> dict[str, torch.Tensor]:
    """Reads the weights with these names from a folder; missing ones are left out."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder) if names else ():
        with safe_open(os.path.join(folder, file), framework="pt") as tensors:
            for key in names & set(tensors.keys()):
                found[key] = tensors.get_tensor(key)
    return found


def _targets(name: str, model: Any, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """Maps stored names to the model's tensors; raises LongEvalError if two stored names are the same weight."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own = model.state_dict()
    targets: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in stored:
        target, merged = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
        if target not in own and key in own:
            target, merged = key, None
        if target not in own:
            continue
        targets[key] = own[target]
        if merged is None and (other := origins.setdefault(target, key)) != key:
            raise LongEvalError(
                f"--model {name}: {other} and {key} in its files are the same weight", "Remove one of the two."
            )
    return targets


def _load(model: Any, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """Returns transformers' loading info on the meta device, including names that the family would ignore."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(
        device_map={"": "meta"}, dtype=torch.float32, weight_mapping=get_model_conversion_mapping(model)
    )
    weights = {key: torch.empty(tensor.shape, device="meta") for key, tensor in stored.items()}
    info, _ = convert_and_load_state_dict_in_model(model=model, state_dict=weights, load_config=settings)
    unexpected = set(info.unexpected_keys)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    return {
        "missing_keys": info.missing_keys,
        "mismatched_keys": info.mismatched_keys,
        "conversion_errors": info.conversion_errors,
        "unexpected_keys": unexpected,
    }


def _check_tied(name: str, folder: str, model: Any, stored: Mapping[str, Stored]) -> None:
    """Raises LongEvalError if two weights that are tied in the config are stored with different values."""
    import torch

    for target, source in model.all_tied_weights_keys.items():
        if target not in stored or source not in stored:
            continue
        values = _read_tensors(folder, {target, source})
        if not torch.equal(values[target].to(torch.float32), values[source].to(torch.float32)):
            raise LongEvalError(
                f"--model {name}: its config says that {target} is {source} (tie_word_embeddings), but its files hold "
                "different values for the two",
                "Correct tie_word_embeddings in its config.json.",
            )

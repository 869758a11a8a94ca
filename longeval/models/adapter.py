"""`--adapter FOLDER`: finds a peft adapter (LoRA and its kin), checks it against its base model, and merges it.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`, which peft's `save_pretrained`
writes. After merging, W + (alpha/r)·B·A in the case of LoRA, the model is an ordinary one. peft does the merging. The
check is the same without weights: peft puts the adapter on an empty model (device "meta") and merges it there, which
needs only the headers of its files. Nothing is fetched or unpickled, and settings that import modules are refused.

Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685; the format is peft's.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longeval.cache import files_digest
from longeval.errors import LongEvalError, reason
from longeval.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ONLY_SAFETENSORS, read_config, read_header
from longeval.models.library import empty_model, quiet_transformers

_MERGED_TYPES = frozenset(
    {
        "LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "HRA", "MISS", "LN_TUNING", "TRAINABLE_TOKENS",
    }
)  # fmt: skip
"""Values of `peft_type` whose merged model is known to compute what the adapted one does; a test compares each."""

_OTHER_BASE = re.compile(r"loftq|corda|lora_ga|pissa_niter_.*")
"""Values of `init_lora_weights` for which the training changed the base model in a way that can't be repeated."""

_REFUSED = {
    "megatron_config": "it is made for layers of Megatron, by code that it names",
    "layer_replication": "it repeats layers of its base model, which can't be merged",
    "alora_invocation_tokens": "it works from certain tokens of a text on only, which can't be merged",
}
"""Settings that aren't supported where they are given: one imports a module, the others change more than weights."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w./-]+))?")
_NAME = "default"
"""peft's name of the adapter within the model."""
_SHOWN = 3
"""Most names of weights in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter whose files exist."""

    name: str
    """As the user gave it."""
    folder: str
    """Absolute path of its folder."""
    digest: str
    """SHA-256 over the contents of its configuration and weights."""
    base: str | None
    """The base model that it names; None: it names none."""

    @property
    def params(self) -> dict[str, str]:
        """What a cell has of it."""
        return {"adapter": f"sha256:{self.digest}", "adapter_name": self.name}


def check_peft(flag: str) -> None:
    """Raises LongEvalError, which names the flag that needs it, if peft can't be imported."""
    try:
        import peft  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise LongEvalError(
            f"{flag}: peft can't be imported ({reason(error)})", "Install it: pip install peft."
        ) from error


def find_adapter(name: str) -> Adapter:
    """Finds an adapter and checks its configuration; reads no weights and no network.

    Args:
        name: A folder, or the hub id of an adapter (`OWNER/NAME@REVISION`) that is in the hub's local cache.

    Raises:
        LongEvalError: It doesn't exist, isn't complete, isn't safetensors, names code, is of a kind that can't be
            merged, or peft isn't installed.
    """
    folder = _folder(name)
    check_peft(f"--adapter {name}")
    files = set(os.listdir(folder))
    if ADAPTER_CONFIG not in files:
        raise LongEvalError(
            f"--adapter {name}: this folder is not an adapter, it has no {ADAPTER_CONFIG}",
            "Give a folder that peft's save_pretrained wrote. A folder with a whole model belongs to --model.",
        )
    if ADAPTER_WEIGHTS not in files:
        pickled = "adapter_model.bin" in files
        raise LongEvalError(
            f"--adapter {name}: {'its weights are a pickle file' if pickled else f'it has no {ADAPTER_WEIGHTS}'}",
            f"{ONLY_SAFETENSORS} If you trust it, load it with peft and save it again: PeftModel.from_pretrained(BASE, "
            "FOLDER).save_pretrained(NEW)."
            if pickled
            else "Give a folder that peft's save_pretrained wrote.",
        )
    if "trainable_params.bin" in files:
        raise LongEvalError(
            f"--adapter {name}: comes with trainable_params.bin, which holds further trained weights of LongLoRA",
            f"{ONLY_SAFETENSORS} Merge all with LongLoRA's merge_lora_weights_and_save_hf_model.py, and give the "
            "result as --model.",
        )
    base = _check_settings(name, _read(name, folder)).get("base_model_name_or_path")
    try:
        digest = files_digest(folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    except OSError as error:
        raise LongEvalError(f"--adapter {name}: {reason(error)}", "Give a folder that you can read.") from error
    return Adapter(name=name, folder=folder, digest=digest, base=base if isinstance(base, str) and base else None)


def _folder(name: str) -> str:
    """The folder of an adapter: the one that the user named, or one in the hub's local cache."""
    path = os.path.abspath(os.path.expanduser(name))
    if name and os.path.isdir(path):
        return path
    from huggingface_hub import errors, try_to_load_from_cache

    cached, found = None, _HUB_ID.fullmatch(name)
    if found is not None:
        try:
            cached = try_to_load_from_cache(found[1], ADAPTER_CONFIG, revision=found[2])
        except errors.HFValidationError:
            found = None
    if isinstance(cached, str):
        return os.path.dirname(cached)
    if found is not None:
        raise LongEvalError(
            f"--adapter {name}: there is no such folder, and the hub's local cache doesn't have it",
            f"Give a folder, or fetch it first: hf download {found[1]}.",
        )
    raise LongEvalError(f"--adapter {name}: there is no such folder", "Give a folder that peft wrote.")


def _read(name: str, folder: str) -> dict[str, Any]:
    return read_config(os.path.join(folder, ADAPTER_CONFIG), name, flag="--adapter")


def _check_settings(name: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Raises LongEvalError for an adapter that names code or can't be merged; returns its settings."""
    kind = plain.get("peft_type")
    if not isinstance(kind, str) or kind not in _MERGED_TYPES:
        raise LongEvalError(
            f"--adapter {name}: its type, {kind}, can't be merged into a model",
            f"These can: {', '.join(sorted(_MERGED_TYPES))}.",
        )
    if plain.get("auto_mapping") and not _is_transformers(plain["auto_mapping"]):
        raise LongEvalError(
            f"--adapter {name}: auto_mapping in its {ADAPTER_CONFIG} names code of its own, which is not run",
            "Give an adapter of a model that transformers has.",
        )
    if plain.get("task_type") not in (None, "CAUSAL_LM"):
        raise LongEvalError(
            f"--adapter {name}: was trained for another task than language modelling ({plain['task_type']})",
            "Give an adapter of a causal language model.",
        )
    for key, why in _REFUSED.items():
        if plain.get(key):
            raise LongEvalError(f"--adapter {name}: {why} ({key})", "Give another adapter.")
    start = plain.get("init_lora_weights")
    if isinstance(start, str) and _OTHER_BASE.fullmatch(start.lower()):
        raise LongEvalError(
            f"--adapter {name}: {start} changed its base model before the training, which can't be repeated here",
            "Merge it where it was trained, and give the result as --model; or save it there with peft's "
            "path_initial_model_for_weight_conversion, which makes a plain adapter of it.",
        )
    return plain


def _is_transformers(mapping: Any) -> bool:
    """Whether an `auto_mapping` names transformers' own class, as peft writes it for adapters without a task type."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.startswith("transformers.models.")


def _peft_config(adapter: Adapter) -> Any:
    """The adapter's PeftConfig.

    Raises:
        LongEvalError: It is not a possible one, or has settings that the installed peft would ignore.
    """
    import peft

    plain = _check_settings(adapter.name, _read(adapter.name, adapter.folder))
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[plain["peft_type"]]
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(key for key, value in plain.items() if key not in known and key != "peft_version" and value)
    if unknown:
        raise LongEvalError(
            f"--adapter {adapter.name}: peft {peft.__version__} doesn't know its settings {', '.join(unknown)}",
            "Install the version that it was made with: pip install -U peft.",
        )
    # What peft could look up or import is left out: neither matters for merging.
    left_out = ("auto_mapping", "base_model_name_or_path", "revision", "runtime_config")
    settings = {key: value for key, value in plain.items() if key in known and key not in left_out}
    try:
        with quiet_transformers():
            return kind(**settings | {"inference_mode": True})
    except Exception as error:  # peft raises any class for impossible settings
        raise _damaged(adapter, error) from error


def _damaged(adapter: Adapter, error: Exception) -> LongEvalError:
    return LongEvalError(
        f"--adapter {adapter.name}: its {ADAPTER_CONFIG} can't be used ({reason(error)})", "Fetch the adapter again."
    )


def check_fits(adapter: Adapter, model: str, config: Any) -> None:
    """Raises LongEvalError unless an adapter belongs to a model; loads no weights.

    Args:
        adapter: The adapter.
        model: The model as the user named it.
        config: Its PreTrainedConfig, of a class of transformers.
    """
    import peft
    import torch

    stored = read_header(os.path.join(adapter.folder, ADAPTER_WEIGHTS), f"--adapter {adapter.name}: {ADAPTER_WEIGHTS}")
    settings = _peft_config(adapter)
    empty = empty_model(config)
    try:
        with quiet_transformers(), torch.device("meta"):
            adapted = peft.get_peft_model(empty, settings)
            expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
            weights = {key: torch.empty(tensor.shape) for key, tensor in stored.items()}
            loading: Any = peft.set_peft_model_state_dict(adapted, weights)
            missing = [key for name in loading.missing_keys if (key := name.replace(f".{_NAME}", "")) in expected]
    except KeyError as error:  # of a module that is stored whole (modules_to_save)
        raise _misfit(adapter, model, f"it lacks {error.args[0]}") from error
    except Exception as error:  # peft and torch raise several classes
        raise _misfit(adapter, model, reason(error)) from error
    for keys, problem in ((missing, "lacks weights for it"), (loading.unexpected_keys, "has weights without a place")):
        if keys:
            shown = ", ".join(sorted(keys)[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
            raise _misfit(adapter, model, f"it {problem}: {shown}")
    try:
        with quiet_transformers():
            adapted.merge_and_unload()
    except Exception as error:
        raise LongEvalError(
            f"--adapter {adapter.name}: peft can't merge it ({reason(error)})", "Give another adapter."
        ) from error


def _misfit(adapter: Adapter, model: str, why: str) -> LongEvalError:
    remedy = "Give the model that it was trained on."
    if adapter.base is not None:
        same = _last(adapter.base) == _last(model)
        remedy = f"It was made for {adapter.base}: {'fetch both again' if same else 'give that as --model'}."
    return LongEvalError(f"--adapter {adapter.name}: doesn't fit --model {model} ({why.rstrip('.')})", remedy)


def base_note(adapter: Adapter, name: str, location: str) -> str | None:
    """A note for the user if an adapter names another base model than the one it is put on.

    Args:
        adapter: The adapter.
        name: The model as the user named it.
        location: Its hub id or path.
    """
    if adapter.base is None or _last(adapter.base) in (_last(name), _last(location)):
        return None
    return f"--adapter {adapter.name}: names {adapter.base} as its base model, and is merged into {name}"


def _last(path: str) -> str:
    """The last part of a path or hub id, without differences of case."""
    return os.path.basename(path.rstrip("/")).lower()


def merge(model: Any, adapter: Adapter) -> Any:
    """Merges an adapter into a loaded model with plain weights, and returns the model.

    The adapter's weights are float32 while it is merged; each sum is rounded once, to the model's dtype.

    Raises:
        LongEvalError: Parts of the model are not in memory, or peft can't apply the adapter.
    """
    import peft

    if any(parameter.is_meta for parameter in model.parameters()):
        raise LongEvalError(
            f"--adapter {adapter.name}: parts of the model didn't fit into the devices' memory, so it can't be merged",
            "Use --dtype bfloat16, more devices, or a smaller model.",
        )
    settings = _peft_config(adapter)
    placement = vars(model).pop("hf_device_map", None)  # peft would place the model anew by it
    own_ties = _shared_weights(model)
    try:
        with quiet_transformers():
            adapted = peft.PeftModel.from_pretrained(
                model, adapter.folder, _NAME, config=settings, torch_device=str(model.device)
            )
            ties = _shared_weights(model)
            _untie(model, {} if ties == own_ties else ties)
            merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft and torch raise several classes
        raise LongEvalError(
            f"--adapter {adapter.name}: can't be merged into the model ({reason(error)})",
            "Check that it was made for this model.",
        ) from error
    if ties != own_ties:
        _tie_equal_ends(merged)
    if placement is not None:
        merged.hf_device_map = placement
    return merged.eval().requires_grad_(False)


def _shared_weights(model: Any) -> dict[str, list[str]]:
    """Parameters that several modules share: the first name of each → all its names."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {each[0]: each for each in names.values() if len(each) > 1}


def _untie(model: Any, shared: Mapping[str, list[str]]) -> None:
    """Gives each module its own copy of a shared parameter.

    peft adds to a layer's weight in place. If the embedding is adapted and the output head is the same tensor, the head
    would change too, although the adapter was trained with a head that doesn't.
    """
    import torch

    for names in shared.values():
        for name in names[1:]:
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            copied = getattr(module, attribute).detach().clone()
            setattr(module, attribute, torch.nn.Parameter(copied, requires_grad=False))


def _tie_equal_ends(model: Any) -> None:
    """Ties embedding and output head again if they are equal after merging, or else writes that they differ."""
    import torch

    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tied = torch.equal(first.weight, last.weight)
    if tied:
        last.weight = first.weight
    else:
        model.all_tied_weights_keys = {}
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied

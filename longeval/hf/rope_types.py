"""The functions and checks that transformers calls for our rope types, and their registration.

When a model is built, transformers looks up the function for its frequencies in ROPE_INIT_FUNCTIONS. When a config is
built or saved, it checks `rope_parameters` with `_validate_<name>_rope_parameters`. Both accept new names. But before
transformers checks a config, it fills in defaults, which hide that a base is missing, or that the whole dictionary has
the form of another family and is ignored. So `PreTrainedConfig.__post_init__` is wrapped too. The wrapper checks only
dictionaries that name our types.

Source: transformers 5, `modeling_rope_utils` and `configuration_utils`.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.hf.parameters import (
    NATIVE,
    REFUSED,
    ROPE_TYPES,
    RopeSettings,
    in_config_words,
    missing_key,
    read_parameters,
    rotates_part,
)
from longeval.rope.base import Geometry
from longeval.rope.build import build_table, read_arguments

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_REGISTERED = (*ROPE_TYPES, *REFUSED)
"""Refused names are registered too, because our message is clearer than transformers' KeyError."""

_OLD_BASES = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
"""Keys of the base outside `rope_parameters`, in older configs."""


def register() -> None:
    """Registers our methods with transformers in this process. Importing `longeval.hf` calls it; it may be repeated.

    Raises:
        LongEvalError: Another package has registered one of our names. Then nothing is registered.
    """
    from transformers import modeling_rope_utils
    from transformers.configuration_utils import PreTrainedConfig

    functions = modeling_rope_utils.ROPE_INIT_FUNCTIONS
    for name in _REGISTERED:
        owner = getattr(functions.get(name), "__module__", None)
        if name in functions and owner != __name__:
            raise LongEvalError(
                f"import longeval.hf: rope_type {name} is already registered with transformers, by {owner}",
                "Use only one of the two packages in a process.",
            )
    for name in _REGISTERED:
        functions[name] = RopeInit(rope_type=name)
        setattr(modeling_rope_utils.RotaryEmbeddingConfigMixin, f"_validate_{name}_rope_parameters", _validate)
    # If this is called again, or the module is reloaded, the wrapper must not be wrapped.
    current = PreTrainedConfig.__post_init__
    PreTrainedConfig.__post_init__ = _checking(getattr(current, "longeval_original", current))


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeInit:
    """The entry of one of our types in ROPE_INIT_FUNCTIONS: a callable that can be pickled with a model."""

    rope_type: str
    """One of our names."""

    def __call__(
        self,
        config: Any,
        device: torch.device | None = None,
        seq_len: int | None = None,
        layer_type: str | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Computes frequencies and attention factor.

        Args:
            config: transformers' PreTrainedConfig.
            device: Device of the frequencies.
            seq_len: Not used; our types have one table for all lengths.
            layer_type: Key in `rope_parameters`, if they differ by layer type.

        Returns:
            Frequencies of shape (F,), rad/token, computed in float64 and rounded to float32; and the attention factor.

        Raises:
            LongEvalError: Impossible settings (see `read_parameters`), or the config's family refuses our types.
        """
        import torch

        # The caller may use the same dictionary for other models.
        config.rope_parameters = copy.deepcopy(config.rope_parameters)
        try:
            # A config that was edited after it was built is unchecked, and would only fail at saving, after training.
            config.validate_rope()
        except (KeyError, ValueError) as error:
            raise LongEvalError(
                f"rope_type {self.rope_type}: refused by the config of {config.model_type} models ({error})",
                "Use longeval export, which writes the same frequencies in a form that this config accepts.",
            ) from error
        given = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
        settings = _validate(config, given, config.ignore_keys_at_rope_validation)
        assert settings.native_length is not None
        head_dim = _rotary_dim(self.rope_type, config, given, layer_type)
        try:
            geometry = Geometry(
                head_dim=head_dim,
                theta=float(given["rope_theta"]),
                native_length=settings.native_length,
                factor=settings.factor,
            )
            method, resonance = read_arguments(settings.name, settings.arguments)
            table = build_table(self.rope_type, geometry, method, resonance=resonance)
        except LongEvalError as error:
            raise in_config_words(settings.name, error) from error
        return torch.tensor(table.inv_freq_F, dtype=torch.float32, device=device), table.attention_factor


def _rotary_dim(rope_type: str, config: Any, given: dict[str, Any], layer_type: str | None) -> int:
    """The rotated dimensions of a head, as transformers' own functions read them.

    It copies `partial_rotary_factor` from the config into `given`.

    Raises:
        LongEvalError: The family rotates a part of the head and `partial_rotary_factor` is missing (transformers would
            rotate all of it), or the family rotates whole heads and a part is given.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    part = given.get("partial_rotary_factor")
    if part is None and (part := getattr(config, "partial_rotary_factor", None)) is not None:
        given["partial_rotary_factor"] = part
    if part is None and not config.has_no_defaults_at_init:
        usual = type(config)().rope_parameters or {}
        if (usual.get(layer_type) or usual).get("partial_rotary_factor", 1.0) != 1.0:
            raise missing_key(rope_type, "partial_rotary_factor")
    if part not in (None, 1) and not rotates_part(config):
        raise LongEvalError(
            f"rope_type {rope_type}: partial_rotary_factor {part!r}, but {config.model_type} models rotate whole heads",
            "Remove it from rope_parameters, or from the keys beside them in config.json.",
        )
    return int(head_dim * (1.0 if part is None else part))


def _validate(config: Any, rope_parameters: dict[str, Any], ignore_keys: Collection[str] | None = None) -> RopeSettings:
    """Checks the settings of one of our types, as a method of the config; writes a missing L into `rope_parameters`."""
    rope_type = str(rope_parameters["rope_type"])
    settings = read_parameters(rope_type, rope_parameters, ignore=ignore_keys or ())
    if settings.native_length is not None:
        return settings
    for key in (NATIVE, "max_position_embeddings"):
        length = getattr(config, key, None)
        if isinstance(length, int) and length >= 1:
            rope_parameters[NATIVE] = length
            if settings.name.method.uses_factor:
                _log.warning(
                    f"rope_type {rope_type}: rope_parameters have no {NATIVE}; using {key} = {length} as the length "
                    f"that the model was trained for, so factor {settings.factor:g} reaches "
                    f"{round(settings.factor * length)}"
                )
            return settings._replace(native_length=length)
    raise missing_key(rope_type, NATIVE)


def _checking(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps `PreTrainedConfig.__post_init__` with the checks that must come before transformers fills in defaults."""

    @functools.wraps(original)
    def post_init(self: Any, **kwargs: Any) -> None:
        scaling = kwargs.get("rope_scaling")
        given = scaling or getattr(self, "rope_parameters", None)
        ours = list(_of_ours(given))
        _check_not_ignored(self, kwargs.get("rope_parameters"))
        if not ours:
            original(self, **kwargs)
            return
        has_base = getattr(self, "rope_theta", None) is not None or any(kwargs.get(name) for name in _OLD_BASES)
        for rope_type, parameters in ours:
            if not has_base and parameters.get("rope_theta") is None and rope_type not in REFUSED:
                raise missing_key(rope_type, "rope_theta")
        # The caller may use the same dictionary for other models, and transformers writes into it.
        given = copy.deepcopy(given)
        if (
            native := kwargs.get(NATIVE)
        ) is not None:  # given beside the dictionary; not yet an attribute of the config
            for _, parameters in _of_ours(given):
                if parameters.get(NATIVE) is None:
                    parameters[NATIVE] = native
        if scaling:
            kwargs["rope_scaling"] = given
        else:
            self.rope_parameters = given
        original(self, **kwargs)
        by_layer_type = sorted(key for key, value in self.rope_parameters.items() if isinstance(value, dict))
        if by_layer_type and "rope_type" in self.rope_parameters:
            raise LongEvalError(
                f"rope_type {ours[0][0]}: would be ignored, because {self.model_type} models need rope_parameters in "
                "another form",
                f"Families with a RoPE per layer type, such as Gemma 3, need a dictionary for each layer type "
                f"({', '.join(by_layer_type)}); other families need one flat dictionary.",
            )

    post_init.longeval_original = original  # type: ignore[attr-defined]  # functions take attributes
    return post_init


def _check_not_ignored(config: Any, loose: Any) -> None:
    """Raises LongEvalError if one of our types is given to a family of transformers that would ignore it."""
    own = type(config).__module__.startswith("transformers.") and not hasattr(type(config), "rope_parameters")
    if own and (ours := next(_of_ours(loose), None)):
        raise LongEvalError(
            f"rope_type {ours[0]}: would be ignored, because {config.model_type} models have no configurable RoPE",
            "For a multimodal model, give it to the text configuration; otherwise use a model of another family.",
        )


def _of_ours(given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields our rope types in `rope_parameters`, flat or by layer type, each with its dictionary."""
    if not isinstance(given, dict):
        return
    for parameters in (given, *given.values()):
        if isinstance(parameters, dict):
            rope_type = parameters.get("rope_type", parameters.get("type"))
            if rope_type in _REGISTERED:
                yield rope_type, parameters

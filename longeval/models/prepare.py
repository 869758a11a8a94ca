"""A model as a plan needs it: everything about it except its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.data.tokens import tokenizer_digest
from longeval.errors import LongEvalError
from longeval.models import load
from longeval.models.device import resolve_attention, resolve_device_map
from longeval.models.geometry import full_attention
from longeval.models.identity import weights_digest
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import MethodName, build_table
from longeval.rope.parameters import make_parameters
from longeval.rope.resonance import resonate


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """The scaling in a model's configuration, in our methods' terms."""

    base: str
    """Method name; `none` for plain RoPE."""
    arguments: dict[str, Any]
    """Its parameters."""
    factor: float
    """Its s."""
    native_length: int
    """Its L in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedModel:
    """Configuration, tokenizer and identity of a model; `load` brings the weights."""

    name: str
    """As the user named it."""
    ref: load.ModelRef
    config: Any
    """transformers' PreTrainedConfig."""
    tokenizer: Any
    """transformers' tokenizer."""
    tokenizer_digest: str
    weights_digest: str
    bos: bool
    """Whether every window starts with a BOS."""
    geometry: Geometry
    """Rotary geometry at factor 1."""
    own_native_length: int | None
    """The configuration's L in tokens, whatever `--native` says; None if it has none."""
    shipped: Shipped
    """The scaling that the model came with."""
    dtype: str
    device: str
    device_map: str | None
    attn: str | None
    trust_remote_code: bool
    notes: tuple[str, ...]

    @property
    def native_length(self) -> int:
        """L in tokens."""
        return self.geometry.native_length

    @property
    def shipped_rope(self) -> str | None:
        """Name of the scaling that the model came with, None for plain RoPE; `none` means this scaling."""
        return None if self.shipped.base == "none" else self.shipped.base

    def tables(self, name: MethodName, geometry: Geometry, arguments: Mapping[str, Any]) -> Callable[[int], RopeTable]:
        """A method of this model as a function from window length to table; checks the parameters at once."""
        if name.base == "none" and self.shipped_rope is not None:
            if arguments:
                raise LongEvalError(f"--pe-arg none.{next(iter(arguments))}: none has no parameters", "Leave it out.")
            table = self.shipped_table()
            if name.resonance:
                table = resonate(table)
            return lambda _: table
        parameters = make_parameters(name.base, arguments)
        return lambda length: build_table(name.canonical, geometry, parameters, length)

    def shipped_table(self) -> RopeTable:
        """The table that the model came with; `--native` and `--factor` don't touch it."""
        shipped = self.shipped
        geometry = dataclasses.replace(self.geometry, native_length=shipped.native_length, factor=shipped.factor)
        return build_table(shipped.base, geometry, make_parameters(shipped.base, shipped.arguments), None)

    def load(self) -> Any:
        """Loads the weights: a transformers model in eval mode."""
        return load.load_model(
            self.ref,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            attn=self.attn,
            trust_remote_code=self.trust_remote_code,
        )

    def bos_id(self) -> int:
        """The id of BOS; only where `bos`."""
        assert self.tokenizer.bos_token_id is not None
        return int(self.tokenizer.bos_token_id)


def prepare(
    name: str,
    *,
    revision: str | None,
    native: int | None,
    bos: bool | None,
    dtype: str,
    device: str,
    device_map: str | None,
    attn: str | None,
    trust_remote_code: bool,
) -> PreparedModel:
    """Finds a model and reads its configuration and tokenizer; see `models.load` for the errors."""
    device = load.resolve_device(device)
    dtype = load.resolve_dtype(dtype, device)
    attn = resolve_attention(attn, device)
    device_map = resolve_device_map(device_map)
    ref = load.resolve(name, revision=revision)
    config = load.load_config(ref, trust_remote_code=trust_remote_code)
    rope = load.rope_geometry(config)
    geometry = Geometry(
        head_dim=rope.head_dim, theta=rope.theta, native_length=load.native_length(config, native), factor=1.0
    )
    shipped = _shipped(name, rope, load.native_length(config, native))
    tokenizer = load.load_tokenizer(ref, trust_remote_code=trust_remote_code)
    notes = []
    if shipped.base != "none":
        notes.append(
            f"{name} comes with {rope.rope_type} scaling: none means as shipped, other methods replace that scaling"
        )
    return PreparedModel(
        name=name,
        ref=ref,
        config=config,
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(tokenizer),
        weights_digest=weights_digest(ref),
        bos=_bos(name, tokenizer, bos),
        geometry=geometry,
        own_native_length=_own_native_length(config),
        shipped=shipped,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn=attn,
        trust_remote_code=trust_remote_code,
        notes=tuple(notes),
    )


def _bos(name: str, tokenizer: Any, asked: bool | None) -> bool:
    """Whether windows start with BOS: as asked, else as the tokenizer itself would."""
    bos_id = tokenizer.bos_token_id
    if asked and bos_id is None:
        raise LongEvalError(f"--bos: the tokenizer of {name} has no BOS token", "Leave --bos out.")
    if asked is not None:
        return asked
    ids = tokenizer("a").input_ids
    return bos_id is not None and len(ids) > 0 and ids[0] == bos_id


def _own_native_length(config: Any) -> int | None:
    try:
        return load.native_length(config)
    except LongEvalError:
        return None


def _shipped(name: str, rope: load.ConfigRope, native_length: int) -> Shipped:
    """The scaling in a model's config; raises LongEvalError for one that our methods can't say."""
    given = full_attention(rope.parameters) if rope.by_layer_type else rope.parameters
    if rope.rope_type == "yarn":
        given = _yarn_settings(name, given)
    factor = float(given.get("factor") or 1.0)
    native_length = int(given.get("original_max_position_embeddings") or native_length)
    base, keys = {
        "default": ("none", ()),
        "linear": ("pi", ()),
        "llama3": ("llama3", ("low_freq_factor", "high_freq_factor")),
        "yarn": ("yarn", ("beta_fast", "beta_slow", "attention_factor")),
    }.get(rope.rope_type, (None, ()))
    if base is None:
        raise LongEvalError(
            f"--model {name}: comes with rope_type {rope.rope_type}, which longeval can't reproduce exactly",
            "Use a model with plain RoPE, or one scaled by linear, llama3 or yarn.",
        )
    arguments = {key: given[key] for key in keys if given.get(key) is not None}
    return Shipped(base=base, arguments=arguments, factor=factor, native_length=native_length)


def _yarn_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A config's yarn settings with the attention factor that `mscale` and `mscale_all_dim` stand for (DeepSeek)."""
    settings = dict(given)
    if settings.get("truncate") is False or not settings.get("factor"):
        raise LongEvalError(
            f"--model {name}: its yarn scaling has no factor, or an untruncated ramp, which longeval can't reproduce",
            "Use a model with plain RoPE, or one scaled by linear, llama3 or yarn as published.",
        )
    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    if settings.get("attention_factor") is None and mscale and all_dim:
        grown = math.log(max(1.0, float(settings["factor"])))
        settings["attention_factor"] = (0.1 * mscale * grown + 1) / (0.1 * all_dim * grown + 1)
    return settings

"""How methods apply to a model: the frequencies that they start from, the shipped scaling, and the scaled layers.

A model may come with a scaling (Llama 3.1, Phi-3), called shipped here. `none` always keeps it. Other methods replace
it: they start from plain RoPE and the length before that scaling. With `scale_from="shipped"` they build on it: they
start from the shipped frequencies, and L is the length that these reach. In models with a RoPE per layer type (Gemma 3)
methods scale the global layers, and the sliding-window layers only with `layers="all"`.

The shipped scaling is expressed by our methods. transformers' linear is pi; llama3 and yarn are the same; longrope uses
its short or long list depending on the length of the current sequence; dynamic is ntk with s·n/L − (s−1) instead of s
beyond L (transformers `modeling_rope_utils`), but here it doesn't remember longer sequences that came before. The types
that `longeval.hf` registers are our own methods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from longeval.errors import LongEvalError, prefix_errors
from longeval.models.geometry import NATIVE, ConfigRope, native_length, rope_geometry
from longeval.request import LAYERS, SCALE_FROM, Layers, ScaleFrom
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import MethodName, Parameters, build_table, read_arguments
from longeval.rope.resonance import resonate
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRope:
    """The position encoding of a model, read from its configuration."""

    model: str
    """The model's name as the user gave it."""
    model_type: str
    """transformers' name of the family."""
    geometry: Geometry
    """The geometry that methods start from, at factor 1."""
    config: ConfigRope
    shipped: Shipped
    """The scaling that the model comes with."""
    own_native_length: int | None
    """L in the configuration, in tokens, regardless of `--native`; None if it has none."""
    scale_from: ScaleFrom
    layers: Layers

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        notes = []
        if not self.shipped.is_plain:
            others = "other methods replace it (--scale-from shipped builds on it)"
            if self.scale_from == "shipped":
                others = f"other methods build on it, from {format_length(self.geometry.native_length)}"
            notes.append(
                f"{self.model} comes with {self.shipped.describe()}: none keeps it, resonance rounds its wavelengths, "
                f"{others}"
            )
        guessed = self.own_native_length == self.geometry.native_length and not self.shipped.knows_native_length
        if self.shipped.base == "pi" and self.scale_from == "plain" and guessed:
            notes.append(
                f"{self.model}: its configuration doesn't state the length before its {self.shipped.rope_type} "
                f"scaling; methods that replace it use L = {self.geometry.native_length} (--native sets another)"
            )
        of_layers = [given for given in self.config.parameters.values() if isinstance(given, Mapping)]
        if any("mscale_all_dim" in given for given in (self.config.parameters, *of_layers)):
            notes.append(
                f"{self.model}: under every method its attention keeps the softmax scale of its own yarn scaling "
                "(mscale_all_dim); a method's attention factor is applied in addition"
            )
        if self.config.by_layer_type and self.layers == "global":
            notes.append(
                f"{self.model} has a RoPE for each layer type: methods scale the global layers and leave the "
                "sliding-window layers unchanged (--layers all of ppl and export scales both)"
            )
        return tuple(notes)

    def length_dependent(self, name: MethodName) -> bool:
        """Whether the method's table depends on the length of the window."""
        return name.method.length_dependent or (name.base == "none" and self.shipped.length_dependent)

    def parameters(self, name: MethodName, arguments: Mapping[str, Any]) -> Parameters:
        """A method's parameters: the given ones, and for longrope, which has no defaults, the model's own lists.

        Raises:
            LongEvalError: See `read_arguments`.
        """
        own: dict[str, Any] = {}
        if name.base == self.shipped.base == "longrope":
            own = {key: self.shipped.arguments[key] for key in ("short_factor", "long_factor")}
        return read_arguments(name, own | dict(arguments))

    def tables(self, name: MethodName, geometry: Geometry, arguments: Mapping[str, Any]) -> Callable[[int], RopeTable]:
        """Returns a function that maps a window length to a method's table for this model.

        `geometry` is this model's with the wanted factor. `arguments` are the method's parameters as the user gave
        them; they are checked immediately.

        Raises:
            LongEvalError: Impossible parameters, or a method that can't build on the shipped scaling.
        """
        parameters, resonance = self.parameters(name, arguments)
        local_theta = self.local_theta() if self.layers == "all" else None

        def table(length: int) -> RopeTable:
            if name.base == "none":
                # Global layers keep the shipped scaling; local layers are unchanged unless resonance rounds them.
                built = self.shipped_table(length)
            else:
                built = build_table(name.base, geometry, parameters, length)
            if name.resonance:
                built = resonate(built, resonance.longest_period(geometry.native_length))
            if local_theta is not None:
                of_local = dataclasses.replace(geometry, theta=local_theta, start=None, start_attention_factor=1.0)
                local = build_table(name.canonical, of_local, parameters, length, resonance=resonance)
                built = dataclasses.replace(built, local=local)
            return built

        if name.base != "none":
            build_table(name.base, geometry, parameters, geometry.native_length)
        return table

    def shipped_table(self, length: int) -> RopeTable:
        """The table that the model comes with, for `length` tokens, regardless of `--native` and `--factor`."""
        plain = Geometry(
            head_dim=self.geometry.head_dim, theta=self.geometry.theta, native_length=self.geometry.native_length
        )
        return self.shipped.table(plain, length)

    def local_theta(self) -> float:
        """The base of the sliding-window layers; raises LongEvalError if there are none for `--layers all` to scale."""
        if not self.config.by_layer_type:
            raise LongEvalError(
                f"--layers all: would be ignored, {self.model} ({self.model_type}) has the same RoPE in all layers",
                "Leave --layers out.",
            )
        if self.config.local is None:
            raise LongEvalError(
                f"--layers all: {self.model} ({self.model_type}) has no single set of sliding-window layers to scale",
                "Leave --layers out.",
            )
        return self.config.local


def model_rope(
    name: str, config: Any, *, native: int | None = None, scale_from: str = "plain", layers: str = "global"
) -> ModelRope:
    """Reads a model's position encoding from its `PreTrainedConfig`.

    `native` takes precedence over the configuration's L. The module docstring explains `scale_from` and `layers`.

    Raises:
        LongEvalError: The model has no RoPE or one that our methods can't express, or a setting would be ignored.
    """
    assert scale_from in SCALE_FROM and layers in LAYERS
    with prefix_errors(f"--model {name}", unless=("--native",)):
        rope = rope_geometry(config)
        before = native_length(config, native)
    try:
        geometry = Geometry(head_dim=rope.head_dim, theta=rope.theta, native_length=before)
    except LongEvalError as error:
        why = error.problem.removeprefix("--head-dim ")
        raise LongEvalError(
            f"--model {name}: its config gives impossible rotary dimensions ({why})",
            "Correct head_dim, or hidden_size and num_attention_heads, in its config.json.",
        ) from error
    shipped = _read_shipped(name, config, rope, before)
    if scale_from == "shipped":
        geometry = _start_from_shipped(name, geometry, shipped, native)
    model = ModelRope(
        model=name,
        model_type=str(config.get_text_config().model_type),
        geometry=geometry,
        config=rope,
        shipped=shipped,
        own_native_length=before if native is None else _own_native_length(config),
        scale_from=scale_from,
        layers=layers,
    )
    if layers == "all":
        model.local_theta()
    return model


def _own_native_length(config: Any) -> int | None:
    try:
        return native_length(config)
    except LongEvalError:
        return None


def _start_from_shipped(name: str, geometry: Geometry, shipped: Shipped, native: int | None) -> Geometry:
    """The geometry for methods that build on the shipped scaling: its frequencies, and the length that it reaches."""
    if shipped.is_plain:
        raise LongEvalError(
            f"--scale-from shipped: would be ignored, {name} comes with plain RoPE", "Leave --scale-from out."
        )
    if shipped.base == "dynamic":
        raise LongEvalError(
            f"--scale-from shipped: {name} comes with dynamic scaling, whose frequencies differ at every length",
            "Leave it out: methods then replace that scaling.",
        )
    # A length beyond L, so that longrope's long list is used.
    table = shipped.table(geometry, shipped.reach)
    return dataclasses.replace(
        geometry,
        native_length=native if native is not None else shipped.reach,
        start=tuple(table.inv_freq_F.tolist()),
        start_attention_factor=table.attention_factor,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """The scaling in a model's configuration."""

    rope_type: str
    """A rope type of transformers or of `longeval.hf`."""
    base: str
    """Our method, `none` for plain RoPE; `dynamic` for transformers' formula of that name."""
    resonance: bool = False
    """Whether it is the method's resonance form."""
    arguments: dict[str, Any]
    """The parameters of the method and, in a resonance form, of resonance."""
    factor: float
    """s of the scaling."""
    native_length: int
    """L of the scaling, in tokens."""
    reach: int
    """The length that the scaling extends the context to, tokens."""
    knows_native_length: bool
    """Whether the configuration states L, the length before the scaling."""

    @property
    def is_plain(self) -> bool:
        """Whether it is plain RoPE: no scaling, and no rounding."""
        return self.base == "none" and not self.resonance

    @property
    def label(self) -> str:
        """The rope type, with the longest period of several turns where there is one."""
        max_period = self.arguments.get("max_period", "rounded") if self.resonance else "rounded"
        return self.rope_type if max_period == "rounded" else f"{self.rope_type} (max_period={max_period})"

    @property
    def length_dependent(self) -> bool:
        """Whether the table depends on the length of the sequence."""
        if self.rope_type == "longrope":
            return bool(self.arguments["short_factor"] != self.arguments["long_factor"])
        return self.base == "dynamic"

    def table(self, plain: Geometry, length: int) -> RopeTable:
        """The table for a sequence of `length` tokens; only head_dim and base of `plain` are used."""
        geometry = dataclasses.replace(plain, native_length=self.native_length, factor=self.factor)
        if self.base == "dynamic":
            grown = max(1.0, self.factor * length / self.native_length - (self.factor - 1.0))
            return build_table("ntk", dataclasses.replace(geometry, factor=grown))
        if self.rope_type == "longrope":  # transformers chooses the list by length; our own types choose it by s
            geometry = dataclasses.replace(geometry, factor=max(1.0, length / self.native_length))
        name = MethodName(base=self.base, resonance=self.resonance)
        parameters, resonance = read_arguments(name, self.arguments)
        return build_table(name.canonical, geometry, parameters, resonance=resonance)

    def unrounded(self) -> Shipped:
        """The same scaling without resonance."""
        if not self.resonance:
            return self
        of_method = MethodName(base=self.base, resonance=False).parameter_fields
        arguments = {key: value for key, value in self.arguments.items() if key in of_method}
        return dataclasses.replace(self, resonance=False, arguments=arguments)

    def probes(self) -> tuple[int, ...]:
        """Lengths at which a loaded model's table is compared with this one."""
        return (2, self.native_length + 1, 4 * self.native_length) if self.length_dependent else (2,)

    def describe(self) -> str:
        """Describes the scaling for messages, such as `llama3 scaling from 8k to 128k (s = 8)`."""
        if self.base == "none":
            return f"RoPE of type {self.label}" if self.resonance else "plain RoPE"
        start = "" if self.reach == self.native_length else f"from {format_length(self.native_length)} "
        return f"{self.label} scaling {start}to {format_length(self.reach)} (s = {self.factor:g})"


_ARGUMENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "default": ("none", ()),
    "linear": ("pi", ()),
    "llama3": ("llama3", ("low_freq_factor", "high_freq_factor")),
    "yarn": ("yarn", ("beta_fast", "beta_slow", "attention_factor")),
    "longrope": ("longrope", ("short_factor", "long_factor", "attention_factor")),
    "dynamic": ("dynamic", ()),
}
"""Each rope type of transformers, with our method and the keys of its parameters."""

_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", NATIVE),
    "yarn": (NATIVE,),
    "longrope": ("short_factor", "long_factor", NATIVE),
}
"""Keys that transformers needs for a rope type. For yarn without a factor it takes a ratio of lengths."""


def _read_shipped(name: str, config: Any, rope: ConfigRope, native_length: int) -> Shipped:
    """Reads the scaling in a configuration; `native_length` is used as L if the scaling doesn't state it.

    Raises:
        LongEvalError: Our methods can't express the scaling, or its settings are incomplete or impossible.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    positions = int(positions) if isinstance(positions, int | float) and positions >= 1 else native_length
    given = rope.full_attention
    if not rope.by_layer_type and given.get(NATIVE) is None:
        # transformers doesn't copy it into rope_parameters for types that don't need it.
        given = given | {NATIVE: getattr(text, NATIVE, None)}
    try:
        if (shipped := _read_ours(text, rope.rope_type, given, positions, native_length)) is None:
            shipped = _read_transformers(name, rope.rope_type, given, positions, native_length)
        # Finds impossible settings now, so that the message can name the model.
        shipped.table(Geometry(head_dim=rope.head_dim, theta=rope.theta, native_length=shipped.native_length), 2)
    except LongEvalError as error:
        if error.problem.startswith("--model"):
            raise
        raise LongEvalError(
            f"--model {name}: its {rope.rope_type} scaling is impossible ({error.problem.removeprefix('--pe-arg ')})",
            "Correct rope_parameters in its config.json.",
        ) from error
    return shipped


def _read_ours(
    text: Any, rope_type: str, given: Mapping[str, Any], positions: int, native_length: int
) -> Shipped | None:
    """The scaling of a rope type of `longeval.hf`; None for other types."""
    from longeval.hf import ROPE_TYPES, read_parameters  # loads transformers

    if rope_type not in ROPE_TYPES:
        return None
    read = read_parameters(rope_type, given, ignore=getattr(text, "ignore_keys_at_rope_validation", None) or ())
    own = read.native_length or native_length
    return Shipped(
        rope_type=rope_type,
        base=read.name.base,
        resonance=read.name.resonance,
        arguments=read.arguments,
        factor=read.factor,
        native_length=own,
        reach=max(positions, round(read.factor * own)),
        knows_native_length=read.native_length is not None,
    )


def _read_transformers(name: str, rope_type: str, given: dict[str, Any], positions: int, native_length: int) -> Shipped:
    """The scaling of a rope type of transformers; `positions` is the config's max_position_embeddings."""
    if rope_type not in _ARGUMENTS:
        raise LongEvalError(
            f"--model {name}: comes with rope_type {rope_type}, which longeval can't reproduce exactly",
            f"Use a model with plain RoPE, or one scaled by {', '.join(_ARGUMENTS)}.",
        )
    if rope_type == "dynamic" and given.get("alpha"):
        raise LongEvalError(
            f"--model {name}: its dynamic scaling has an alpha, a formula that only its family uses",
            "Use a model with plain RoPE, or one with transformers' dynamic scaling.",
        )
    if rope_type == "yarn" and not given.get("truncate", True):
        raise LongEvalError(
            f"--model {name}: its yarn scaling has an untruncated ramp, which longeval can't reproduce",
            "Use a model with plain RoPE, or one whose yarn scaling is as published.",
        )
    if missing := [key for key in _NEEDED.get(rope_type, ()) if given.get(key) is None]:
        raise LongEvalError(
            f"--model {name}: its {rope_type} scaling has no {missing[0]}",
            "Correct rope_parameters, or the keys beside them, in its config.json.",
        )
    original = int(given.get(NATIVE) or 0)
    if rope_type in ("yarn", "longrope"):
        ratio = positions / original
        factor = float(given.get("factor") or (ratio if rope_type == "yarn" else max(1.0, ratio)))
        given = given | {"attention_factor": _attention_factor(rope_type, given, factor, original)}
    else:
        factor = float(given.get("factor") or 1.0)
    base, keys = _ARGUMENTS[rope_type]
    # transformers' dynamic formula always uses max_position_embeddings as L.
    own = positions if rope_type == "dynamic" else original or native_length
    return Shipped(
        rope_type=rope_type,
        base=base,
        arguments={
            key: tuple(given[key]) if isinstance(given[key], list) else given[key]
            for key in keys
            if given.get(key) is not None
        },
        factor=factor,
        native_length=own,
        reach=_reach(rope_type, factor, own, positions, bool(original)),
        knows_native_length=bool(original) or rope_type in ("default", "dynamic"),
    )


def _reach(rope_type: str, factor: float, own: int, positions: int, tells_native: bool) -> int:
    """The length that a scaling extends the context to: max_position_embeddings, or s·L if that is longer.

    For llama3, s divides the slow frequencies and is no ratio of lengths: Llama 3.2 goes from 8k to 128k with s = 32.
    """
    if (rope_type == "llama3" and positions > own) or not (tells_native or rope_type == "dynamic"):
        return max(positions, own)
    return max(positions, round(factor * own))


def _attention_factor(rope_type: str, given: Mapping[str, Any], factor: float, original: int) -> float | None:
    """The attention factor of a yarn or longrope scaling, as transformers computes it; None: the method's default.

    A yarn scaling may give it as `mscale` and `mscale_all_dim` (DeepSeek).
    """
    if given.get("attention_factor") is not None:
        return cast(float, given["attention_factor"])
    grown = math.log(max(1.0, factor))
    if rope_type == "longrope":
        return math.sqrt(1.0 + grown / math.log(original)) if grown else 1.0
    mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    if not (mscale and all_dim):
        return None
    return float((0.1 * mscale * grown + 1) / (0.1 * all_dim * grown + 1))

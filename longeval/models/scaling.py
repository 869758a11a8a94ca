"""What a model's configuration makes of the methods: where they start, what it came with, which layers they reach.

A model may come already scaled (Llama 3.1, Phi-3). `none` then means as shipped, always; other methods replace that
scaling and start from plain RoPE at the length before it, or, where asked (`scale_from="shipped"`), build on it: they
start from the shipped frequencies, and L is the length that those were made for. Models that rotate by layer type
(Gemma 3) have their global layers scaled; their sliding-window layers only on request (`layers="all"`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError, said_of
from longeval.models.geometry import NATIVE, ConfigRope, full_attention, native_length, rope_geometry
from longeval.request import LAYERS, SCALE_FROM, Layers, ScaleFrom
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import MethodName, build_table, make_parameters
from longeval.rope.resonance import resonate
from longeval.values import format_length

# The scaling that a model comes with, read from its configuration and said in our methods' terms.
#
# transformers' rope types and ours: linear is pi; llama3 and yarn are themselves; longrope takes its short or its long
# list by the length of the sequence at hand; dynamic is ntk with s·n/L − (s−1) in place of s beyond L (transformers
# `modeling_rope_utils`), here without its memory of longer sequences that came before. The types that `longeval.hf`
# registers are our own methods.


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """A scaling in a configuration."""

    rope_type: str
    """transformers' word, or one of `longeval.hf`."""
    base: str
    """Our method, `none` for plain RoPE; `dynamic` for transformers' formula of that name."""
    resonance: bool
    """Whether wavelengths are rounded."""
    arguments: dict[str, Any]
    """The method's parameters."""
    factor: float
    """Its s."""
    native_length: int
    """Its L in tokens."""
    reach: int
    """The length that the model was stretched to, tokens."""
    knows_native_length: bool
    """Whether the configuration tells L, the length before that scaling."""

    @property
    def length_dependent(self) -> bool:
        """Whether the length of the sequence at hand decides the table."""
        if self.rope_type == "longrope":
            return bool(self.arguments["short_factor"] != self.arguments["long_factor"])
        return self.base == "dynamic"

    def table(self, plain: Geometry, length: int) -> RopeTable:
        """The table for a sequence of `length` tokens; of `plain`, only head_dim and base are used."""
        geometry = dataclasses.replace(plain, native_length=self.native_length, factor=self.factor)
        if self.base == "dynamic":
            grown = max(1.0, self.factor * length / self.native_length - (self.factor - 1.0))
            table = build_table("ntk", dataclasses.replace(geometry, factor=grown))
        else:
            if self.rope_type == "longrope":  # as transformers does; under our own types s decides
                geometry = dataclasses.replace(geometry, factor=max(1.0, length / self.native_length))
            table = build_table(self.base, geometry, make_parameters(self.base, self.arguments))
        return resonate(table) if self.resonance else table

    def probes(self) -> tuple[int, ...]:
        """Lengths at which a loaded model's table is compared with this one: 2, and more where length matters."""
        return (2, self.native_length + 1, 4 * self.native_length) if self.length_dependent else (2,)

    def describe(self) -> str:
        """Describes it for messages: `llama3 scaling from 8k to 128k (s = 8)`."""
        lengths = f"from {format_length(self.native_length)} to {format_length(self.reach)}"
        if self.reach == self.native_length:
            lengths = f"to {format_length(self.reach)}"
        return f"{self.rope_type} scaling {lengths} (s = {self.factor:g})"


def read_shipped(name: str, config: Any, rope: ConfigRope, native_length: int) -> Shipped:
    """Reads the scaling in a configuration.

    Args:
        name: As the user named the model, for messages.
        config: transformers' PreTrainedConfig.
        rope: From `geometry.rope_geometry`.
        native_length: L in tokens, where the scaling itself doesn't say.

    Raises:
        LongEvalError: A scaling that our methods can't say, or one whose settings are incomplete.
    """
    given = full_attention(rope.parameters) if rope.by_layer_type else rope.parameters
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    positions = int(positions) if isinstance(positions, int | float) and positions >= 1 else native_length
    if not rope.by_layer_type and given.get(NATIVE) is None:
        # Types that don't need it aren't given it by transformers.
        given = given | {NATIVE: getattr(text, NATIVE, None)}
    try:
        shipped = _read(name, text, rope.rope_type, given, positions, native_length)
        # An impossible setting shall be told now, and by the model's name.
        shipped.table(Geometry(head_dim=rope.head_dim, theta=rope.theta, native_length=shipped.native_length), 2)
    except LongEvalError as error:
        if error.problem.startswith("--model"):
            raise
        raise LongEvalError(
            f"--model {name}: its {rope.rope_type} scaling is impossible ({error.problem.removeprefix('--pe-arg ')})",
            "Correct rope_parameters in its config.json.",
        ) from error
    return shipped


_ARGUMENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "default": ("none", ()),
    "linear": ("pi", ()),
    "llama3": ("llama3", ("low_freq_factor", "high_freq_factor")),
    "yarn": ("yarn", ("beta_fast", "beta_slow", "attention_factor")),
    "longrope": ("longrope", ("short_factor", "long_factor", "attention_factor")),
    "dynamic": ("dynamic", ()),
}
"""Of each rope type of transformers: our method, and the keys that are its parameters."""

_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", NATIVE),
    "yarn": (NATIVE,),
    "longrope": ("short_factor", "long_factor", NATIVE),
}
"""Keys without which transformers can't compute a type; for a yarn without factor it takes a ratio of lengths."""


def _read(
    name: str, text: Any, rope_type: str, given: Mapping[str, Any], positions: int, native_length: int
) -> Shipped:
    """The scaling of a rope type; `positions` is the config's max_position_embeddings."""
    from longeval.hf import ROPE_TYPES, read_parameters  # loads transformers

    original = given.get(NATIVE)
    if rope_type in ROPE_TYPES:
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
    if rope_type not in _ARGUMENTS:
        raise LongEvalError(
            f"--model {name}: comes with rope_type {rope_type}, which longeval can't reproduce exactly",
            f"Use a model with plain RoPE, or one scaled by {', '.join(_ARGUMENTS)}.",
        )
    if rope_type == "dynamic" and given.get("alpha"):
        raise LongEvalError(
            f"--model {name}: its dynamic scaling has an alpha, a formula of its family's own",
            "Use a model with plain RoPE, or one whose dynamic scaling is transformers'.",
        )
    if missing := [key for key in _NEEDED.get(rope_type, ()) if given.get(key) is None]:
        raise LongEvalError(
            f"--model {name}: its {rope_type} scaling has no {missing[0]}",
            "Correct rope_parameters, or what stands beside them, in its config.json.",
        )
    if rope_type == "yarn":
        given = _yarn_settings(name, given, positions, native_length)
    if rope_type == "longrope":
        given = _longrope_settings(given, positions, native_length)
    base, keys = _ARGUMENTS[rope_type]
    factor = float(given.get("factor") or 1.0)
    # transformers' dynamic formula counts from max_position_embeddings, whatever else the config says.
    own = positions if rope_type == "dynamic" else int(original or native_length)
    return Shipped(
        rope_type=rope_type,
        base=base,
        resonance=False,
        arguments={key: given[key] for key in keys if given.get(key) is not None},
        factor=factor,
        native_length=own,
        reach=_reach(rope_type, factor, own, positions, bool(original)),
        knows_native_length=bool(original) or rope_type in ("default", "dynamic"),
    )


def _reach(rope_type: str, factor: float, own: int, positions: int, tells_native: bool) -> int:
    """The length that a model was stretched to: what its config allows, or s·L where that is not less.

    llama3's s is how far slow features are slowed, no ratio of lengths: Llama 3.2 goes from 8k to 128k with s = 32.
    """
    if (rope_type == "llama3" and positions > own) or not (tells_native or rope_type == "dynamic"):
        return max(positions, own)
    return max(positions, round(factor * own))


def _yarn_settings(name: str, given: Mapping[str, Any], positions: int, native_length: int) -> dict[str, Any]:
    """A config's yarn settings with its s, and the attention factor of `mscale` and `mscale_all_dim` (DeepSeek)."""
    settings = dict(given)
    if not settings.get("truncate", True):
        raise LongEvalError(
            f"--model {name}: its yarn scaling has an untruncated ramp, which longeval can't reproduce",
            "Use a model with plain RoPE, or one whose yarn scaling is as published.",
        )
    settings["factor"] = settings.get("factor") or positions / int(settings.get(NATIVE) or native_length)
    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    if settings.get("attention_factor") is None and mscale and all_dim:
        grown = math.log(max(1.0, float(settings["factor"])))
        settings["attention_factor"] = (0.1 * mscale * grown + 1) / (0.1 * all_dim * grown + 1)
    return settings


def _longrope_settings(given: Mapping[str, Any], positions: int, native_length: int) -> dict[str, Any]:
    """A config's longrope settings with its s and the attention factor that follows from it, as transformers does."""
    settings = dict(given)
    settings["short_factor"], settings["long_factor"] = tuple(settings["short_factor"]), tuple(settings["long_factor"])
    own = int(settings.get(NATIVE) or native_length)
    settings["factor"] = settings.get("factor") or max(1.0, positions / own)
    if settings.get("attention_factor") is None:
        grown = math.log(max(1.0, settings["factor"]))
        settings["attention_factor"] = math.sqrt(1.0 + grown / math.log(own)) if grown else 1.0
    return settings


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRope:
    """The position encoding of a model, as its configuration tells it."""

    model: str
    """As the user named it."""
    model_type: str
    """transformers' word for the family."""
    geometry: Geometry
    """What methods start from, at factor 1."""
    config: ConfigRope
    shipped: Shipped
    """The scaling that the model came with."""
    own_native_length: int | None
    """The configuration's L in tokens, whatever `--native` says; None if it has none."""
    scale_from: ScaleFrom
    layers: Layers

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        notes = []
        if self.shipped.base != "none":
            others = "other methods replace it (--scale-from shipped builds on it)"
            if self.scale_from == "shipped":
                others = f"other methods build on it, from {format_length(self.geometry.native_length)}"
            notes.append(
                f"{self.model} comes with {self.shipped.describe()}: none means as shipped, resonance rounds that, "
                f"{others}"
            )
        guessed = self.own_native_length == self.geometry.native_length and not self.shipped.knows_native_length
        if self.shipped.base == "pi" and self.scale_from == "plain" and guessed:
            notes.append(
                f"{self.model}: its configuration doesn't tell the length before its {self.shipped.rope_type} scaling; "
                f"methods that replace it take L = {self.geometry.native_length} (--native sets another)"
            )
        if any("mscale_all_dim" in given for given in (self.config.parameters, *self._layer_parameters())):
            notes.append(
                f"{self.model}: its attention keeps the softmax scale of its own yarn scaling (mscale_all_dim) under "
                "every method; an attention factor of a method comes on top"
            )
        if self.config.by_layer_type and self.layers == "global":
            notes.append(
                f"{self.model} rotates by layer type: methods apply to the layers that see the whole context, "
                "sliding-window layers stay as they are (--layers all of ppl and export scales those too)"
            )
        return tuple(notes)

    def length_dependent(self, name: MethodName) -> bool:
        """Whether the window's own length decides this method's table."""
        return name.method.length_dependent or (name.base == "none" and self.shipped.length_dependent)

    def uses_factor(self, name: MethodName) -> bool:
        """Whether s decides this method's table."""
        return name.method.uses_factor

    def parameters(self, name: MethodName, arguments: Mapping[str, Any]) -> Any:
        """A method's parameters: what was given, else the model's own where a method has no default (longrope's lists).

        Raises:
            LongEvalError: As `make_parameters`.
        """
        own: dict[str, Any] = {}
        if name.base == self.shipped.base == "longrope":
            own = {key: self.shipped.arguments[key] for key in ("short_factor", "long_factor")}
        return make_parameters(name.base, own | dict(arguments))

    def tables(self, name: MethodName, geometry: Geometry, arguments: Mapping[str, Any]) -> Callable[[int], RopeTable]:
        """Returns a function from window length to a method's table for this model; checks the parameters at once.

        Args:
            name: The method.
            geometry: This model's, with the factor that is wanted.
            arguments: The method's parameters as the user gave them.

        Raises:
            LongEvalError: Impossible parameters, or a method that can't build on the shipped scaling.
        """
        parameters = self.parameters(name, arguments)
        local_theta = self._local_theta() if self.layers == "all" else None

        def table(length: int) -> RopeTable:
            if name.base == "none":
                # Global layers as shipped; the others are then left alone unless they are to be rounded.
                built = self.shipped_table(length)
            else:
                built = build_table(name.base, geometry, parameters, length)
            if name.resonance:
                built = resonate(built)
            if local_theta is not None:
                of_local = dataclasses.replace(geometry, theta=local_theta, start=None, start_attention_factor=1.0)
                local = build_table(name.canonical, of_local, parameters, length)
                built = dataclasses.replace(built, local=local)
            return built

        if name.base != "none":
            build_table(name.base, geometry, parameters, geometry.native_length)
        return table

    def shipped_table(self, length: int) -> RopeTable:
        """The table that the model came with, for `length` tokens; `--native` and `--factor` don't touch it."""
        plain = Geometry(
            head_dim=self.geometry.head_dim, theta=self.geometry.theta, native_length=self.geometry.native_length
        )
        return self.shipped.table(plain, length)

    def _layer_parameters(self) -> list[Mapping[str, Any]]:
        """The settings by layer type, where there are several."""
        return [given for given in self.config.parameters.values() if isinstance(given, Mapping)]

    def _local_theta(self) -> float:
        """The base of the sliding-window layers; LongEvalError where they have a scaling of their own."""
        local = self.config.local
        if local is None:
            raise LongEvalError(
                f"--layers all: {self.model} ({self.model_type}) has no single set of sliding-window layers to scale",
                "Leave --layers out.",
            )
        return local


def model_rope(
    name: str, config: Any, *, native: int | None = None, scale_from: str = "plain", layers: str = "global"
) -> ModelRope:
    """Reads everything about a model's position encoding from its configuration.

    Args:
        name: As the user named the model, for messages.
        config: transformers' PreTrainedConfig.
        native: The value of `--native`, which wins over the configuration's L.
        scale_from: `plain` or `shipped`, see the module.
        layers: `global` or `all`, see the module.

    Raises:
        LongEvalError: No RoPE, one that our methods can't say, or a setting that would be ignored on this model.
    """
    assert scale_from in SCALE_FROM and layers in LAYERS
    with said_of(f"--model {name}", unless=("--native",)):
        rope = rope_geometry(config)
        before = native_length(config, native)
    own = before if native is None else _own_native_length(config)
    try:
        geometry = Geometry(head_dim=rope.head_dim, theta=rope.theta, native_length=before)
    except LongEvalError as error:
        why = error.problem.removeprefix("--head-dim ")
        raise LongEvalError(
            f"--model {name}: its config gives impossible rotary dimensions ({why})",
            "Correct head_dim, or hidden_size and num_attention_heads, in its config.json.",
        ) from error
    shipped = read_shipped(name, config, rope, before)
    if scale_from == "shipped":
        geometry = _start_from_shipped(name, geometry, shipped, native)
    model = ModelRope(
        model=name,
        model_type=str(config.get_text_config().model_type),
        geometry=geometry,
        config=rope,
        shipped=shipped,
        own_native_length=own,
        scale_from="shipped" if scale_from == "shipped" else "plain",
        layers="all" if layers == "all" else "global",
    )
    if layers == "all":
        _check_all_layers(model)
    return model


def _own_native_length(config: Any) -> int | None:
    try:
        return native_length(config)
    except LongEvalError:
        return None


def _start_from_shipped(name: str, geometry: Geometry, shipped: Shipped, native: int | None) -> Geometry:
    """The geometry of methods that build on the shipped scaling: its frequencies, and the length it was made for."""
    if shipped.base == "none":
        raise LongEvalError(
            f"--scale-from shipped: would be ignored, {name} comes with plain RoPE", "Leave --scale-from out."
        )
    if shipped.base == "dynamic":
        raise LongEvalError(
            f"--scale-from shipped: {name} comes with dynamic scaling, which has other frequencies at every length",
            "Leave it out: methods then replace that scaling.",
        )
    # Beyond L, so that of two lists the long one is taken.
    table = shipped.table(geometry, shipped.reach)
    return dataclasses.replace(
        geometry,
        native_length=native if native is not None else shipped.reach,
        start=tuple(table.inv_freq_F.tolist()),
        start_attention_factor=table.attention_factor,
    )


def _check_all_layers(model: ModelRope) -> None:
    """Raises LongEvalError where `--layers all` can't be done or would change nothing."""
    if not model.config.by_layer_type:
        raise LongEvalError(
            f"--layers all: would be ignored, {model.model} ({model.model_type}) rotates all its layers alike",
            "Leave --layers out.",
        )
    model._local_theta()

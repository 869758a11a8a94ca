"""What a model's configuration makes of the methods: where they start, what it came with, which layers they reach.

A model may come already scaled (Llama 3.1, Phi-3). `none` then means as shipped, always; other methods replace that
scaling and start from plain RoPE at the length before it, or, where asked (`scale_from="shipped"`), build on it: they
start from the shipped frequencies, and L is the length that those were made for. Models that rotate by layer type
(Gemma 3) have their global layers scaled; their sliding-window layers only on request (`layers="all"`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError, said_of
from longeval.models.geometry import ConfigRope, native_length, rope_geometry
from longeval.models.shipped import Shipped, read_shipped
from longeval.request import LAYERS, SCALE_FROM, Layers, ScaleFrom
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import MethodName, build_table
from longeval.rope.parameters import make_parameters
from longeval.rope.resonance import resonate
from longeval.values import format_length


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
            LongEvalError: As `rope.parameters.make_parameters`.
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

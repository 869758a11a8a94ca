"""Augmentations: how the positions of a short window stand for those of the target length.

An augmentation is a small dataclass of its parameters; its functions are pure, and all randomness comes from the
generator that they are given. None of them depends on the method, except that E²-LLM draws a factor for it.

Shapes: T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.parameters import ParameterFlag
from longeval.registry import Registry
from longeval.rope.build import MethodName
from longeval.studies.finetune.batch import Lengths
from longeval.values import format_length


class Placement(NamedTuple):
    """The tokens of one sequence: where they come from, and where they are put."""

    text_T: npt.NDArray[np.int64]
    """Indices into the piece of text, shape (T,), ascending."""
    positions_T: npt.NDArray[np.int64]
    """Positions, shape (T,), ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The interface of an augmentation. As it stands it changes nothing."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """Description in one line, for the docs."""
    source: ClassVar[str]
    """Paper."""

    def check(self, lengths: Lengths, method: MethodName) -> None:
        """Raises LongEvalError if the augmentation is undefined for these lengths or this method."""

    def notes(self, lengths: Lengths, method: MethodName) -> tuple[str, ...]:
        """What users should know of a training with these lengths and this method, one line each."""
        return ()

    def piece_tokens(self, window: int) -> int:
        """Tokens of continuous text that one sequence of `window` tokens is drawn from."""
        return window

    def step_factor(self, rng: np.random.Generator) -> float | None:
        """Draws the factor g of one optimiser step; None where the method keeps its own."""
        return None

    def place(self, rng: np.random.Generator, num_tokens: int, lengths: Lengths, factor: float | None) -> Placement:
        """Draws one sequence.

        Args:
            rng: The source of all randomness.
            num_tokens: Tokens of the piece of text, at least `lengths.window`.
            lengths: The lengths of the training.
            factor: What `step_factor` gave for the step.

        Returns:
            `lengths.window` tokens, with positions below the larger of the target length and g·L.
        """
        return Placement(np.arange(lengths.window), np.arange(lengths.window))


Kind = TypeVar("Kind", bound=type[Augmentation])

AUGMENTATIONS: Registry[type[Augmentation]] = Registry("--augment")


def _augmentation(kind: Kind) -> Kind:
    """Registers an augmentation by its name."""
    AUGMENTATIONS.register(kind.name, kind)
    return kind


@_augmentation
@dataclass(frozen=True, kw_only=True, slots=True)
class Unaugmented(Augmentation):
    """Continuous text at its own positions. With a window below the target it is the control of the others."""

    name = "none"
    summary = "continuous text at positions 0, 1, 2, …"
    source = ""

    def notes(self, lengths: Lengths, method: MethodName) -> tuple[str, ...]:
        """See `Augmentation.notes`."""
        if lengths.window >= lengths.target:
            return ()
        return (
            f"--augment none: windows of {format_length(lengths.window)} train no position from "
            f"{format_length(lengths.window)} to the target {format_length(lengths.target)}; as a control only",
        )


@_augmentation
@dataclass(frozen=True, kw_only=True, slots=True)
class Pose(Augmentation):
    """PoSE: chunks of a text with skipped positions between them (Zhu et al. 2023, arXiv 2309.10400).

    N chunks fill a window of c tokens. The lengths of all but the last are uniform in 1 … ⌊(c+1)/N⌋, each by itself;
    the last fills the window. Chunk i is v_i tokens further in the text and u_i positions further than in the
    continuous window, with v_0 = u_0 = 0, v_i uniform in v_{i−1} … len − c, and u_i uniform in u_{i−1} … target − c.
    With two chunks this is the law of the published training (`train_pose.py`).
    """

    name = "pose"
    summary = "chunks of a window, with skipped text and positions between them"
    source = "Zhu et al. 2023, arXiv 2309.10400"

    chunks: int = 2
    """N, chunks of a window."""
    text: int = 5
    """Windows of continuous text that the chunks of one come from; 1: the chunks follow one another in the text."""

    def __post_init__(self) -> None:
        if self.chunks < 2:
            raise LongEvalError(f"chunks {self.chunks}: must be at least 2", "Use 2, as published, or --augment none.")
        if self.text < 1:
            raise LongEvalError(f"text {self.text}: must be at least 1 window", "Use 5, as published.")

    def check(self, lengths: Lengths, method: MethodName) -> None:
        """See `Augmentation.check`."""
        if lengths.target <= lengths.window:
            raise LongEvalError(
                f"--augment pose: no target above the window of {format_length(lengths.window)} to skip to",
                "Give a shorter --window or a longer --length.",
            )
        if self.chunks > lengths.window:
            raise LongEvalError(
                f"--augment-arg pose.chunks={self.chunks}: more than the {lengths.window} tokens of a window",
                "Give fewer; 2 is published.",
            )

    def piece_tokens(self, window: int) -> int:
        """See `Augmentation.piece_tokens`."""
        return self.text * window

    def place(self, rng: np.random.Generator, num_tokens: int, lengths: Lengths, factor: float | None) -> Placement:
        """See `Augmentation.place`."""
        window = lengths.window
        sizes = rng.integers(1, (window + 1) // self.chunks, size=self.chunks - 1, endpoint=True)
        sizes = np.append(sizes, window - sizes.sum())
        text_skips, position_skips = np.zeros((2, self.chunks), dtype=np.int64)
        for chunk in range(1, self.chunks):
            text_skips[chunk] = rng.integers(text_skips[chunk - 1], num_tokens - window, endpoint=True)
            position_skips[chunk] = rng.integers(position_skips[chunk - 1], lengths.target - window, endpoint=True)
        index_T = np.arange(window)
        return Placement(index_T + np.repeat(text_skips, sizes), index_T + np.repeat(position_skips, sizes))


_FIRST_TOKENS = 4
"""Tokens at the start that E²-LLM never shifts, because models attend to them whatever they are."""


@_augmentation
@dataclass(frozen=True, kw_only=True, slots=True)
class E2(Augmentation):
    """E²-LLM: another factor in every step, another offset in every sequence (Liu et al. 2024, arXiv 2401.06951).

    The angle's position is (m + t)/g. In each step g is uniform in 1 … max_factor; in each sequence t is uniform in
    0 … g·L − R, where R is the window, but 0 for the first four tokens. The table divides by g, not the positions.
    Where g·L is below R, t is 0.
    """

    name = "e2"
    summary = "a factor drawn for every step, and an offset of all but the first four tokens for every sequence"
    source = "Liu et al. 2024, arXiv 2401.06951"

    max_factor: int = 20
    """The largest g."""

    def __post_init__(self) -> None:
        if self.max_factor < 1:
            raise LongEvalError(f"max_factor {self.max_factor}: must be at least 1", "Use 20, as published.")

    def check(self, lengths: Lengths, method: MethodName) -> None:
        """See `Augmentation.check`."""
        if not method.method.uses_factor:
            raise LongEvalError(
                f"--augment e2: draws a factor for every step, which {method.canonical} doesn't use",
                "Use --pe pi, as published, or another method with a factor, such as yarn.",
            )
        if self.max_factor * lengths.native < lengths.window:
            raise LongEvalError(
                f"--augment-arg e2.max_factor={self.max_factor}: {self.max_factor} times the native length "
                f"{format_length(lengths.native)} is below the window of {format_length(lengths.window)}",
                "Give a shorter --window or a larger factor.",
            )

    def notes(self, lengths: Lengths, method: MethodName) -> tuple[str, ...]:
        """See `Augmentation.notes`."""
        if method.canonical == "pi":
            return ()
        return (f"--augment e2: published with pi; with {method.canonical} it is longeval's generalisation",)

    def step_factor(self, rng: np.random.Generator) -> float | None:
        """See `Augmentation.step_factor`."""
        return float(rng.integers(1, self.max_factor, endpoint=True))

    def place(self, rng: np.random.Generator, num_tokens: int, lengths: Lengths, factor: float | None) -> Placement:
        """See `Augmentation.place`."""
        assert factor is not None
        positions_T = np.arange(lengths.window)
        positions_T[_FIRST_TOKENS:] += rng.integers(
            0, max(0, int(factor * lengths.native) - lengths.window), endpoint=True
        )
        return Placement(np.arange(lengths.window), positions_T)


_AUGMENT_ARG = ParameterFlag(
    flag="--augment-arg",
    names_flag="--augment",
    noun="augmentation",
    example="pose.chunks=2",
    known=AUGMENTATIONS,
    kind=lambda name: AUGMENTATIONS[name],
)


def parse_augment_args(items: Sequence[str], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of the repeatable flag `--augment-arg AUGMENTATION.PARAMETER=VALUE`.

    Args:
        items: The values, e.g. `pose.chunks=3`.
        names: The augmentations of `--augment`.

    Returns:
        Augmentation → parameter → value.

    Raises:
        LongEvalError: See `ParameterFlag.parse`.
    """
    return _AUGMENT_ARG.parse(items, names)


def make_augmentation(name: str, arguments: Mapping[str, Any]) -> Augmentation:
    """Makes an augmentation from its name and the values of its parameters, typed or text.

    Raises:
        LongEvalError: Unknown name or parameter, unreadable or impossible value.
    """
    made: Augmentation = _AUGMENT_ARG.make(name, arguments)
    return made

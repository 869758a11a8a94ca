"""The request of `longeval posgen train`: tasks, methods, regimes and seeds, and the settings that they share.

All numbers are settings, so that a spec.yaml states what was done even if a default changes. The defaults are those of
the preset `full`: sizes, data and schedule of Wang et al. 2024 (arXiv 2403.00071), section 6.1 and C.1.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from longeval.errors import LongEvalError
from longeval.request import setting
from longeval.request.base import StudyRequest
from longeval.request.model import Device, MethodParameters, Methods
from longeval.request.setting import MACHINE, METHODS, Declare

DATA, MODEL, TRAINING = "Data", "Model", "Training"

Regime = Literal["trained", "swapped"]
"""`trained`: the method is on in training. `swapped`: its base is off in training (`yarn` trains as `none`,
`resonance_yarn` as `resonance`), and the method is switched on for evaluation."""

Precision = Literal["float32", "tf32", "bf16"]
"""Precision of matrix products; weights, moments and sums are always float32."""

Init = Literal["t5", "normal"]
"""Initial weights: T5's scale for each matrix, or one standard deviation for all."""

FEW_SEEDS = 3
"""Fewer seeds say nothing of methods: seeds often differ more than methods do."""

_MOST_SEEDS = 10_000
"""Most seeds of a request, each of which is a training: more are a slip, and planning them takes minutes."""

_SEEDS_END = 2**63
"""Seeds must be below this number for torch."""

_MAY_DIFFER = ("tasks", "pe", "pe_args", "regimes", "seeds", "first_seed", "device")
"""What may differ between the requests of one run folder (parameters of the same method may not)."""


class PosGenRequest(StudyRequest, frozen=True):
    """Train on short sequences, test on longer ones, by RoPE method.

    Every combination of task, method, regime and seed is a cell; methods that
    share a training share it. Finished cells and checkpoints are stored; the
    same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval posgen train --preset small --out runs/small

    longeval posgen train --task cot --pe none,yarn --regime trained,swapped --pe-arg yarn.beta_fast=2 --dry-run

    longeval posgen train --task recursive,cot,semi_recursive --seeds 5 --tf32 --out runs/posgen
    """

    command: ClassVar[str] = "posgen"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "small": {
            "tasks": ("cot",),
            "num_valid": 20,
            "num_test": 100,
            "k": 15,
            "test_length": 1024,
            "d_model": 128,
            "d_ff": 512,
            "heads": 2,
            "tied": False,
            "attention_scale": True,
            "init": "normal",
            "epochs": 4,
            "lr": 1e-3,
            "validate_every": 1,
        },
        "smoke-test": {
            "tasks": ("cot",),
            "regimes": ("trained", "swapped"),
            "seeds": 1,
            "num_valid": 200,
            "num_test": 500,
            "d_model": 128,
            "d_ff": 512,
            "heads": 2,
            "epochs": 7,
            "lr": 1e-3,
            "validate_every": 1,
        },
    }
    presets_help: ClassVar[str] = (
        "full: the paper's sizes, for a GPU; small: five seeds tell methods apart, an hour on two cores; smoke-test: "
        "checks in minutes that everything works, the order of its methods means nothing."
    )
    former_presets: ClassVar[dict[str, str]] = {"smoke": "smoke-test"}
    retired: ClassVar[frozenset[str]] = frozenset({"stack"})

    tasks: Annotated[
        tuple[str, ...],
        Declare(setting.names, "Rules: recursive, cot, semi_recursive; comma list.", flag="--task", example="cot"),
    ] = ("recursive", "cot", "semi_recursive")
    pe: Methods = ("none", "resonance", "yarn", "resonance_yarn")
    regimes: Annotated[
        tuple[Regime, ...],
        Declare(
            setting.several(Regime),
            "trained: the method is on while training; swapped: only in evaluation (resonance in both); or both.",
            flag="--regime",
            example="trained",
        ),
    ] = ("trained",)
    seeds: Annotated[int, Declare(setting.count(), "How many seeds, one training each.")] = 5
    first_seed: Annotated[int, Declare(setting.count(least=0), "The first seed.")] = 0
    data_seed: Annotated[
        int | None,
        Declare(setting.count(least=0), "Seed of one data set for all seeds.", unset="each seed its own", panel=DATA),
    ] = None
    num_train: Annotated[int, Declare(setting.count(), "Sequences to train on.", panel=DATA)] = 10000
    num_valid: Annotated[
        int, Declare(setting.count(), "Sequences for validation, whose losses are kept by epoch.", panel=DATA)
    ] = 1000
    num_test: Annotated[
        int, Declare(setting.count(), "Sequences for the test, which gives the accuracies.", panel=DATA)
    ] = 1000
    modulus: Annotated[int, Declare(setting.count(least=2), "m: tokens are 0 … m−1.", panel=DATA)] = 17
    j: Annotated[
        int, Declare(setting.count(least=0), "Tokens that are summed at the rule's own place.", panel=DATA)
    ] = 1
    k: Annotated[
        int,
        Declare(
            setting.count(least=0),
            "Tokens that are summed right before the new one; the first j + k are random.",
            panel=DATA,
        ),
    ] = 3
    length: Annotated[int, Declare(setting.length(), "Tokens of a training sequence.", panel=DATA)] = 64
    test_length: Annotated[int, Declare(setting.length(), "Tokens of a validation or test sequence.", panel=DATA)] = 256
    factor: Annotated[
        float | None,
        Declare(setting.factor, "s = target / native length.", unset="test length / native, at least 1", panel=METHODS),
    ] = None
    native: Annotated[
        int | None, Declare(setting.length(), "Native length in tokens.", unset="the training length", panel=METHODS)
    ] = None
    pe_args: MethodParameters = Field(default_factory=dict)
    layers: Annotated[int, Declare(setting.count(), "Layers.", panel=MODEL)] = 2
    d_model: Annotated[int, Declare(setting.count(), "Width.", panel=MODEL)] = 512
    d_ff: Annotated[int, Declare(setting.count(), "Width of feed-forward layers.", panel=MODEL)] = 2048
    heads: Annotated[int, Declare(setting.count(), "Attention heads.", panel=MODEL)] = 8
    head_dim: Annotated[int, Declare(setting.count(least=2), "Dimensions of a head, all rotated.", panel=MODEL)] = 64
    theta: Annotated[
        float, Declare(setting.number("greater than 0", lambda base: base > 0), "RoPE's base.", panel=MODEL)
    ] = 10000.0
    tied: Annotated[
        bool, Declare(setting.switch, "Output layer shares the embedding's weights.", off="--untied", panel=MODEL)
    ] = True
    attention_scale: Annotated[
        bool, Declare(setting.switch, "Divide attention logits by √head_dim, which T5 doesn't.", panel=MODEL)
    ] = False
    init: Annotated[
        Init,
        Declare(
            setting.words(Init), "Initial weights. t5: a scale for each matrix; normal: one scale for all.", panel=MODEL
        ),
    ] = "t5"
    start_token: Annotated[
        bool, Declare(setting.switch, "Put a start token in front, which shifts positions by one.", panel=MODEL)
    ] = False
    dropout: Annotated[
        float,
        Declare(
            setting.number("at least 0 and below 1", lambda share: 0 <= share < 1),
            "Dropout rate in training.",
            panel=MODEL,
        ),
    ] = 0.0
    frozen_mlp: Annotated[
        bool,
        Declare(
            setting.switch, "Keep the initial weights of feed-forward layers, as the paper's code does.", panel=MODEL
        ),
    ] = False
    epochs: Annotated[int, Declare(setting.count(), "Passes over the training data.", panel=TRAINING)] = 150
    batch_size: Annotated[int, Declare(setting.count(), "Sequences per step.", panel=TRAINING)] = 128
    lr: Annotated[
        float,
        Declare(
            setting.number("greater than 0", lambda rate: rate > 0),
            "Highest learning rate of the one-cycle schedule.",
            panel=TRAINING,
        ),
    ] = 2e-4
    weight_decay: Annotated[
        float, Declare(setting.number("at least 0", lambda decay: decay >= 0), "AdamW's weight decay.", panel=TRAINING)
    ] = 0.01
    warmup: Annotated[
        float,
        Declare(
            setting.number("between 0 and 1", lambda share: 0 < share < 1),
            "Share of steps in which the learning rate rises.",
            panel=TRAINING,
        ),
    ] = 0.1
    validate_every: Annotated[int, Declare(setting.count(), "Epochs between validation losses.", panel=TRAINING)] = 2
    precision: Annotated[
        Precision,
        Declare(
            setting.words(Precision),
            "Precision of matrix products.",
            switches={"tf32": "Matrix products in TF32 (NVIDIA GPUs).", "bf16": "Matrix products in bfloat16."},
            panel=MACHINE,
        ),
    ] = "float32"
    device: Device = "auto"

    def check(self) -> None:
        """See `StudyRequest.check`."""
        if self.test_length <= self.length:
            raise LongEvalError(
                f"--test-length {self.test_length}: must be longer than the training length {self.length}",
                "PosGen tests on positions that training didn't see: 4 × --length is usual.",
            )
        if self.head_dim % 2:
            raise LongEvalError(f"--head-dim {self.head_dim}: must be even", "RoPE rotates pairs; 64 is usual.")
        if self.epochs == 1 and self.num_train <= self.batch_size:
            raise LongEvalError(
                f"--epochs 1, --num-train {self.num_train}, --batch-size {self.batch_size}: this is a single step, for "
                "which the one-cycle schedule has a learning rate of nearly 0, so nothing would be trained",
                "Use more epochs or smaller batches.",
            )
        if self.seeds > _MOST_SEEDS:
            raise LongEvalError(
                f"--seeds {self.seeds}: more than {_MOST_SEEDS} trainings of each method",
                "5 are usual; --first-seed goes on from where another request ended.",
            )
        for name, last in (("first_seed", self.first_seed + self.seeds - 1), ("data_seed", self.data_seed or 0)):
            if last >= _SEEDS_END:
                raise LongEvalError(
                    f"{self.flag(name)} {getattr(self, name)}: seeds end at {_SEEDS_END - 1}", "Choose a smaller one."
                )

    @property
    def model_name(self) -> str:
        """The model's name from its layers and width, such as `posgen-2x512`."""
        return f"posgen-{self.layers}x{self.d_model}"

    @property
    def dtype(self) -> str:
        """The precision as records name it."""
        return "bfloat16" if self.precision == "bf16" else self.precision

    @property
    def train_window(self) -> int:
        """Tokens of a training window, with the start token."""
        return self.length + self.start_token

    @property
    def test_window(self) -> int:
        """Tokens of an evaluation window, with the start token."""
        return self.test_length + self.start_token

    @property
    def native_length(self) -> int:
        """L in tokens."""
        return self.train_window if self.native is None else self.native

    @property
    def scaling_factor(self) -> float:
        """The factor s."""
        return max(1.0, self.test_window / self.native_length) if self.factor is None else self.factor

    def validates(self, epoch: int) -> bool:
        """Whether validation losses are computed after this many epochs; always after the last."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def seed_values(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def differences(self, other: PosGenRequest) -> list[str]:
        """The differences that keep two requests out of the same run folder, such as `--lr 0.001, not 0.0002`."""
        found = []
        for field in type(self).model_fields:
            if field in _MAY_DIFFER:
                continue
            name = {"factor": "scaling_factor", "native": "native_length"}.get(field, field)
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                found.append(f"{self.flag(field)} {_shown(own)}, not {_shown(others)}")
        for base in sorted(_bases(self.pe) & _bases(other.pe)):
            # Compared as YAML values, because one request may have been read from YAML, where tuples are lists.
            own, others = (one.to_mapping().get("pe_args", {}).get(base, {}) for one in (self, other))
            if own != others:
                found.append(f"--pe-arg {base}: {_shown(own)}, not {_shown(others)}")
        return found


def _shown(value: Any) -> str:
    """A value as text for a message."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bases(names: tuple[str, ...]) -> set[str]:
    """The base methods of some methods: a run folder has one set of their parameters, of resonance maybe several."""
    from longeval.rope.build import listed_names, parse_method_name  # here, because --help imports this module

    return {parse_method_name(name).base for name in listed_names(names)}

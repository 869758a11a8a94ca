"""A request of `longeval posgen train`: tasks, methods, regimes and seeds, and the one setting that they share.

Everything has a number here, so that a spec.yaml says what was done even after a default has changed. The defaults are
those of the preset `full`: the sizes, data and schedule of Wang et al. 2024 (arXiv 2403.00071), section 6.1 and C.1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from longeval.errors import LongEvalError, did_you_mean
from longeval.plain import canonical_json
from longeval.values import check_word

Regime = Literal["trained", "swapped"]
REGIMES: tuple[Regime, ...] = get_args(Regime)
"""trained: a method is on while training. swapped: its base is off while training (`yarn` trains as `none`,
`resonance_yarn` as `resonance`), and the method is switched on for evaluation."""

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""How matrix products are taken; weights, moments and sums are float32 in all of them."""

Init = Literal["t5", "normal"]
INITS: tuple[Init, ...] = get_args(Init)
"""Initial weights: by each matrix's own scale as in T5, or all with one standard deviation."""

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "smoke": {
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
"""What each preset has other than the fields' defaults: `full` nothing, `smoke` what two CPU cores do in minutes."""

_LEAST: dict[str, int] = {
    "seeds": 1,
    "first_seed": 0,
    "data_seed": 0,
    "num_train": 1,
    "num_valid": 1,
    "num_test": 1,
    "modulus": 2,
    "j": 0,
    "k": 0,
    "length": 2,
    "test_length": 2,
    "native": 2,
    "layers": 1,
    "d_model": 1,
    "d_ff": 1,
    "heads": 1,
    "head_dim": 2,
    "epochs": 1,
    "batch_size": 1,
    "validate_every": 1,
}
"""The least value of each whole number."""

HOW_ONLY = frozenset({"stack"})
"""Fields that say how to compute, not what: requests that differ in nothing else are one, in one run folder."""

LARGEST_SEED = 2**63
"""Where seeds end: what torch takes."""

_NO_SETTING = ("tasks", "pe", "pe_args", "regimes", "seeds", "first_seed", "device", "stack")
"""What may differ between the requests of one run folder (parameters of the same method may not)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenRequest:
    """A request of `longeval posgen train`. Every combination of task, method, regime and seed is a cell."""

    command: ClassVar[str] = "posgen"

    tasks: tuple[str, ...] = ("recursive", "cot", "semi_recursive")
    """Names of rules."""
    pe: tuple[str, ...] = ("none", "resonance", "yarn", "resonance_yarn")
    """Method names."""
    regimes: tuple[Regime, ...] = ("trained",)
    """Whether methods are on while training."""
    seeds: int = 5
    """How many seeds."""
    first_seed: int = 0
    """The first of them."""
    data_seed: int | None = None
    """Seed of everybody's data; None: each seed has data of its own."""
    num_train: int = 10000
    """Sequences to train on."""
    num_valid: int = 1000
    """Sequences for the losses by epoch."""
    num_test: int = 1000
    """Sequences for the accuracies."""
    modulus: int = 17
    """m."""
    j: int = 1
    """Tokens that are summed at the rule's own place."""
    k: int = 3
    """Tokens that are summed right before the new one; the first j + k are random."""
    length: int = 64
    """Tokens of a training sequence."""
    test_length: int = 256
    """Tokens of a validation or test sequence."""
    factor: float | None = None
    """s; None: longest window / native length, at least 1."""
    native: int | None = None
    """Native length L in tokens, which methods scale from; None: that of the training windows."""
    pe_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method parameters by method: {"yarn": {"beta_fast": 2}}."""
    layers: int = 2
    """Layers of the model."""
    d_model: int = 512
    """Its width."""
    d_ff: int = 2048
    """Width of its feed-forward layers."""
    heads: int = 8
    """Attention heads."""
    head_dim: int = 64
    """Rotary dimensions of each."""
    theta: float = 10000.0
    """RoPE's base."""
    tied: bool = True
    """Whether the output layer is the embedding."""
    attention_scale: bool = False
    """Whether attention logits are divided by √head_dim; T5 doesn't."""
    init: Init = "t5"
    """How weights start."""
    start_token: bool = False
    """Whether one more token stands in front of every sequence, which shifts positions by one."""
    dropout: float = 0.0
    """Share of activations dropped while training."""
    frozen_mlp: bool = False
    """Whether the feed-forward layers stay as they were drawn, as in the paper's published code."""
    epochs: int = 150
    """Times that every training sequence is seen."""
    batch_size: int = 128
    """Sequences of a step."""
    lr: float = 2e-4
    """Highest learning rate of the one-cycle schedule."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    validate_every: int = 2
    """Epochs between validation losses."""
    precision: Precision = "float32"
    """How matrix products are taken."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: the first GPU, else the CPU."""
    stack: bool | None = None
    """Whether all seeds of a setting train together as one stacked model, or one after another. None: together on a
    GPU, one after another on a CPU, where that is faster. It decides rounding alone."""

    def __post_init__(self) -> None:
        for flag, items in (("--task", self.tasks), ("--pe", self.pe), ("--regime", self.regimes)):
            if not items:
                raise LongEvalError(f"{flag}: nothing named", "Give at least one.")
            if repeated := [item for place, item in enumerate(items) if item in items[:place]]:
                raise LongEvalError(f"{flag} {','.join(items)}: {repeated[0]} is named twice", "Name each once.")
        for regime in self.regimes:
            check_word("--regime", regime, REGIMES)
        check_word("--precision", self.precision, PRECISIONS)
        check_word("--init", self.init, INITS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise LongEvalError(
                    f"{flag_of(name)} {value}: must be at least {least}", f"Give a whole number of at least {least}."
                )
        self._check_ranges()
        self._check_steps()

    def _check_ranges(self) -> None:
        """Raises LongEvalError for numbers that no training can have."""
        if self.test_length <= self.length:
            raise LongEvalError(
                f"--test-length {self.test_length}: must be longer than the training length {self.length}",
                "PosGen tests on positions that training didn't see: 4 × --length is usual.",
            )
        for name in ("lr", "theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise LongEvalError(f"{flag_of(name)} {value:g}: must be a finite number greater than 0", "Mend it.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise LongEvalError(f"--weight-decay {self.weight_decay:g}: must be 0 or more", "0.01 is the paper's.")
        if not 0 < self.warmup < 1:
            raise LongEvalError(f"--warmup {self.warmup:g}: must be between 0 and 1", "0.1 is a tenth of the steps.")
        if not 0 <= self.dropout < 1:
            raise LongEvalError(f"--dropout {self.dropout:g}: must be at least 0 and below 1", "0 is none.")
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor >= 1):
            raise LongEvalError(
                f"--factor {self.factor:g}: must be a finite number of at least 1",
                "It is target length / native length: 4 stretches 64 to 256.",
            )

    def _check_steps(self) -> None:
        """Raises LongEvalError where a schedule has no room, or a stack no second seed."""
        if self.epochs == 1 and self.num_train <= self.batch_size:
            raise LongEvalError(
                f"--epochs 1, --num-train {self.num_train}, --batch-size {self.batch_size}: that is one step, and the "
                "one-cycle schedule ends with a rate of nearly 0, so that nothing would be trained",
                "Ask for more epochs or smaller batches.",
            )
        for name, last in (("first_seed", self.first_seed + self.seeds - 1), ("data_seed", self.data_seed or 0)):
            if last >= LARGEST_SEED:
                raise LongEvalError(
                    f"{flag_of(name)} {getattr(self, name)}: seeds end at {LARGEST_SEED - 1}", "Choose a smaller one."
                )
        if self.stack and self.seeds == 1:
            raise LongEvalError("--stack: would be ignored, there is one seed", "Leave it out or give more --seeds.")

    @property
    def model_name(self) -> str:
        """`posgen-2x512`: layers and width."""
        return f"posgen-{self.layers}x{self.d_model}"

    @property
    def dtype(self) -> str:
        """The precision as records name it."""
        return "bfloat16" if self.precision == "bf16" else self.precision

    @property
    def train_window(self) -> int:
        """Tokens that the model sees at once in training, the start token included."""
        return self.length + self.start_token

    @property
    def test_window(self) -> int:
        """Tokens that it sees at once in evaluation."""
        return self.test_length + self.start_token

    @property
    def native_length(self) -> int:
        """L in tokens."""
        return self.train_window if self.native is None else self.native

    @property
    def scaling_factor(self) -> float:
        """The factor s."""
        return max(1.0, self.test_window / self.native_length) if self.factor is None else self.factor

    def seed_values(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def replaced(self, **changes: Any) -> Self:
        """The same request with other values in some fields, checked again."""
        return dataclasses.replace(self, **changes)

    def to_mapping(self) -> dict[str, Any]:
        """As plain YAML: every field that says something."""
        plain = {"command": self.command}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None and value != {}:
                plain[item.name] = value
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of the request, for naming its run folder; stacked or not, it is the same one."""
        named = {name: value for name, value in self.to_mapping().items() if name not in HOW_ONLY}
        return hashlib.sha256(canonical_json(named).encode()).hexdigest()[:8]

    def differences(self, other: PosGenRequest) -> list[str]:
        """In what two requests differ that one run folder can't hold both of, each as `--lr 0.001, not 0.0002`."""
        found = []
        for item in dataclasses.fields(self):
            if item.name in _NO_SETTING:
                continue
            name = {"factor": "scaling_factor", "native": "native_length"}.get(item.name, item.name)
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                found.append(f"{flag_of(item.name)} {shown(own)}, not {shown(others)}")
        for base in sorted(_bases(self.pe) & _bases(other.pe)):
            own, others = _plain(self.pe_args.get(base, {})), _plain(other.pe_args.get(base, {}))
            if own != others:
                found.append(f"--pe-arg {base}: {shown(own)}, not {shown(others)}")
        return found


def preset_fields(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that starts from a preset, with what is `given` in place of the preset's.

    Raises:
        LongEvalError: There is no such preset.
    """
    if preset not in PRESETS:
        raise LongEvalError(f"--preset {preset}: unknown", did_you_mean(preset, PRESETS))
    return PRESETS[preset] | dict(given)


def flag_of(name: str) -> str:
    """The flag that sets a field: `--batch-size`."""
    own = {"tasks": "task", "regimes": "regime"}
    return f"--{own.get(name, name).replace('_', '-')}"


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={shown(item)}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what was read from YAML equals what came from flags."""
    return json.loads(canonical_json(value))


def _bases(names: tuple[str, ...]) -> set[str]:
    """Methods without resonance, which parameters belong to."""
    return {name.removeprefix("resonance_") for name in names}

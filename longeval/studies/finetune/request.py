"""The request of `longeval finetune`: models, methods, augmentations and seeds, and how each training goes.

The defaults are those of Wang et al. 2024 (arXiv 2403.00071), section 6.2, and of the training script of YaRN
(arXiv 2309.00071) that they used: AdamW with β 0.9 and 0.95, learning rate 2e-5, weight decay 0.01, 5% warm-up, then a
linear fall, 64 sequences a step.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from longeval.errors import LongEvalError
from longeval.request import setting
from longeval.request.base import StudyRequest
from longeval.request.model import (
    Attention,
    Device,
    LayersSetting,
    MethodParameters,
    Methods,
    ModelNames,
    NativeLength,
    ParseSpecial,
    Revision,
    ScaleFromSetting,
)
from longeval.request.setting import MACHINE, METHODS, Declare
from longeval.values import format_length

TEXT, TRAINING, EVALUATION = "Text", "Training", "Evaluation"
"""Panels of `--help`."""

Augment = Literal["none", "pose", "e2"]
"""How positions of a window stand for those of the target; see `studies.finetune.augment`."""

Packing = Literal["continuous", "documents"]
"""`continuous`: tokens see all tokens before them in the window. `documents`: only those of their own document, whose
positions start at 0."""

Loss = Literal["ce", "longce"]
"""`ce`: the mean of all tokens. `longce`: tokens that need a long context count more (Fang et al. 2024)."""

Schedule = Literal["linear", "cosine", "constant"]
"""The learning rate after the warm-up: it falls to 0 in a line or a half cosine, or stays."""

Trained = Literal["full", "lora", "lora_plus"]
"""Which weights are trained."""

Precision = Literal["auto", "float32", "bfloat16"]
"""`bfloat16`: matrix products and activations in bfloat16; weights, gradients and moments stay float32."""


class FinetuneRequest(StudyRequest, frozen=True):
    """Train models on at a longer context, and measure them before and after.

    Every combination of model, method, augmentation and seed is a training,
    whose model lies in RUN/models afterwards. Checkpoints are stored; the same
    command goes on where it stopped.

    [bold]Examples[/bold]

    longeval finetune --model llama2-7b-chat --pe yarn,resonance_yarn --length 32k --data pg19 --steps 50 --out runs/ft

    longeval finetune --model smollm2-135m-q4 --pe yarn,resonance_yarn --length 16k --window 2k --augment pose \
--steps 60 --batch-size 4 --data stdlib --eval-data gov_report

    longeval finetune --model ./my-model --pe resonance_yarn --length 32k --steps 100 --lora --no-eval --dry-run

    accelerate launch --use_fsdp --fsdp_version 2 -m longeval finetune --model ./my-model --pe yarn --length 32k \
--steps 50
    """

    command: ClassVar[str] = "finetune"
    how_only: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch", "gradient_checkpointing", "checkpoint_every", "keep"}
    )

    model: ModelNames
    pe: Methods
    length: Annotated[int, Declare(setting.length(), "Target length in tokens.", example="16k")]
    steps: Annotated[int, Declare(setting.count(), "Optimiser steps.", example="50")]
    window: Annotated[
        int | None, Declare(setting.length(), "Tokens of a sequence that is trained on.", unset="the target length")
    ] = None
    augment: Annotated[
        tuple[Augment, ...],
        Declare(
            setting.several(Augment),
            "Positions of a window shorter than the target: none, pose (skips), e2 (scales and offsets); comma list.",
            example="pose",
        ),
    ] = ("none",)
    augment_args: Annotated[
        dict[str, dict[str, Any]],
        Declare(
            setting.method_parameters,
            "An augmentation's parameter, pose.chunks=2; may be repeated.",
            flag="--augment-arg",
            metavar="NAME.PARAM=VALUE",
            repeated=True,
        ),
    ] = Field(default_factory=dict)
    factor: Annotated[
        float | None,
        Declare(setting.factor, "s = target / native length.", unset="target / native, at least 1", panel=METHODS),
    ] = None
    pe_args: MethodParameters = Field(default_factory=dict)
    native: NativeLength = None
    scale_from: ScaleFromSetting = "plain"
    layers: LayersSetting = "global"
    data: Annotated[
        tuple[str, ...],
        Declare(
            setting.paths,
            "Text to train on: pg19, stdlib, files, folders, patterns in quotes, hub:OWNER/NAME[:CONFIG]:SPLIT; "
            "comma list.",
            example="pg19",
            panel=TEXT,
        ),
    ] = ("pg19",)
    docs: Annotated[
        int | Literal["all"] | None,
        Declare(
            setting.either("all", setting.count()),
            "At most so many documents of each, or all.",
            unset="as many as the steps read",
            panel=TEXT,
        ),
    ] = None
    text_field: Annotated[
        str | None,
        Declare(setting.text, "Field with the text in JSON, CSV, parquet files and hub:… data sets.", panel=TEXT),
    ] = None
    packing: Annotated[
        Packing,
        Declare(
            setting.words(Packing),
            "continuous: tokens see what is before them in the window; documents: only their own document.",
            panel=TEXT,
        ),
    ] = "continuous"
    bos: Annotated[
        bool | None,
        Declare(setting.switch, "Start every document with BOS.", unset="as the tokenizer does", panel=TEXT),
    ] = None
    parse_special: ParseSpecial = False
    batch_size: Annotated[int, Declare(setting.count(), "Sequences of a step, on all devices.", panel=TRAINING)] = 64
    lr: Annotated[
        float,
        Declare(setting.number("greater than 0", lambda rate: rate > 0), "Highest learning rate.", panel=TRAINING),
    ] = 2e-5
    schedule: Annotated[
        Schedule,
        Declare(setting.words(Schedule), "Learning rate after the warm-up: linear, cosine, constant.", panel=TRAINING),
    ] = "linear"
    warmup: Annotated[
        float,
        Declare(
            setting.number("at least 0", lambda steps: steps >= 0),
            "Share of the steps (below 1), or number of steps, in which the learning rate rises.",
            panel=TRAINING,
        ),
    ] = 0.05
    beta1: Annotated[
        float, Declare(setting.number("in [0, 1)", lambda beta: 0 <= beta < 1), "AdamW's β₁.", panel=TRAINING)
    ] = 0.9
    beta2: Annotated[
        float, Declare(setting.number("in [0, 1)", lambda beta: 0 <= beta < 1), "AdamW's β₂.", panel=TRAINING)
    ] = 0.95
    weight_decay: Annotated[
        float, Declare(setting.number("at least 0", lambda decay: decay >= 0), "AdamW's weight decay.", panel=TRAINING)
    ] = 0.01
    clip: Annotated[
        float,
        Declare(
            setting.number("at least 0", lambda norm: norm >= 0), "Largest norm of a gradient; 0: any.", panel=TRAINING
        ),
    ] = 1.0
    loss: Annotated[
        Loss, Declare(setting.words(Loss), "ce, or longce: tokens that need long context count more.", panel=TRAINING)
    ] = "ce"
    loss_args: Annotated[
        dict[str, dict[str, Any]],
        Declare(
            setting.method_parameters,
            "A loss's parameter, longce.context=1k; may be repeated.",
            flag="--loss-arg",
            metavar="NAME.PARAM=VALUE",
            repeated=True,
            panel=TRAINING,
        ),
    ] = Field(default_factory=dict)
    lora: Annotated[bool, Declare(setting.switch, "Train a LoRA adapter (needs peft).", panel=TRAINING)] = False
    lora_plus: Annotated[
        bool,
        Declare(setting.switch, "LoRA, and embeddings and norms trained whole, as LongLoRA's LoRA+.", panel=TRAINING),
    ] = False
    lora_rank: Annotated[int | None, Declare(setting.count(), "LoRA's r.", unset="8", panel=TRAINING)] = None
    lora_alpha: Annotated[
        float | None,
        Declare(setting.number("greater than 0", lambda alpha: alpha > 0), "LoRA's α.", unset="16", panel=TRAINING),
    ] = None
    seeds: Annotated[int, Declare(setting.count(), "How many seeds, one training each.", panel=TRAINING)] = 1
    first_seed: Annotated[int, Declare(setting.count(least=0), "The first seed.", panel=TRAINING)] = 0
    stock: Annotated[
        bool,
        Declare(
            setting.switch,
            "Save frequencies as longrope lists, which transformers and vLLM read without longeval.",
            panel=TRAINING,
        ),
    ] = False
    evaluates: Annotated[
        bool,
        Declare(
            setting.switch, "Measure perplexity before and after.", flag="--eval", off="--no-eval", panel=EVALUATION
        ),
    ] = True
    lengths: Annotated[
        tuple[int, ...] | None,
        Declare(
            setting.lengths,
            "Window lengths of the evaluation.",
            unset="the native and the target length",
            write=setting.lengths_as_written,
            panel=EVALUATION,
        ),
    ] = None
    eval_data: Annotated[
        tuple[str, ...],
        Declare(setting.paths, "Text to measure on, which must not be trained on; as --data.", panel=EVALUATION),
    ] = ("gov_report",)
    eval_docs: Annotated[
        int | Literal["all"] | None,
        Declare(
            setting.either("all", setting.count()),
            "At most so many documents of each, or all.",
            unset="what the data set says",
            panel=EVALUATION,
        ),
    ] = None
    tasks: Annotated[
        tuple[str, ...] | None,
        Declare(
            setting.names,
            "Tasks to run before and after, as in longeval tasks; comma list.",
            unset="none",
            panel=EVALUATION,
        ),
    ] = None
    limit: Annotated[int | None, Declare(setting.count(), "Samples of each task.", unset="all", panel=EVALUATION)] = (
        None
    )
    micro_batch: Annotated[
        int | None,
        Declare(
            setting.count(), "Sequences in a pass.", unset="as many as memory allows, up to 8k tokens", panel=MACHINE
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Declare(
            setting.switch,
            "Keep a layer's input only, and compute the rest twice.",
            unset="where memory needs it",
            panel=MACHINE,
        ),
    ] = None
    checkpoint_every: Annotated[
        int | None,
        Declare(setting.count(), "Steps between checkpoints.", unset="about ten minutes", panel=MACHINE),
    ] = None
    keep: Annotated[int, Declare(setting.count(), "Checkpoints kept of a training under way.", panel=MACHINE)] = 1
    dtype: Annotated[
        Precision,
        Declare(setting.words(Precision), "float32, or bfloat16 with float32 weights and moments.", panel=MACHINE),
    ] = "auto"
    device: Device = "auto"
    attn: Attention = None
    revision: Revision = None

    def check(self) -> None:
        """See `StudyRequest.check`."""
        if self.window_tokens > self.length:
            raise LongEvalError(
                f"--window {format_length(self.window_tokens)}: longer than the target length "
                f"{format_length(self.length)}",
                "Give a longer --length, or leave --window out.",
            )
        for flag in ("lora_rank", "lora_alpha"):
            if getattr(self, flag) is not None and not self.uses_lora:
                raise LongEvalError(
                    f"{self.flag(flag)} {getattr(self, flag):g}: would be ignored, all weights are trained",
                    "Add --lora or --lora-plus, or leave it out.",
                )
        if not self.evaluates:
            for flag in ("lengths", "eval_data", "eval_docs", "tasks"):
                if not self.is_default(flag):
                    raise LongEvalError(
                        f"{self.flag(flag)}: would be ignored beside --no-eval", "Leave one of them out."
                    )
        if self.limit is not None and not self.tasks:
            raise LongEvalError(f"--limit {self.limit}: would be ignored without --tasks", "Leave it out.")
        if self.warmup_steps >= self.steps > 1:
            raise LongEvalError(
                f"--warmup {self.warmup:g}: the learning rate would rise in all of the {self.steps} steps",
                "Give fewer steps of warm-up, or a share such as 0.05.",
            )

    @property
    def window_tokens(self) -> int:
        """Tokens of a sequence, c."""
        return self.length if self.window is None else self.window

    @property
    def uses_lora(self) -> bool:
        """Whether an adapter is trained instead of all weights."""
        return self.lora or self.lora_plus

    @property
    def trains(self) -> Trained:
        """Which weights are trained."""
        return "lora_plus" if self.lora_plus else "lora" if self.lora else "full"

    @property
    def rank(self) -> int:
        """LoRA's r."""
        return 8 if self.lora_rank is None else self.lora_rank

    @property
    def alpha(self) -> float:
        """LoRA's α."""
        return 16.0 if self.lora_alpha is None else self.lora_alpha

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)

    def seed_values(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

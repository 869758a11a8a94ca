"""The settings of a PosGen model and of its training.

Nothing is checked here: a `PosGenRequest` has checked the values before they get here.
Source of the defaults: Wang et al. 2024 (arXiv 2403.00071), sections 5, 6.1 and C.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "tf32", "bf16"]
"""Precision of matrix products: float32 as IEEE has it, TF32 or bfloat16. Weights are float32 in all of them."""

ALGORITHM = 1
"""A part of every training's id. Raise it when a change of the code gives other weights for the same request (rounding
aside): in how data, initial weights, orders or dropout are drawn, in the model, the loss, the schedule or AdamW. Stored
weights and checkpoints of the earlier code are then not used, but trained again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The sizes of the PosGen model, and the choices that the paper leaves open."""

    modulus: int = 17
    """m: tokens are 0 … m−1."""
    layers: int = 2
    """Number of decoder layers."""
    d_model: int = 512
    """Width of the residual stream."""
    d_ff: int = 2048
    """Width of the feed-forward layers."""
    heads: int = 8
    """Number of attention heads."""
    head_dim: int = 64
    """Rotary dimensions of a head."""
    theta: float = 10000.0
    """RoPE's base b. It decides the frequency table, which is computed outside the model."""
    tied: bool = True
    """Whether the output layer is the embedding; with `t5` it reads hidden states times d_model^−0.5 then, as in T5."""
    attention_scale: bool = False
    """Whether attention logits are divided by √head_dim; T5 puts that into the queries' initialisation instead."""
    init: Literal["t5", "normal"] = "t5"
    """`t5`: normal with T5's standard deviations (embedding 1, matrices 1/√inputs, queries as attention_scale needs);
    `normal`: 0.02 everywhere."""
    start_token: bool = False
    """Whether a token with id m stands in front of every sequence, which shifts positions by one."""
    dropout: float = 0.0
    """Dropout while training: of embeddings, of each part's output, inside the feed-forward layer and before the output
    layer; not of attention weights."""
    frozen_mlp: bool = False
    """Whether the feed-forward layers, norms included, stay as initialised."""

    @property
    def vocabulary(self) -> int:
        """V: m, and the start token where there is one."""
        return self.modulus + int(self.start_token)

    @property
    def width(self) -> int:
        """Heads × head_dim."""
        return self.heads * self.head_dim

    @property
    def offset(self) -> int:
        """The first token that is predicted: 1, or 0 with a start token; logits at row i are of token i + offset."""
        return 1 - int(self.start_token)

    def num_positions(self, length: int) -> int:
        """Positions that the model reads to predict sequences of `length` tokens: all tokens but the last."""
        return length - self.offset

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name, without the seeds' axis, in the order in which they are drawn."""
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, self.d_model)}
        for layer in range(self.layers):
            shapes |= {
                f"{layer}.attention.norm": (self.d_model,),
                f"{layer}.attention.qkv": (self.d_model, 3 * self.width),
                f"{layer}.attention.out": (self.width, self.d_model),
                f"{layer}.mlp.norm": (self.d_model,),
                f"{layer}.mlp.in": (self.d_model, self.d_ff),
                f"{layer}.mlp.out": (self.d_ff, self.d_model),
            }
        shapes["norm"] = (self.d_model,)
        if not self.tied:
            shapes["head"] = (self.d_model, self.vocabulary)
        return shapes

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the weights that training changes."""
        return tuple(name for name in self.shapes if not (self.frozen_mlp and ".mlp." in name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSetting:
    """How to train. The defaults are the paper's."""

    epochs: int = 150
    """Times that every sequence is seen."""
    batch_size: int = 128
    """Sequences of one step."""
    lr: float = 2e-4
    """The largest learning rate."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    precision: Precision = "float32"
    """Precision of the matrix products."""
    validate_every: int = 2
    """Epochs from one validation to the next; there is one after the last epoch in any case."""
    checkpoint_every: int = 5
    """Epochs from one checkpoint to the next."""

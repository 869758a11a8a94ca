"""A training: the cell that is stored of it, and everything that decides its weights.

Shapes: see `studies.finetune.batch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from longeval.export.encoding import Encoding
from longeval.metrics.loss import LOSS
from longeval.models.prepare import PreparedModel
from longeval.run.cell import Cell, cell_id
from longeval.store.artefact import Artefact
from longeval.store.losses import LOSSES
from longeval.studies.finetune.augment import Augmentation
from longeval.studies.finetune.batch import Lengths
from longeval.studies.finetune.loss import loss_params
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.text import TrainingText

ALGORITHM = 1
"""Raise it when the same settings give other weights."""

_SETTINGS = (
    *("window", "packing", "steps", "batch_size", "lr", "schedule", "warmup_steps", "beta1", "beta2"),
    *("weight_decay", "clip"),
)
"""Settings of the request that decide how a model is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneCell(Cell):
    """One training; its id digests everything that determines its weights."""

    told_apart_by: ClassVar[tuple[str, ...]] = ("augment", "seed", "window", "train")
    artefact: ClassVar[Artefact[Any] | None] = LOSSES


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelTraining:
    """What one training is given."""

    cell: FinetuneCell
    request: FinetuneRequest
    model: PreparedModel
    encoding: Encoding
    augmentation: Augmentation
    text: TrainingText
    seed: int
    name: str
    """Name of the folder of its model, such as `resonance_yarn-pose-seed1`."""

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.cell.id

    @property
    def lengths(self) -> Lengths:
        """Its lengths."""
        return Lengths(
            window=self.request.window_tokens, target=self.encoding.target_length, native=self.model.native_length
        )

    @property
    def saved_as(self) -> str:
        """The model's folder inside the run folder."""
        return f"models/{self.name}"


def make_training(
    request: FinetuneRequest,
    model: PreparedModel,
    encoding: Encoding,
    augmentation: Augmentation,
    text: TrainingText,
    seed: int,
    *,
    name: str,
    dtype: str,
) -> ModelTraining:
    """A training with its cell."""
    params = _params(request, model, encoding, augmentation, text, seed)
    fields: dict[str, Any] = {
        "model": model.name,
        "factor": encoding.factor if encoding.name.method.uses_factor else None,
        "length": request.length,
        "data": ",".join(dict.fromkeys(document.source for document in text.documents)),
        "backend": "hf",
        "dtype": dtype,
    }
    decides = params | {"algorithm": ALGORITHM, "table": encoding.table.digest(request.length)}
    cell = FinetuneCell(
        id=cell_id("finetune", fields | {"pe": encoding.name.canonical}, decides),
        pe=encoding.name,
        params=params,
        metric=LOSS.name,
        **fields,
    )
    return ModelTraining(
        cell=cell,
        request=request,
        model=model,
        encoding=encoding,
        augmentation=augmentation,
        text=text,
        seed=seed,
        name=name,
    )


def _params(
    request: FinetuneRequest,
    model: PreparedModel,
    encoding: Encoding,
    augmentation: Augmentation,
    text: TrainingText,
    seed: int,
) -> dict[str, Any]:
    """The settings of a training that its record states."""
    settings: Mapping[str, Any] = {name: getattr(request, name) for name in _SETTINGS}
    shipped = model.rope.shipped
    return {
        "native_length": model.native_length,
        "theta": model.geometry.theta,
        "head_dim": model.geometry.head_dim,
        "method": encoding.arguments,
        "shipped_rope": None if shipped.is_plain else shipped.label,
        "scale_from": None if shipped.is_plain else model.rope.scale_from,
        "layers": model.rope.layers if model.rope.config.by_layer_type else None,
        "attn": model.attn,
        "weights": model.weights_digest,
        "tokenizer": model.tokenizer_digest,
        "prefix": list(model.prefix),
        **settings,
        "loss_name": request.loss,
        "loss_args": loss_params(request),
        "window": request.window_tokens,
        "augment": augmentation.name,
        "augment_args": dataclasses.asdict(augmentation),
        "train": request.trains,
        "lora_rank": request.rank if request.uses_lora else None,
        "lora_alpha": request.alpha if request.uses_lora else None,
        "seed": seed,
        "text_digest": text.digest,
        "text_tokens": len(text.tokens_N),
        "text_documents": len(text.documents),
    }

"""Trainings that may be compared, and the cells that measured their models before and after.

A training names the digest of the weights that it started from and of those that it saved. A cell of perplexity whose
model has the first measured the model before, and one whose model has the second measured it after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longeval.report.document import Prose, prose
from longeval.report.settings import canonical, method_of, split
from longeval.report.tables import GridRow, method_rows, resonance_pairs, row_name
from longeval.store.records import Record
from longeval.values import format_length

AUGMENTATIONS = {"none": "no augmentation", "pose": "PoSE", "e2": "E²-LLM"}
"""Names for readers."""

SETTINGS = (
    *("native_length", "theta", "head_dim", "weights", "tokenizer", "window", "packing", "steps", "batch_size"),
    *("lr", "schedule", "warmup_steps", "beta1", "beta2", "weight_decay", "clip", "loss_name", "loss_args"),
    *("train", "lora_rank", "lora_alpha"),
)
"""Parameters that all trainings of a section share."""

_OF_TRAINING = frozenset(
    {
        *("method", "pin_length", "own_native_length", "augment", "augment_args", "seed"),
        *("text_digest", "text_tokens", "text_documents"),
        *("saved_as", "trained_weights", "num_parameters", "num_trained", "first_loss"),
    }
)
"""Parameters in which trainings of a section may differ."""

_SCORED = ("bos", "prefix", "parse_special", "attn", "min_tokens", "stride", "data_digest")
"""Parameters of cells of perplexity that decide which tokens are scored, and how; those of the model are not among
them, since the model before and after differs in its weights and in how its scaling is given."""


_OF_BASE = ("native_length", "scale_from", "layers", "adapter")
"""Parameters that a cell of the base model must share with the trainings: the digest of its weights says nothing of
what is put on them or how its own scaling is read."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Variant:
    """Trainings that differ in their seed alone."""

    row: GridRow
    """Their method."""
    augment: str
    """Name of their augmentation for readers, with its arguments where others have different ones."""
    trainings: Mapping[int, Record]
    """Seed to training, ascending."""

    @property
    def first(self) -> Record:
        """The training of the first seed."""
        return next(iter(self.trainings.values()))

    @property
    def is_augmented(self) -> bool:
        """Whether positions stood for those of longer windows."""
        return bool(self.first.params["augment"] != "none")

    @property
    def name(self) -> Prose:
        """The method as code, with its augmentation."""
        return prose("`{}`{}", self.row.label, f" with {self.augment}" if self.is_augmented else "")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingSet:
    """Trainings that may be compared: the same model, target length, data and settings."""

    model: str
    length: int
    """Target length in tokens."""
    data: str
    differs: str
    """In what it differs from other sets of the same model, length and data; empty if it is the only one."""
    variants: tuple[Variant, ...]

    @property
    def title(self) -> str:
        """Plain-text name."""
        differs = f" ({self.differs})" if self.differs else ""
        return f"{self.model} trained for {format_length(self.length)} on {self.data}{differs}"

    @property
    def records(self) -> list[Record]:
        """All trainings, variant by variant."""
        return [record for variant in self.variants for record in variant.trainings.values()]

    @property
    def params(self) -> dict[str, Any]:
        """The settings that all share."""
        return self.records[0].params

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({seed for variant in self.variants for seed in variant.trainings})

    @property
    def augmentations(self) -> list[str]:
        """Names of the augmentations, in the order of the first trainings."""
        return list(dict.fromkeys(variant.augment for variant in self.variants))

    def pairs(self) -> Iterator[tuple[Variant, Variant]]:
        """Each method with its resonance form, trained with the same augmentation, base first."""
        for augment in self.augmentations:
            by_row = {id(variant.row): variant for variant in self.variants if variant.augment == augment}
            for base, resonance in resonance_pairs([variant.row for variant in by_row.values()]):
                yield by_row[id(base)], by_row[id(resonance)]


def training_sets(records: Iterable[Record]) -> list[TrainingSet]:
    """Sorts the records of trainings into sets, in the order of their first records."""
    families: dict[tuple[str, int, str], list[Record]] = defaultdict(list)
    for record in records:
        families[record.model, record.length, record.data or ""].append(record)
    return [
        TrainingSet(model=model, length=length, data=data, differs=part.differs, variants=_variants(part.records))
        for (model, length, data), family in families.items()
        for part in split(family, SETTINGS, _OF_TRAINING)
    ]


def _variants(records: Sequence[Record]) -> tuple[Variant, ...]:
    """Variants by augmentation, then as methods are sorted everywhere."""
    by_augmentation: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        params = record.params
        by_augmentation[params["augment"], canonical(params.get("augment_args") or {})].append(record)
    several = {name for name, _ in by_augmentation if sum(other == name for other, _ in by_augmentation) > 1}
    variants = []
    for (augment, arguments), found in by_augmentation.items():
        name = AUGMENTATIONS.get(augment, augment) + (f" {arguments}" if augment in several else "")
        rows = method_rows(found)
        for row in rows:
            trainings = {
                record.params["seed"]: record
                for record in sorted(found, key=lambda record: record.params["seed"])
                if _is_of(record, row)
            }
            named = replace(row, label=row_name(row, rows))
            variants.append(Variant(row=named, augment=name, trainings=trainings))
    return tuple(variants)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Models:
    """What one row shows: the base model under one method, or the models that the trainings of a variant left."""

    row: GridRow
    """The method."""
    variant: Variant | None
    """None for the base model."""
    cells: Mapping[int, Mapping[int, Record]]
    """Length to the cells that measured it, by seed; of the base model under the one key 0."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of which any length was measured, ascending."""
        return tuple(sorted({seed for by_seed in self.cells.values() for seed in by_seed}))

    def of_seed(self, seed: int) -> Models:
        """The model of one seed alone."""
        cells = {length: {seed: found[seed]} for length, found in self.cells.items() if seed in found}
        return Models(row=self.row, variant=self.variant, cells=cells)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """The cells that measured the models of a set on the same tokens, before and after."""

    data: str
    protocol: str
    differs: str
    """In what it differs from other evaluations on the same data by the same protocol; empty if it is the only one."""
    lengths: tuple[int, ...]
    untouched: Models | None
    """The base model as it was; None if it was not measured."""
    before: tuple[Models, ...]
    """The base model under each method that was trained and measured before, without `none`."""
    after: tuple[Models, ...]
    """The trained models of each variant of which any was measured."""

    @property
    def title(self) -> str:
        """Plain-text name."""
        return f"{self.data}, {self.protocol}{f' ({self.differs})' if self.differs else ''}"

    @property
    def name(self) -> Prose:
        """The same with the data as code."""
        return prose("`{}`{}", self.data, self.title.removeprefix(self.data))

    @property
    def rows(self) -> tuple[Models, ...]:
        """All rows: the base model, then the trained ones."""
        return (*([] if self.untouched is None else [self.untouched]), *self.before, *self.after)

    def before_of(self, after: Models) -> Models | None:
        """The base model under the method of a trained one; None if it was not measured."""
        rows = (*self.before, *([] if self.untouched is None else [self.untouched]))
        return next((models for models in rows if method_key(models.row) == method_key(after.row)), None)

    def after_of(self, variant: Variant) -> Models | None:
        """The trained models of a variant; None if none was measured."""
        return next((models for models in self.after if models.variant is variant), None)


def method_key(row: GridRow) -> tuple[object, ...]:
    """What is equal in all rows of one method with one set of parameters and one factor."""
    return row.pe, row.method, row.factor


def _is_of(record: Record, row: GridRow) -> bool:
    """Whether a cell was computed with the method of a row."""
    return (record.pe, method_of(record), record.factor) == method_key(row)


def _is_of_base(record: Record, trained: TrainingSet) -> bool:
    """Whether a cell measured the model that trainings started from."""
    weights = record.params.get("weights")
    same = all(record.params.get(name) == trained.params.get(name) for name in _OF_BASE)
    return weights is not None and weights == trained.params.get("weights") and same


def evaluations(trained: TrainingSet, perplexities: Iterable[Record]) -> list[Measured]:
    """The measurements of a set's models on each data set, in the order of their first cells.

    Args:
        trained: The trainings.
        perplexities: Records of perplexity of any models.

    Returns:
        Those on data on which a trained model was measured; of the base model under the methods that were trained.
    """
    after = {record.params.get("trained_weights"): record for record in trained.records if record.status == "ok"}
    after.pop(None, None)
    families: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in perplexities:
        weights = record.params.get("weights")
        is_after = weights in after and record.pe == "none"
        if is_after or _is_of_base(record, trained):
            families[record.data or "", record.protocol or ""].append(record)
    found = []
    for (data, protocol), family in families.items():
        for part in split(family, _SCORED, None):
            one = _evaluation(trained, part.records, (data, protocol, part.differs))
            found += [one] if one.after else []
    return found


def _evaluation(trained: TrainingSet, records: Sequence[Record], names: tuple[str, str, str]) -> Measured:
    """The evaluation of records on the same tokens; `names` are data, protocol and difference."""
    of_base = [record for record in records if _is_of_base(record, trained)]
    by_weights: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        if record.pe == "none":
            by_weights[record.params.get("weights")].append(record)

    before: list[Models] = []
    for row in {method_key(variant.row): variant.row for variant in trained.variants}.values():
        if row.pe != "none":
            same = (record for record in of_base if _is_of(record, row))
            before.append(Models(row=row, variant=None, cells={record.length: {0: record} for record in same}))
    after = []
    for variant in trained.variants:
        cells: dict[int, dict[int, Record]] = defaultdict(dict)
        for seed, training in variant.trainings.items():
            weights = training.params.get("trained_weights")
            for record in by_weights[weights] if weights is not None else ():
                cells[record.length][seed] = record
        after.append(Models(row=variant.row, variant=variant, cells=dict(cells)))
    none = method_rows([record for record in of_base if record.pe == "none"])
    untouched = [
        Models(row=row, variant=None, cells={length: {0: cell} for length, cell in row.cells.items()}) for row in none
    ]
    data, protocol, differs = names
    measured = [models for models in (*untouched[:1], *before, *after) if models.cells]
    return Measured(
        data=data,
        protocol=protocol,
        differs=differs,
        lengths=tuple(sorted({length for models in measured for length in models.cells})),
        untouched=untouched[0] if untouched else None,
        before=tuple(models for models in before if models.cells),
        after=tuple(models for models in after if models.cells),
    )

"""Tables of fine-tuning: perplexities before and after, changes, pairs, cost, and the same numbers as data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longeval.report.document import Data, Prose, Row, Table, TableCell, code, prose
from longeval.report.numbers import MISSING, format_perplexity
from longeval.report.tables import DASH, error_text, factor_text, length_columns
from longeval.store.losses import Losses
from longeval.store.records import Record
from longeval.studies.finetune.report.changes import Change, TokenValues, change, perplexity, perplexity_cell, values_of
from longeval.studies.finetune.report.trainings import Measured, Models, TrainingSet, Variant, method_key
from longeval.values import format_duration, format_length

MAX_SEEDS = 5
"""Models of more seeds than this have no rows of their own in tables; the CSV has them."""

_UNTOUCHED, _BEFORE = "base", "before training"


def _stage(models: Models) -> str:
    """`before training`, `trained`, `trained, PoSE`."""
    if models.variant is None:
        return _BEFORE
    return f"trained, {models.variant.augment}" if models.variant.is_augmented else "trained"


def _row(first: Sequence[Prose], models: Models, cells: Sequence[TableCell]) -> Row:
    texts = [*first, factor_text(models.row)]
    return Row(cells=(*(TableCell(text=text) for text in texts), *cells))


def _by_method(evaluation: Measured) -> list[Models]:
    """The rows of an evaluation: the base model, then each method before and after."""
    groups: dict[tuple[object, ...], list[Models]] = defaultdict(list)
    for models in (*evaluation.before, *evaluation.after):
        groups[method_key(models.row)].append(models)
    base = [] if evaluation.untouched is None else [evaluation.untouched]
    return [*base, *(models for found in groups.values() for models in found)]


def perplexity_table(evaluation: Measured, tokens: TokenValues, slug: str = "") -> Table:
    """Perplexities of the base model, and of each method before and after training; the best of a length in bold."""
    rows = _by_method(evaluation)
    best = {length: _best(rows, length) for length in evaluation.lengths}
    shown = []
    for models in rows:
        stage = _UNTOUCHED if models is evaluation.untouched else _stage(models)
        several = len(models.seeds) > 1
        name = f"{stage}, mean of {len(models.seeds)} seeds" if several else stage
        shown.append(_row([name, code(models.row.label)], models, _values(models, evaluation, tokens, best)))
        if several and len(models.seeds) <= MAX_SEEDS:
            for seed in models.seeds:
                of_seed = models.of_seed(seed)
                cells = _values(of_seed, evaluation, tokens, {})
                shown.append(_row([f"{stage}, seed {seed}", code(models.row.label)], models, cells))
    return Table(
        columns=length_columns(["model", "method"], evaluation.lengths),
        rows=tuple(shown),
        left=2,
        title=f"Perplexity before and after training: {evaluation.title}",
        caption=_caption(rows),
        notes=tuple(_failures(rows)),
        label=f"before-after-{slug}",
    )


def _values(
    models: Models, evaluation: Measured, tokens: TokenValues, best: Mapping[int, str | None]
) -> list[TableCell]:
    cells = []
    for length in evaluation.lengths:
        values = values_of(models, length)
        is_best = bool(values) and format_perplexity(perplexity(values)) == best.get(length)
        cells.append(perplexity_cell(models, length, tokens, is_best=is_best))
    return cells


def _best(rows: Sequence[Models], length: int) -> str | None:
    """How the lowest perplexity of a column reads; None with fewer than two."""
    values = [perplexity(found) for models in rows if (found := values_of(models, length))]
    return format_perplexity(min(values)) if len(values) > 1 else None


def _caption(rows: Sequence[Models]) -> str:
    text = (
        "Perplexity (lower is better) with its 95% bootstrap interval; the best of each length in bold. “base” is the "
        "model as it was, “before training” the same weights under the method, without a step of training."
    )
    if any(len(models.seeds) > 1 for models in rows):
        text += (
            " Means over seeds are geometric; their interval is of the text, and the range of the seeds stands behind."
        )
    return text


def _failures(rows: Sequence[Models]) -> Iterator[str]:
    """One line for each reason for which cells have no value."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for models in rows:
        for length, by_seed in models.cells.items():
            for seed, record in by_seed.items():
                if record.status != "ok":
                    of_seed = f", seed {seed}" if len(models.seeds) > 1 else ""
                    place = f"{_stage(models)} {models.row.label}{of_seed} at {format_length(length)}"
                    reasons.setdefault((record.status, error_text(record)), []).append(place)
    for (status, reason), places in reasons.items():
        yield f"{status}: {'; '.join(places)}: {reason}"


def change_table(evaluation: Measured, tokens: TokenValues, slug: str) -> Table:
    """Change of each trained model against the same method before training, and against the untouched model."""
    rows = []
    for after in evaluation.after:
        before = evaluation.before_of(after)
        bases = [before] if before is not None and before is not evaluation.untouched else []
        bases += [] if evaluation.untouched is None else [evaluation.untouched]
        for base in bases:
            found = [change(base, after, length, tokens) for length in evaluation.lengths]
            against = "base" if base is evaluation.untouched else prose("`{}` before", base.row.label)
            assert after.variant is not None
            names: list[Prose] = [after.variant.name, against]
            rows.append(_row(names, after, [DASH if one is None else one.cell for one in found]))
    caption = (
        "Relative change of perplexity by training (negative: training helped), on the same tokens, with the 95% "
        "interval from resampling the same documents or blocks in both. Bold: the interval excludes 0. The intervals "
        "are not corrected for how many there are."
    )
    return Table(
        columns=length_columns(["trained", "against"], evaluation.lengths),
        rows=tuple(rows),
        left=2,
        title=f"Change by training: {evaluation.title}",
        caption=caption,
        label=f"changes-{slug}",
    )


def pair_changes(
    trained: TrainingSet, evaluation: Measured, tokens: TokenValues
) -> list[tuple[Models, Models, dict[int, Change]]]:
    """Each method and its resonance form after the same training, with the change at each length where both are."""
    found = []
    for base, resonance in trained.pairs():
        a, b = evaluation.after_of(base), evaluation.after_of(resonance)
        if a is None or b is None or not _same_text(base, resonance):
            continue
        by_length = {length: one for length in evaluation.lengths if (one := change(a, b, length, tokens)) is not None}
        if by_length:
            found.append((a, b, by_length))
    return found


def _same_text(a: Variant, b: Variant) -> bool:
    """Whether trainings of equal seed read the same text."""
    digests = [{seed: record.params.get("text_digest") for seed, record in one.trainings.items()} for one in (a, b)]
    return all(digests[0][seed] == digests[1][seed] for seed in digests[0] if seed in digests[1])


def pair_table(trained: TrainingSet, evaluation: Measured, tokens: TokenValues, slug: str) -> tuple[Table, bool] | None:
    """Differences between each method and its resonance form, before and after; None without pairs.

    Returns:
        The table, and whether any pair has several seeds.
    """
    pairs = pair_changes(trained, evaluation, tokens)
    if not pairs:
        return None
    rows, untrained = [], []
    for a, b, by_length in pairs:
        name = prose("`{}` vs `{}`", b.row.label, a.row.label)
        before_a, before_b = evaluation.before_of(a), evaluation.before_of(b)
        if before_a is not None and before_b is not None and (before_a, before_b) not in untrained:
            untrained.append((before_a, before_b))
            found = [change(before_a, before_b, length, tokens) for length in evaluation.lengths]
            cells = [DASH if one is None else one.cell for one in found]
            rows.append(_row([name, _BEFORE], a, cells))
        seeds = len(next(iter(by_length.values())).by_seed)
        stage = f"{_stage(a)}, {seeds} seeds" if seeds > 1 else _stage(a)
        cells = [by_length[length].cell if length in by_length else DASH for length in evaluation.lengths]
        rows.append(_row([name, stage], a, cells))
    caption = (
        "Relative change of perplexity when the wavelengths of the method are rounded (negative: resonance is better), "
        "with the 95% interval from resampling the same documents or blocks in both. Trained pairs had the same "
        "batches in the same order."
    )
    several = any(len(one.by_seed) > 1 for _, _, by_length in pairs for one in by_length.values())
    caption += (
        " Behind it the range of the seeds. Bold: the interval excludes 0, and the change is larger than that range."
        if several
        else " Bold: the interval excludes 0."
    )
    table = Table(
        columns=length_columns(["pair", "model"], evaluation.lengths),
        rows=tuple(rows),
        left=2,
        title=f"Resonance after the same training: {evaluation.title}",
        caption=f"{caption} The intervals are not corrected for how many there are.",
        label=f"trained-pairs-{slug}",
    )
    return table, several


# Trainings.


def training_table(trained: TrainingSet) -> Table:
    """One row for each training: its losses, its speed, and where its model lies."""
    return Table(
        columns=("method", "augmentation", "seed", "steps", "loss first → last", "tokens/s", "saved as"),
        rows=tuple(_training_rows(trained, _outcome)),
        left=2,
        caption="Losses are the mean cross-entropy of the first and of the last tenth of the steps, nats per token.",
        notes=tuple(_failed_trainings(trained)),
        label="trainings",
    )


def training_summary(trained: TrainingSet) -> Table:
    """The trainings for a terminal. The folders of the models name method, augmentation and seed."""
    rows = []
    for variant in trained.variants:
        for seed, record in variant.trainings.items():
            steps, loss, speed, saved_as = _outcome(record)
            name = f"{variant.row.label}, {variant.augment}, seed {seed}" if saved_as == MISSING else saved_as
            rows.append(Row(cells=tuple(TableCell(text=text) for text in (name, steps, loss, speed))))
    return Table(
        columns=("saved as", "steps", "loss first → last", "tokens/s"),
        rows=tuple(rows),
        left=1,
        title=f"Trainings: {trained.title}",
        notes=tuple(_failed_trainings(trained)),
    )


def cost_table(trained: TrainingSet) -> Table:
    """One row for each training: what it cost."""
    return Table(
        columns=("method", "augmentation", "seed", "tokens", "time", "tokens/s", "peak memory", "trained parameters"),
        rows=tuple(_training_rows(trained, _cost)),
        left=2,
        caption="Time is that of the optimiser steps. Memory is that of the process on a CPU, and of the device's "
        "allocator on a GPU.",
    )


def _training_rows(trained: TrainingSet, numbers: Callable[[Record], Sequence[Prose]]) -> Iterator[Row]:
    for variant in trained.variants:
        for seed, record in variant.trainings.items():
            names: list[Prose] = [code(variant.row.label), variant.augment, str(seed)]
            texts = [*names, *numbers(record)]
            yield Row(cells=tuple(TableCell(text=text, is_failure=text == "failed") for text in texts))


def _outcome(record: Record) -> list[Prose]:
    steps = f"{record.params['steps']:,}"
    if record.value is None:
        return [steps, record.status, MISSING, MISSING]
    first, saved_as = record.params.get("first_loss"), record.params.get("saved_as")
    loss = f"{MISSING if first is None else format_perplexity(first)} → {format_perplexity(record.value)}"
    return [steps, loss, _speed(record), MISSING if saved_as is None else code(saved_as)]


def _speed(record: Record) -> str:
    took, tokens = record.elapsed_s, record.tokens
    return MISSING if not took or tokens is None else f"{tokens / took:,.0f}"


def _cost(record: Record) -> list[Prose]:
    if record.value is None:
        return [record.status, *(MISSING,) * 4]
    peak = record.peak_memory_bytes
    return [
        MISSING if record.tokens is None else f"{record.tokens:,}",
        MISSING if record.elapsed_s is None else format_duration(record.elapsed_s),
        _speed(record),
        MISSING if peak is None else f"{peak / 2**30:.2f} GiB",
        share_text(record.params.get("num_trained"), record.params.get("num_parameters")),
    ]


def share_text(trained: int | None, every: int | None) -> str:
    """`all 134,515,008`, `460,800 of 134,515,008 (0.343%)`."""
    if trained is None or not every:
        return MISSING
    return f"all {every:,}" if trained == every else f"{trained:,} of {every:,} ({100 * trained / every:.3g}%)"


def _failed_trainings(trained: TrainingSet) -> Iterator[str]:
    """One line for each reason for which trainings have no model."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for variant in trained.variants:
        for seed, record in variant.trainings.items():
            if record.status != "ok":
                place = f"{variant.row.label}, {variant.augment}, seed {seed}"
                reasons.setdefault((record.status, error_text(record)), []).append(place)
    for (status, reason), places in reasons.items():
        yield f"{status}: {'; '.join(places)}: {reason}"


# Numbers for other programs.


def loss_data(trained: TrainingSet, losses: Callable[[str], Losses | None]) -> Data:
    """One row for each step of each training."""
    rows: list[dict[str, Any]] = []
    for variant in trained.variants:
        for seed, record in variant.trainings.items():
            found = losses(record.cell) if record.status == "ok" else None
            if found is not None:
                rows += [_names(trained, variant, seed) | {"cell": record.cell} | step for step in found.rows()]
    return Data(name="losses", rows=tuple(rows))


def _names(trained: TrainingSet, variant: Variant, seed: int | None) -> dict[str, Any]:
    return {
        "model": trained.model,
        "target_length": trained.length,
        "trained_on": trained.data,
        "differs": trained.differs,
        "pe": variant.row.label,
        "factor": variant.row.factor,
        "augment": variant.first.params["augment"],
        "seed": seed,
    }


def change_data(trained: TrainingSet, evaluation: Measured, tokens: TokenValues) -> Data:
    """One row for each trained model, length, and what it is compared with: `none` and the method before training.

    Rows without a seed are means over seeds.
    """
    rows: list[dict[str, Any]] = []
    for after in evaluation.after:
        assert after.variant is not None
        before = evaluation.before_of(after)
        bases = {id(models): models for models in (before, evaluation.untouched) if models is not None}
        each = [(seed, after.of_seed(seed)) for seed in after.seeds]
        for seed, models in ([(None, after)] if len(each) > 1 else []) + each:
            for base in bases.values():
                for length in evaluation.lengths:
                    found = change(base, models, length, tokens)
                    if found is not None:
                        names = _names(trained, after.variant, seed) | _measured(evaluation, length)
                        rows.append(names | {"against": base.row.label} | _numbers(found, "before", "after"))
    return Data(name="before_after", rows=tuple(rows))


def pair_data(trained: TrainingSet, evaluation: Measured, tokens: TokenValues) -> Data:
    """One row for each pair after training, length and seed; rows without a seed are means over seeds."""
    rows: list[dict[str, Any]] = []
    for a, b, by_length in pair_changes(trained, evaluation, tokens):
        assert a.variant is not None
        for length, found in by_length.items():
            seeds = sorted(found.by_seed)
            each = [(seed, change(a.of_seed(seed), b.of_seed(seed), length, tokens)) for seed in seeds]
            for seed, one in ([(None, found)] if len(seeds) > 1 else []) + each:
                assert one is not None
                names = _names(trained, a.variant, seed) | {"resonance": b.row.label} | _measured(evaluation, length)
                rows.append(names | _numbers(one, "base", "resonance"))
    return Data(name="trained_pairs", rows=tuple(rows))


def _measured(evaluation: Measured, length: int) -> dict[str, Any]:
    return {
        "data": evaluation.data,
        "protocol": evaluation.protocol,
        "evaluation_differs": evaluation.differs,
        "length": length,
    }


def _numbers(found: Change, first: str, second: str) -> dict[str, Any]:
    drawn = ("low", "high", "excludes_zero", "units", "kind", "level", "resamples")
    return {
        f"perplexity_{first}": found.before,
        f"perplexity_{second}": found.after,
        "ratio": found.ratio,
        **{
            f"ratio_{name}" if name in ("low", "high") else name: getattr(found.difference, name, None)
            for name in drawn
        },
    }

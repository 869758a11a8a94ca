"""What a report says of trainings: what they changed at each length, at what price and cost, and how they went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from longeval.metrics.perplexity import PERPLEXITY
from longeval.report.build import StudyReport
from longeval.report.collect import Collection
from longeval.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Note,
    Paragraph,
    Prose,
    Section,
    Table,
    joined,
    prose,
)
from longeval.report.numbers import counted, format_percent, format_perplexity, numbers_text
from longeval.report.tables import slugs_of
from longeval.store.losses import LOSSES, Losses
from longeval.store.nll import NLL
from longeval.store.records import Record
from longeval.studies.finetune.report.changes import Change, TokenValues, change, perplexity, values_of
from longeval.studies.finetune.report.facts import opening, setting_facts
from longeval.studies.finetune.report.figures import leaves_panel, length_figure, loss_figure, smoothing
from longeval.studies.finetune.report.tables import (
    change_data,
    change_table,
    cost_table,
    loss_data,
    pair_data,
    pair_table,
    perplexity_table,
    training_summary,
    training_table,
)
from longeval.studies.finetune.report.trainings import Measured, Models, TrainingSet, evaluations, training_sets
from longeval.values import format_length

LossesOf = Callable[[str], Losses | None]
"""Cell id to its losses, or None where none are stored."""


def sections(collection: Collection) -> list[Section]:
    """One section for each set of trainings that may be compared, in the order of their first cells."""
    found = training_sets(collection.made_from(LOSSES))
    perplexities = [record for record in collection.made_from(NLL) if record.metric == PERPLEXITY.name]
    slugs = slugs_of([trained.title for trained in found])
    return [
        _section(trained, slug, evaluations(trained, perplexities), collection, is_drawn=collection.is_drawn(number))
        for number, (trained, slug) in enumerate(zip(found, slugs, strict=True))
    ]


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal: the trainings, then perplexities before and after."""
    perplexities = [record for record in records if record.metric == PERPLEXITY.name and record.task is None]
    tables = []
    for trained in training_sets([record for record in records if is_training(record)]):
        tables.append(training_summary(trained))
        without_tokens = TokenValues(lambda cell: None)
        tables += [perplexity_table(found, without_tokens) for found in evaluations(trained, perplexities)]
    return tables


def is_training(record: Record) -> bool:
    """Whether a record is that of a training."""
    return record.metric == "loss" and record.task is None and "augment" in record.params


def _section(
    trained: TrainingSet, slug: str, evaluated: Sequence[Measured], collection: Collection, *, is_drawn: bool
) -> Section:
    tokens = TokenValues(collection.nll)
    slugs = slugs_of([f"{slug} {evaluation.title}" for evaluation in evaluated])
    parts = [_evaluated(trained, one, name, tokens, is_drawn) for one, name in zip(evaluated, slugs, strict=True)]

    def losses(cell: str) -> Losses | None:
        return collection.stores[cell].losses(cell)

    blocks: list[Block] = [Paragraph(text=opening(trained))]
    results = [line for evaluation in evaluated for line in _results(trained, evaluation, tokens)]
    blocks += [Bullets(items=tuple(results))] if results else []
    blocks += [Note(text=text) for text in _missing(trained, evaluated)]
    blocks += [block for shown, _ in parts for block in shown]
    blocks += _loss_blocks(trained, slug, losses, is_drawn=is_drawn)
    blocks += [Heading(text="Cost"), cost_table(trained)]
    blocks += [Heading(text="What was trained"), setting_facts(trained)]
    data = [loss_data(trained, losses)]
    for evaluation in evaluated:
        data += [change_data(trained, evaluation, tokens), pair_data(trained, evaluation, tokens)]
    return Section(
        title=trained.title,
        blocks=tuple(blocks),
        paper=tuple(table for _, tables in parts for table in tables),
        data=tuple(data),
        differs=(trained.differs,),
        is_drawn=is_drawn,
    )


def _evaluated(
    trained: TrainingSet, evaluation: Measured, slug: str, tokens: TokenValues, is_drawn: bool
) -> tuple[list[Block], list[Table]]:
    """What was measured on one data set, as blocks and as the tables of a paper."""
    native = trained.params.get("native_length")
    paper = [perplexity_table(evaluation, tokens, slug), change_table(evaluation, tokens, slug)]
    blocks: list[Block] = [Heading(text=prose("Before and after on {}", evaluation.name)), paper[0]]
    if is_drawn and (chart := length_figure(trained, evaluation, native)) is not None:
        description = "Perplexity by context length, before training (dashed) and after (solid)"
        blocks.append(Figure(name=f"before-after-{slug}", description=description, chart=chart))
        if leaves_panel(evaluation):
            blocks.append(Paragraph(text="Where the base model leaves the panel, the table has its values."))
    if paper[1].rows:
        blocks += [Paragraph(text="What training changed:"), paper[1]]
    pairs = pair_table(trained, evaluation, tokens, slug)
    if pairs is not None:
        table, several = pairs
        paper.append(table)
        blocks += [Heading(text=prose("Resonance after the same training, on {}", evaluation.name))]
        blocks += [Paragraph(text=_seeds_text(trained, several=several)), table]
    price = [*_price(evaluation, native, tokens)]
    if price:
        blocks += [Heading(text=prose("Short context on {}", evaluation.name)), Paragraph(text=_PRICE)]
        blocks.append(Bullets(items=tuple(price)))
    return blocks, paper


_PRICE = (
    "What training costs at lengths that the model could read before, up to its native length: the change of "
    "perplexity against the model as it was, with its 95% interval. Above 0 the trained model is worse."
)


def _seeds_text(trained: TrainingSet, *, several: bool) -> str:
    """What seeds say of differences between methods."""
    if not several:
        return (
            f"One seed ({numbers_text(trained.seeds)}) of each: the intervals are of the text alone, and how far "
            "another seed would move these differences is not known."
        )
    return (
        f"Seeds {numbers_text(trained.seeds)}, with equal batches in equal order for both forms of a seed. A "
        "difference that is smaller than the range between the seeds means nothing, whatever its interval: the "
        "interval is of the text alone."
    )


def _results(trained: TrainingSet, evaluation: Measured, tokens: TokenValues) -> Iterator[Prose]:
    """A sentence for each variant: what it changed at the target length, or at the longest that was measured."""
    for after in evaluation.after:
        measured = [length for length, found in after.cells.items() if any(r.value for r in found.values())]
        if not measured or after.variant is None:
            continue
        length = trained.length if trained.length in measured else max(measured)
        before = evaluation.before_of(after)
        own = None if before is None else change(before, after, length, tokens)
        base = evaluation.untouched
        other = None if base is None or base is before else change(base, after, length, tokens)
        where = prose("On `{}` at {}, ", evaluation.data, format_length(length))
        if own is not None:
            said = prose(
                "{}training took {} from {} to {} ({}{})",
                where,
                after.variant.name,
                format_perplexity(own.before),
                format_perplexity(own.after),
                own.text,
                _verdict(own),
            )
        elif other is not None:
            said = prose("{}{} has {} after training", where, after.variant.name, format_perplexity(other.after))
        else:
            continue
        if other is not None:
            said = prose("{}; the model as it was has {}", said, format_perplexity(other.before))
        yield prose("{}.", said)


def _verdict(found: Change) -> str:
    """Words for a change that the interval or the seeds can't tell from none; empty for a clear one."""
    if found.difference is None or found.is_clear:
        return ""
    return ", no clear change"


def _price(evaluation: Measured, native: int | None, tokens: TokenValues) -> Iterator[Prose]:
    """A sentence for each variant: its change against the untouched model at lengths up to the native one."""
    base = evaluation.untouched
    if base is None or native is None:
        return
    for after in evaluation.after:
        said: list[str] = []
        for length in evaluation.lengths:
            found = change(base, after, length, tokens) if length <= native else None
            if found is None:
                continue
            untrained = _untrained(evaluation, after, length)
            said.append(f"{found.text} at {format_length(length)}{_verdict(found)}{untrained}")
        if said and after.variant is not None:
            yield prose("{}: {}.", after.variant.name, "; ".join(said))


def _untrained(evaluation: Measured, after: Models, length: int) -> str:
    """What the method alone changes at a length, ` (untrained: +4.90%)`; empty where it was not measured."""
    before = evaluation.before_of(after)
    if before is None or evaluation.untouched is None or before is evaluation.untouched:
        return ""
    own, base = values_of(before, length), values_of(evaluation.untouched, length)
    return f" (untrained: {format_percent(perplexity(own) / perplexity(base) - 1)})" if own and base else ""


def _missing(trained: TrainingSet, evaluated: Sequence[Measured]) -> Iterator[Prose]:
    """Sentences on trained models that were not measured, as a whole or at single lengths."""
    done = [variant for variant in trained.variants if any(r.status == "ok" for r in variant.trainings.values())]
    if done and not evaluated:
        folder = next(r.params.get("saved_as") for r in trained.records if r.status == "ok") or "models/…"
        yield prose(
            "No trained model was measured. `longeval ppl --model RUN/{} --lengths …` measures one; its cells belong "
            "into the same report.",
            folder,
        )
    for evaluation in evaluated:
        absent = [*_absent(trained, evaluation)]
        if absent:
            yield prose("Not measured on {}: {}.", evaluation.name, joined("; ", absent))


def _absent(trained: TrainingSet, evaluation: Measured) -> Iterator[Prose]:
    """Each trained model with the lengths at which it has no cell."""
    for variant in trained.variants:
        after = evaluation.after_of(variant)
        for seed, training in variant.trainings.items():
            lengths = [n for n in evaluation.lengths if after is None or seed not in after.cells.get(n, {})]
            if training.status == "ok" and lengths:
                of_seed = f", seed {seed}," if len(variant.trainings) > 1 else ""
                yield prose("the model of {}{} at {}", variant.name, of_seed, ", ".join(map(format_length, lengths)))


def _loss_blocks(trained: TrainingSet, slug: str, losses: LossesOf, *, is_drawn: bool) -> list[Block]:
    """The figure of losses by step, and the table of trainings."""
    blocks: list[Block] = [Heading(text="Loss")]
    if is_drawn and (chart := loss_figure(trained, losses)) is not None:
        text = "Cross-entropy of the tokens of each step, before the step changed the weights"
        if trained.params.get("loss_name") != "ce":
            text += "; without the weights that the training gave to tokens"
        steps = smoothing(int(trained.params["steps"]))
        if steps > 1:
            text += f". Each point is the mean of {counted(steps, 'step')}"
        if len(trained.seeds) > 1:
            text += ". Lines are means over seeds, bands reach from the lowest to the highest seed"
        blocks.append(Paragraph(text=f"{text}."))
        blocks.append(Figure(name=f"training-loss-{slug}", description="Training loss by step", chart=chart))
    return [*blocks, training_table(trained)]


REPORT = StudyReport(
    subject="fine-tuning",
    across="context length",
    sections=sections,
    summary=summary,
    figures=("before-after-*", "training-loss-*"),
    data=("losses.csv", "before_after.csv", "trained_pairs.csv"),
)

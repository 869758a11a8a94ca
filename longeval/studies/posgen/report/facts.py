"""What stands under a PosGen table: data, model, training and methods, in a list."""

from __future__ import annotations

import json
from typing import Any

from longeval.report.document import Bullets, Prose, joined, prose
from longeval.report.facts import codes, unique
from longeval.report.numbers import MISSING, count_range, counted, format_factor
from longeval.report.rows import factor_text
from longeval.studies.posgen.report.cells import place_of, seeds_text
from longeval.studies.posgen.report.tables import GENERATED, OOD, PosGenTable

REGIMES = {
    "trained": "the method is on while training and in evaluation, as the paper's text has it",
    "swapped": "the base is off while training (YaRN trains as plain RoPE) and switched on for evaluation, Resonance's "
    "rounding is on in both, as in the paper's published code",
}
"""What each regime means."""

_TASKS = {
    "recursive": "the last j + k tokens",
    "cot": "the first j tokens of the sequence and the last k",
    "semi_recursive": "the j tokens at index ⌊(l − (j + k)) / 2⌋ and the last k, where l is the new token's index",
}
"""What is summed for the next token."""


def seeds_phrase(table: PosGenTable) -> str:
    """`5 seeds (0–4)`."""
    return f"{counted(len(table.seeds), 'seed')} ({seeds_text(table.seeds)})"


def setting_facts(table: PosGenTable) -> Bullets:
    """All that decides the values of a table."""
    facts: list[Prose] = [_data(table), *_sums(table), _model(table), _training(table), *_trained_with(table)]
    return Bullets(items=(*facts, *_methods(table), *_counts(table)))


def _data(table: PosGenTable) -> str:
    """Sequences, and which data each seed has."""
    params = table.params
    seeds = {place_of(record).seed: record.params.get("data_seed") for record in table.records}
    if all(data in (None, seed) for seed, data in seeds.items()):
        whose = "each seed has data of its own" if len(seeds) > 1 else f"data of seed {next(iter(seeds))}"
    else:
        whose = f"all seeds have the data of seed {next(iter(seeds.values()))}"
    counts = ", ".join(
        f"{params[name]:,} {what}"
        for name, what in (("num_train", "to train on"), ("num_valid", "for losses"), ("num_test", "to test"))
    )
    return (
        f"Data: numbers from 0 to {params['modulus'] - 1}; the first {params['j'] + params['k']} are random and the "
        f"same in no two sequences, then each is a sum modulo {params['modulus']} (j = {params['j']}, k = "
        f"{params['k']}). Sequences: {counts}; {params['train_length']} tokens in training, {params['test_length']} in "
        f"validation and test; {whose}."
    )


def _sums(table: PosGenTable) -> list[str]:
    return [f"{task}: sums {_TASKS[task]}." for task in table.tasks if task in _TASKS]


def _model(table: PosGenTable) -> Prose:
    params = table.params
    switches = [
        f"embeddings {'tied with' if params.get('tied') else 'apart from'} the output layer",
        f"attention logits {'' if params.get('attention_scale') else 'not '}divided by √{params['head_dim']}",
        "initial weights `{}`",
        "one more token in front" if params.get("start_token") else "no token in front",
        f"dropout {format_factor(params['dropout'])}" if params.get("dropout") else "no dropout",
        *(["feed-forward layers frozen"] if params.get("frozen_mlp") else []),
    ]
    return prose(
        f"Model `{{}}`: decoder of {counted(params['layers'], 'layer')}, width {params['d_model']}, feed-forward "
        f"{params['d_ff']}, {counted(params['heads'], 'head')} of {params['head_dim']}, RoPE base "
        f"{format_factor(params['theta'])}; {', '.join(switches)}.",
        table.records[0].model,
        params.get("init"),
    )


def _training(table: PosGenTable) -> str:
    params = table.params
    return (
        f"Training: {counted(params['epochs'], 'epoch')} in batches of {params['batch_size']}, AdamW, highest "
        f"learning rate {format_factor(params['lr'])}, weight decay {format_factor(params['weight_decay'])}, one cycle "
        f"with {100 * params['warmup']:g}% warm-up, {table.records[0].dtype}; the first "
        f"{params['j'] + params['k']} tokens are left out of the loss; {seeds_phrase(table)}."
    )


def _trained_with(table: PosGenTable) -> list[Prose]:
    """`yarn` with `none`: rows that were trained with another method than they are tested with."""
    found = []
    for row in table.rows:
        records = [record for runs in row.runs.values() for record in runs.records]
        names = unique(str(record.params.get("trained_with", row.row.pe)) for record in records)
        if names != [row.row.pe]:
            found.append(prose("`{}` with {}", row.name, joined(" and ", map(codes, ([name] for name in names)))))
    return [prose("Trained with: {}.", joined(", ", found))] if found else []


def _methods(table: PosGenTable) -> list[Prose]:
    """`yarn`: s = 4, L = 64, beta_fast 32: factor and parameters of methods that have any."""
    facts: list[Prose] = []
    for row in table.rows:
        said = []
        if row.row.factor is not None:
            native = next(iter(row.row.cells.values())).params.get("native_length", "?")
            said.append(f"s = {factor_text(row.row)}, L = {native}")
        values: dict[str, Any] = json.loads(row.row.method)
        said += [
            f"{name} {format_factor(value) if isinstance(value, float) else value}"
            for name, value in values.items()
            if value is not None
        ]
        if said:
            facts.append(prose("`{}`: {}.", row.name, ", ".join(said)))
    return facts


def _counts(table: PosGenTable) -> list[str]:
    """Test sequences and scored tokens of a cell."""
    facts = []
    for metric, what in ((OOD, "OOD accuracy"), (GENERATED, "Free-running accuracy")):
        found = [record for record in table.records if record.metric == metric and record.status == "ok"]
        sequences, tokens = count_range([r.n for r in found]), count_range([r.tokens for r in found])
        if MISSING not in (sequences, tokens):
            facts.append(f"{what} of a cell: {tokens} tokens of {sequences} sequences.")
    return facts

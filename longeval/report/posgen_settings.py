"""What stands under a PosGen table: data, model, training and methods, in bullets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from longeval.report.facts import unique
from longeval.report.formats.markdown import code, escape_markdown
from longeval.report.numbers import counted, format_factor
from longeval.report.posgen_cells import place_of
from longeval.report.posgen_tables import GENERATED, OOD, PosGenTable
from longeval.report.posgen_text import seeds_phrase
from longeval.report.rows import factor_text

_TASKS = {
    "recursive": "the last j + k tokens",
    "cot": "the first j tokens of the sequence and the last k",
    "semi_recursive": "the j tokens at index ⌊(l − (j + k)) / 2⌋ and the last k, where l is the new token's index",
}
"""What is summed for the next token."""


def settings_lines(table: PosGenTable) -> list[str]:
    """A bullet list."""
    lines = [_data_line(table), *_task_lines(table), _model_line(table), _training_line(table)]
    swapped = _trained_with(table)
    if swapped:
        lines.append(f"- Trained with: {', '.join(swapped)}.")
    return [*lines, *_method_lines(table), *_count_lines(table)]


def _data_line(table: PosGenTable) -> str:
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
        f"- Data: numbers from 0 to {params['modulus'] - 1}; the first {params['j'] + params['k']} are random and the "
        f"same in no two sequences, then each is a sum modulo {params['modulus']} (j = {params['j']}, k = "
        f"{params['k']}). Sequences: {counts}; {params['train_length']} tokens in training, {params['test_length']} in "
        f"validation and test; {whose}."
    )


def _task_lines(table: PosGenTable) -> list[str]:
    return [f"- {escape_markdown(task)}: sums {_TASKS[task]}." for task in table.tasks if task in _TASKS]


def _model_line(table: PosGenTable) -> str:
    params = table.params
    switches = [
        f"embeddings {'tied with' if params.get('tied') else 'apart from'} the output layer",
        f"attention logits {'' if params.get('attention_scale') else 'not '}divided by √{params['head_dim']}",
        f"initial weights {code(params.get('init'))}",
        "one more token in front" if params.get("start_token") else "no token in front",
        f"dropout {format_factor(params['dropout'])}" if params.get("dropout") else "no dropout",
    ]
    if params.get("frozen_mlp"):
        switches.append("feed-forward layers frozen")
    return (
        f"- Model {code(table.records[0].model)}: decoder of {counted(params['layers'], 'layer')}, width "
        f"{params['d_model']}, feed-forward {params['d_ff']}, {counted(params['heads'], 'head')} of "
        f"{params['head_dim']}, RoPE base {format_factor(params['theta'])}; {', '.join(switches)}."
    )


def _training_line(table: PosGenTable) -> str:
    params = table.params
    return (
        f"- Training: {counted(params['epochs'], 'epoch')} in batches of {params['batch_size']}, AdamW, highest "
        f"learning rate {format_factor(params['lr'])}, weight decay {format_factor(params['weight_decay'])}, one cycle "
        f"with {100 * params['warmup']:g}% warm-up, {escape_markdown(table.records[0].dtype)}; the first "
        f"{params['j'] + params['k']} tokens are left out of the loss; {seeds_phrase(table)}."
    )


def _trained_with(table: PosGenTable) -> list[str]:
    """`yarn` with `none`: rows that were trained with another method than they are tested with."""
    found = []
    for row in table.rows:
        records = [record for runs in row.runs.values() for record in runs.records]
        names = unique(str(record.params.get("trained_with", row.row.pe)) for record in records)
        if names != [row.row.pe]:
            found.append(f"{code(row.name)} with {' and '.join(code(name) for name in names)}")
    return found


def _method_lines(table: PosGenTable) -> list[str]:
    """`yarn`: s = 4, L = 64, beta_fast 32: factor and parameters of methods that have any."""
    lines = []
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
            lines.append(f"- {code(row.name)}: {escape_markdown(', '.join(said))}.")
    return lines


def _count_lines(table: PosGenTable) -> list[str]:
    """Test sequences and scored tokens of a cell."""
    lines = []
    for metric, what in ((OOD, "OOD accuracy"), (GENERATED, "Free-running accuracy")):
        found = [record for record in table.records if record.metric == metric and record.status == "ok"]
        counts = _range([record.n for record in found]), _range([record.tokens for record in found])
        if all(counts):
            lines.append(f"- {what} of a cell: {counts[1]} tokens of {counts[0]} sequences.")
    return lines


def _range(counts: Sequence[Any]) -> str:
    """One number where all agree, else the lowest and the highest; nothing where none is known."""
    known = [count for count in counts if count is not None]
    if not known:
        return ""
    return f"{min(known):,}" if min(known) == max(known) else f"{min(known):,} to {max(known):,}"

"""What was scored, how to repeat it, and where it was computed: the lines under a report's tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from longeval.report.collect import Collection
from longeval.report.gfm import code, code_block, escape_markdown, table_lines
from longeval.report.grid import Grid
from longeval.report.rows import GridRow, factor_text
from longeval.report.sections import ordered_unique
from longeval.report.settings import precision_text
from longeval.store.records import Record
from longeval.values import format_length

_PROTOCOLS = {
    "prefix": "the first n tokens of each document in one window; every token after the first is scored once",
    "sliding": "windows of n tokens every `stride` tokens over the whole document; in each window only the tokens not "
    "yet scored count (Press et al. 2022)",
    "sliding_window_mean": "windows of n tokens every `stride` tokens over the whole document; in each window only the "
    "tokens not yet scored count; the plain mean of all windows' means, whatever their number of tokens",
    "stream": "documents joined into one stream without separators, windows of n tokens every `stride` tokens, every "
    "token of every window scored",
}

_MAX_DOCUMENTS = 20
"""More names than this say no more."""


def scored_lines(grid: Grid, documents: Sequence[str]) -> list[str]:
    """A bullet list and a table: protocol, model settings, factors, and the counts at each length.

    Args:
        grid: The table.
        documents: Names of the documents of the longest windows; empty where not known.
    """
    settings = grid.records[0].params
    lines = [f"- Protocol {code(grid.protocol)}: {_PROTOCOLS.get(grid.protocol, 'not described here')}."]
    lengths = [(name, settings.get(name)) for name in ("stride", "min_tokens")]
    shown = [f"{name} {format_length(value)}" for name, value in lengths if value is not None]
    if shown:
        lines.append(f"- Selection: {', '.join(shown)}.")
    if grid.protocol == "prefix" and len(grid.lengths) > 1:
        lines.append(
            "- All lengths of a method whose table does not depend on length come from one forward pass a document; in "
            "bfloat16 and float16 the last digits can differ from those of a pass at that length alone."
        )
    if documents:
        named = ", ".join(code(name) for name in documents[:_MAX_DOCUMENTS])
        more = f" and {len(documents) - _MAX_DOCUMENTS} more" if len(documents) > _MAX_DOCUMENTS else ""
        lines.append(f"- Documents: {named}{more}.")
    if settings.get("data_digest"):
        lines.append(f"- Digest of the texts: {code(settings['data_digest'])}.")
    if settings.get("bos") is not None:
        lines.append(f"- BOS: {_prefix_text(settings)}.")
    if settings.get("parse_special"):
        lines.append("- Special tokens that texts spell were read as control tokens (`--parse-special`).")
    lines.append(model_line(grid.model, grid.native_length, grid.records[0]))
    lines += method_lines(grid.rows)
    lines += [_bootstrap_line(grid), ""]
    header = ["length", "windows", "scored tokens", "documents", "truncated", "skipped (too short)", "bootstrap units"]
    return lines + table_lines(header, [_count_row(grid, length) for length in grid.lengths])


def _prefix_text(settings: dict[str, Any]) -> str:
    """What stands at the start of every window."""
    prefix = settings.get("prefix") or []
    if not settings["bos"]:
        return "none"
    if len(prefix) < 2:
        return "one at the start of every window, counted in its length"
    ids = ", ".join(map(str, prefix))
    return (
        f"{len(prefix)} tokens of the tokenizer's own (ids {ids}) at the start of every window, counted in its length"
    )


def model_line(model: str, native_length: int | None, record: Record) -> str:
    """A bullet: the model, its native length, and what ran it."""
    native = "not recorded" if native_length is None else f"{format_length(native_length)} tokens"
    own = record.params.get("own_native_length")
    if own and own != native_length:
        native += f" by `--native` (the model's own: {format_length(own)})"
    attention = f", attention {code(record.params['attn'])}" if record.params.get("attn") else ""
    return (
        f"- Model {code(model)}: native length {native}, backend {escape_markdown(record.backend)}, "
        f"{escape_markdown(precision_text(record.dtype))}{attention}."
    )


def server_lines(records: Sequence[Record]) -> list[str]:
    """A note on results of servers, which do what they were started with; none for those of other backends.

    Args:
        records: Of one section, which all have one backend.
    """
    if not records or records[0].backend != "openai":
        return []
    methods: dict[str, list[str]] = {}
    for record in records:
        name, address = record.params.get("served_model") or "a model without a name", record.params.get("base_url")
        at = f"{code(name)} at {escape_markdown(address)}"
        methods.setdefault(at, []).append(code(record.pe))
    served = [f"{at} ({', '.join(dict.fromkeys(names))})" for at, names in methods.items()]
    return [
        "> Methods are labels here: these are results of a server, which rotates as it was started. longeval applied "
        "nothing of `--pe`, and nothing shows whether method, factor and parameters are what the server computes with. "
        f"Asked: {'; '.join(served)}.",
        "",
    ]


def method_lines(rows: Sequence[GridRow]) -> list[str]:
    """Bullets: the scaling that the model came with, factors and parameters of methods."""
    lines = []
    first = next(iter(rows[0].cells.values()))
    settings = {} if first.backend == "openai" else first.params  # a server's scaling is its own
    if settings.get("shipped_rope"):
        lines.append(
            f"- RoPE scaling that the model came with: {escape_markdown(_shown(str(settings['shipped_rope'])))}; "
            f"`none` keeps it, other methods {'build on' if settings.get('scale_from') == 'shipped' else 'replace'} it."
        )
    if settings.get("layers"):
        which = "all layers" if settings["layers"] == "all" else "the layers that see the whole context only"
        lines.append(f"- The model rotates by layer type; methods apply to {which}.")
    factors = ordered_unique([f"{code(row.label)} {factor_text(row)}" for row in rows if row.factor is not None])
    if factors:
        lines.append(f"- Factor s (target / native length): {', '.join(factors)}; other methods have none.")
    parameters = ordered_unique([f"{code(row.label)} {said}" for row in rows if (said := _parameters(row.method))])
    if parameters:
        lines.append(f"- Method parameters: {'; '.join(parameters)}.")
    return lines


def _parameters(method: str) -> str:
    """`beta_fast 32, beta_slow 1`: what is set, None left out."""
    values: dict[str, Any] = json.loads(method)
    said = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    ]
    return escape_markdown(_shown(", ".join(said)))


def _shown(method: str) -> str:
    return method if len(method) <= 160 else method[:157] + "…"


def _bootstrap_line(grid: Grid) -> str:
    how: dict[str, Any] = next((ci for record in grid.records if (ci := record.params.get("ci"))), {})
    if not how:
        return "- Intervals: none (too few documents or tokens to resample)."
    speaks = (
        "they speak of other documents of this kind"
        if how.get("kind") == "document"
        else "blocks of consecutive tokens of these documents, so they speak of more text from these documents, "
        "not of other documents"
    )
    return (
        f"- Intervals: percentile bootstrap, {escape_markdown(how.get('resamples', '?'))} resamples of "
        f"{escape_markdown(how.get('kind', 'unit'))}s, level {how.get('level', 0.95):.0%}, "
        f"seed {escape_markdown(how.get('seed', '?'))}; {speaks}."
    )


def _count_row(grid: Grid, length: int) -> list[str]:
    records = [r for row in grid.rows if (r := row.cells.get(length)) is not None and r.status == "ok"]
    fields: tuple[Callable[[Record], int | None], ...] = (
        lambda record: record.n,
        lambda record: record.tokens,
        lambda record: record.documents,
        lambda record: record.truncated,
        lambda record: record.skipped,
        lambda record: (record.params.get("ci") or {}).get("units"),
    )
    return [format_length(length), *(_range([field(record) for record in records]) for field in fields)]


def _range(counts: Sequence[int | None]) -> str:
    """One number where all methods agree, as they should; else the lowest and the highest."""
    known = [count for count in counts if count is not None]
    if not known:
        return "–"
    return f"{min(known):,}" if min(known) == max(known) else f"{min(known):,}–{max(known):,}"


def repeat_lines(collection: Collection, command: str) -> list[str]:
    """The commands that computed the cells and made the report, and the spec of each run folder."""
    commands = ordered_unique([record.provenance.command for record in collection.records])
    lines = [*code_block("sh", [*commands, command]), ""]
    for run in collection.runs:
        if run.spec:
            lines += [f"{code(f'{run.path}/spec.yaml')}:", "", *code_block("yaml", run.spec.splitlines()), ""]
    return lines[:-1]


def provenance_lines(records: Sequence[Record]) -> list[str]:
    """Versions, commits, devices and dates; every value that occurs, so that a mixture shows."""
    found = [record.provenance for record in records]
    versions: dict[str, list[str]] = {}
    for provenance in found:
        for package, version in provenance.versions.items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    commits = ordered_unique(
        [f"{p.commit[:12]}{' with uncommitted changes' if p.dirty else ''}" if p.commit else "unknown" for p in found]
    )
    shown = [f"{name} {' or '.join(seen)}" for name, seen in sorted(versions.items())]
    dates = sorted(p.date for p in found)
    return [
        f"- Versions: {escape_markdown(', '.join(shown))}",
        f"- Commit of longeval: {escape_markdown(', '.join(commits))}",
        f"- Device: {escape_markdown('; '.join(ordered_unique([p.device for p in found if p.device])))}",
        f"- Platform: {escape_markdown('; '.join(ordered_unique([p.platform for p in found])))}",
        f"- Computed: {escape_markdown(dates[0])} to {escape_markdown(dates[-1])}",
        *_cost_lines(records),
    ]


def _cost_lines(records: Sequence[Record]) -> list[str]:
    peaks = [record.peak_memory_bytes for record in records if record.peak_memory_bytes]
    return [f"- Peak memory: {max(peaks) / 2**30:.2f} GiB"] if peaks else []

"""Sentences that every report needs: model and methods, servers, how to repeat it, and where it was computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from longeval.report.collect import Collection
from longeval.report.document import Block, Bullets, Listing, Note, Paragraph, Prose, code, joined, prose
from longeval.report.settings import adapter_text, precision_text
from longeval.report.tables import GridRow, factor_text
from longeval.store.records import Record
from longeval.values import format_length, quantization_text

_MAX_SHOWN = 160
"""More characters of a parameter's value than this are cut off."""


def unique(values: Iterable[str]) -> list[str]:
    """Values without repeats, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def codes(names: Iterable[str]) -> Prose:
    """Names as code, with commas between them."""
    return joined(", ", map(code, names))


def model_fact(model: str, native_length: int | None, record: Record) -> Prose:
    """The model, its native length, and what ran it."""
    native = "not recorded" if native_length is None else f"{format_length(native_length)} tokens"
    own = record.params.get("own_native_length")
    if own and own != native_length:
        native += f" by `--native` (the model's own: {format_length(own)})"
    attention = prose(", attention `{}`", record.params["attn"]) if record.params.get("attn") else ""
    quantization = record.params.get("quantization")
    quantised = prose(", weights quantised ({})", quantization_text(quantization)) if quantization else ""
    adapter = (
        prose(", adapter {} merged into its weights", adapter_text(record)) if record.params.get("adapter") else ""
    )
    template = f"Model `{{}}`: native length {native}, backend {{}}, {{}}{{}}{{}}{{}}."
    return prose(template, model, record.backend, precision_text(record.dtype), quantised, adapter, attention)


def _is_servers(record: Record) -> bool:
    """Whether a server computed the record's value, which rotates as it was started."""
    return "served_model" in record.params


def server_notes(records: Sequence[Record]) -> list[Note]:
    """A note on results of servers, which do what they were started with; none for those of other backends.

    Args:
        records: Of one section, which all have one backend.
    """
    if not records or not _is_servers(records[0]):
        return []
    proven = [record for record in records if record.rope_digest is not None]
    if not proven:
        return [_label_note(records)]
    unknown = [record for record in records if record.status == "ok" and record.rope_digest is None]
    return [_proven_note(proven), *([_label_note(unknown)] if unknown else [])]


def _proven_note(records: Sequence[Record]) -> Note:
    """A note on servers that said which method they have."""
    text = "Results of a server that longeval started: its engine holds the table of the method asked for ({})."
    return Note(text=prose(text, _asked(records)))


def _label_note(records: Sequence[Record]) -> Note:
    """A note on servers that rotate nobody knows how."""
    return Note(
        text=prose(
            "Methods are labels here: these are results of a server, which rotates as it was started. longeval "
            "applied nothing of `--pe`, and nothing shows whether method, factor and parameters are what the "
            "server computes with. Asked: {}.",
            _asked(records),
        )
    )


def _asked(records: Sequence[Record]) -> Prose:
    """Which servers were asked, and under which methods."""
    methods: dict[Prose, list[str]] = {}
    for record in records:
        name, address = record.params.get("served_model") or "a model without a name", record.params.get("base_url")
        methods.setdefault(prose("`{}` at {}", name, address), []).append(record.pe)
    return joined("; ", [prose("{} ({})", where, codes(unique(names))) for where, names in methods.items()])


def method_facts(rows: Sequence[GridRow]) -> list[Prose]:
    """The scaling that the model came with, factors and parameters of methods."""
    facts: list[Prose] = []
    first = next(iter(rows[0].cells.values()))
    settings = {} if _is_servers(first) else first.params  # a server's scaling is its own
    if settings.get("shipped_rope"):
        does = "build on" if settings.get("scale_from") == "shipped" else "replace"
        template = f"RoPE scaling that the model came with: {{}}; `none` keeps it, other methods {does} it."
        facts.append(prose(template, _shortened(str(settings["shipped_rope"]))))
    if settings.get("layers"):
        which = "all layers" if settings["layers"] == "all" else "the layers that see the whole context only"
        facts.append(f"The model rotates by layer type; methods apply to {which}.")
    factors = dict.fromkeys(prose("`{}` {}", row.label, factor_text(row)) for row in rows if row.factor is not None)
    if factors:
        facts.append(prose("Factor s (target / native length): {}; other methods have none.", joined(", ", factors)))
    parameters = dict.fromkeys(
        prose("`{}` {}", row.label, _shortened(said)) for row in rows if (said := parameters_text(row))
    )
    if parameters:
        facts.append(prose("Method parameters: {}.", joined("; ", parameters)))
    return facts


def parameters_text(row: GridRow) -> str:
    """What is set of a method's parameters: `beta_fast 32, beta_slow 1`."""
    values: dict[str, Any] = json.loads(row.method)
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "…"


def repeat_blocks(collection: Collection, command: str) -> list[Block]:
    """The commands that computed the cells, in the order of time, that of the report, and the spec of each run."""
    commands = unique(made.command for made in sorted((r.provenance for r in collection.records), key=lambda p: p.date))
    blocks: list[Block] = [Listing(language="sh", lines=(*commands, command))]
    for run in collection.runs:
        if run.spec:
            blocks.append(Paragraph(text=prose("`{}/spec.yaml`:", run.path)))
            blocks.append(Listing(language="yaml", lines=tuple(run.spec.splitlines())))
    return blocks


def provenance_facts(records: Sequence[Record]) -> Bullets:
    """Versions, commits, devices and dates; every value that occurs, so that a mixture shows."""
    found = [record.provenance for record in records]
    versions: dict[str, list[str]] = {}
    for provenance in found:
        for package, version in provenance.versions.items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    commits = unique(
        f"{p.commit[:12]}{' with uncommitted changes' if p.dirty else ''}" if p.commit else "unknown" for p in found
    )
    dates = sorted(p.date for p in found)
    peaks = [record.peak_memory_bytes for record in records if record.peak_memory_bytes]
    facts: list[Prose] = [
        "Versions: " + ", ".join(f"{name} {' or '.join(seen)}" for name, seen in sorted(versions.items())),
        "Commit of longeval: " + ", ".join(commits),
        "Device: " + "; ".join(unique(p.device for p in found if p.device)),
        "Platform: " + "; ".join(unique(p.platform for p in found)),
        f"Computed: {dates[0]} to {dates[-1]}",
        *([f"Peak memory: {max(peaks) / 2**30:.2f} GiB"] if peaks else []),
    ]
    return Bullets(items=tuple(facts))

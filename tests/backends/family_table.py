"""`docs/families.md`: what the tests measured, as Markdown tables under text that people write."""

from __future__ import annotations

from dataclasses import dataclass

MARK = "<!-- Written by `LONGEVAL_WRITE_DOCS=1 pytest tests/backends/test_families.py`; text goes above this line. -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A family that longeval serves."""

    name: str
    model_type: str
    examples: str
    part: str
    """Of a head, rotated."""
    pairing: str
    difference: str
    """Of queries and keys from the float64 reference."""
    methods: str
    """Those that can be served."""
    none_means: str
    training: str
    """Whether `longeval.hf` serves it in transformers."""
    export: str
    """Whether stock transformers gives the exported frequencies."""
    remark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedRow:
    """A family that longeval refuses."""

    name: str
    model_type: str
    examples: str
    message: str


def page(above, rows, refused):
    """The whole page: `above`, the text over the mark, and the tables."""
    served = table(
        ("family", "model type", "for example", "rotated", "pairs", "methods", "q, k off by", "`none` means"),
        [
            (
                row.name,
                f"`{row.model_type}`",
                row.examples,
                row.part,
                row.pairing,
                row.methods,
                row.difference,
                row.none_means,
            )
            for row in rows
        ],
    )
    outside = table(
        ("family", "`rope_type` in a training script", "`longeval export`", "remarks"),
        [(row.name, row.training, row.export, row.remark) for row in rows],
    )
    not_served = table(
        ("family", "model type", "for example", "what longeval says"),
        [(row.name, f"`{row.model_type}`", row.examples, row.message) for row in refused],
    )
    parts = (above.strip(), MARK, "## Served", served, "## In stock transformers", outside)
    return "\n\n".join((*parts, "## Refused", not_served)) + "\n"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in line) + " |" for line in lines)

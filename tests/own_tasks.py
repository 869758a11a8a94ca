"""Task files whose answers are known: a multiple-choice and a generated one over the same few documents."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import make_text

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{document}}}} {{{{question}}}}"
doc_to_choice: choices
doc_to_target: right
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2, document: document, cluster: title, chance: 0.5, prompts: own}}
"""

ANSWER = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{document}}}} {{{{question}}}}"
doc_to_target: word
generation_kwargs: {{max_gen_toks: 8, until: ["."]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1, document: document, cluster: title}}
"""

GROUP = """\
group: {name}
task: [{members}]
aggregate_metric_list:
  - {{metric: acc, weight_by_size: true}}
metadata: {{version: 1}}
"""


def write_data(folder: Path, *, words: tuple[int, ...] = (20, 80, 250), questions: int = 4) -> Path:
    """Questions on documents of so many words; the right choice is `report` for even ones, `model` for odd ones."""
    rows = [
        {
            "title": f"text {number}",
            "document": make_text(length, number),
            "question": f"the line {'says' if index % 2 else 'reads'}",
            "choices": ["report", "model"],
            "right": index % 2,
            "word": "report" if index % 2 == 0 else "model",
        }
        for index in range(questions)
        for number, length in enumerate(words)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_task(folder: Path, kind: str, data: Path, name: str) -> Path:
    """A task file `NAME.yaml`; `kind` is one of the texts above."""
    path = folder / f"{name}.yaml"
    path.write_text(kind.format(name=name, data=data))
    return path


def write_group(folder: Path, name: str, members: str) -> Path:
    """A group file `NAME.yaml` of tasks, with commas between them."""
    path = folder / f"{name}.yaml"
    path.write_text(GROUP.format(name=name, members=members))
    return path

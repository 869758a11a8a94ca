"""Small task files, and a small lm-eval: a folder in the form of lm-eval's own, for tests of names and loading."""

import json
import textwrap

import pytest

from longeval.studies.tasks.definitions import index

ROWS = [{"text": f"Say {n}.", "answer": str(n)} for n in range(4)]

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


def write(folder, **files):
    """Writes `name="content"` as name.yaml (or name.py for names that end in _py)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name.removesuffix('_py')}.py" if name.endswith("_py") else f"{name}.yaml")
        path.write_text(textwrap.dedent(content))
    return folder


def data(folder):
    path = folder / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def task(folder, name):
    return TASK.format(name=name, data=data(folder))


@pytest.fixture
def small_lm_eval(tmp_path, monkeypatch):
    """Stands in for the installed lm-eval: `alpha`, `beta`, `passkey`, a tag, groups of several kinds."""
    folder = tmp_path / "lm_eval" / "tasks"
    write(
        folder,
        alpha="task: alpha\ntag: letters\ndataset_path: who/alpha\noutput_type: generate_until\n",
        beta="task: beta\ntag: [letters, few]\ndataset_path: who/beta\nnum_fewshot: 1\n",
        passkey="task: passkey\ndataset_path: who/passkey\n",
        danger="task: danger\ndataset_path: who/danger\nunsafe_code: true\n",
        broken="task: [broken\n",
        pair="""\
            group: pair
            task: [alpha, passkey]
            aggregate_metric_list: {metric: acc, weight_by_size: false, filter_list: none}
            """,
        nest="""\
            group: nest
            task:
              - pair
              - beta
              - {group: inner, task: [alpha], aggregate_metric_list: [{metric: f1}]}
            aggregate_metric_list:
              - {metric: acc}
              - {metric: f1, filter_list: [strict, loose]}
            """,
        changed="""\
            group: changed
            task:
              - {task: alpha, num_fewshot: 5}
              - {task: beta, task_alias: only a name}
              - {task: pair, num_fewshot: 2}
              - {task: own, dataset_path: who/own}
              - letters
            """,
    )
    monkeypatch.setattr(index, "lm_eval_folder", lambda: str(folder))
    return folder

"""From a request to records: cell ids, values, the run folder and what the terminal shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden import RUN_TOLERANCE, check_json, file_names, messages, shown_lines

MACHINE = {"elapsed_s", "peak_memory_bytes", "provenance"}
"""Fields of a record that the machine and the clock decide."""

POSGEN = (
    "posgen train --task cot --seeds 2 --num-train 40 --num-valid 6 --num-test 7 --length 12 --test-length 20 "
    "--modulus 5 --layers 1 --d-model 12 --d-ff 20 --heads 2 --head-dim 8 --theta 100 --epochs 1 --validate-every 1 "
    "--batch-size 16 --lr 1e-2 --device cpu"
)

REQUESTS = {
    "ppl_methods": "ppl --model model --pe none,yarn,resonance_yarn,dynamic_ntk,pi --pe-arg yarn.beta_fast=16 "
    "--lengths 64,128 --factor each --data documents --device cpu",
    "ppl_sliding": "ppl --model model --pe none,yarn --lengths 64,96,128 --factor 2 --protocol sliding --stride 48 "
    "--data documents/letter.txt,documents/book.txt --seed 3 --bos --device cpu",
    "ppl_skipped_and_failed": "ppl --model model,model-nan --pe none,ntk --lengths 64,128 --min-tokens 64 "
    "--data documents/book.txt,documents/note.txt --device cpu",
    "tasks_group": "tasks --model model --pe none,yarn --tasks both,answer --include tasks --lengths 128,256 --limit 5 "
    "--device cpu",
    "tasks_same_samples": "tasks --model model --pe resonance_yarn --tasks choose --include tasks --lengths 96,256 "
    "--overlong skip --same-samples --device cpu",
    "tasks_skipped": "tasks --model model --pe yarn --tasks tasks/answer.yaml --lengths 64,96 --overlong skip "
    "--device cpu",
    "posgen": f"{POSGEN} --pe none,yarn --regime trained,swapped",
}


def comparable(record):
    """A record without what only the machine decides."""
    return {key: value for key, value in record.items() if key not in MACHINE}


def artefact(path):
    """What a file beside the records holds: its lines or values, of arrays their types and shapes."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: f"{arrays[name].dtype} {list(arrays[name].shape)}" for name in sorted(arrays.files)}
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REQUESTS)
def test_what_a_request_leaves(name, longeval, broken_model):
    arguments = [*REQUESTS[name].split(), "--out", "run"]
    dry_run = longeval(*arguments, "--dry-run")
    assert not Path("run").exists()

    ran = longeval(*arguments, "--json", "records.json")
    assert Path("records.json").exists(), ran.err
    records = json.loads(Path("records.json").read_text(encoding="utf-8"))
    by_cell = {cell: [record for record in records if record["cell"] == cell] for cell in {r["cell"] for r in records}}
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path("run/cells").iterdir()}
    assert {cell: content["records"] for cell, content in stored.items()} == by_cell
    files = file_names(Path("run"))
    artefacts = [file for file in files if not file.startswith(("cells/", "weights/")) and file != "spec.yaml"]
    kept = {file: artefact(Path("run", file)) for file in artefacts}

    lost = min(cell for cell, content in stored.items() if content["status"] == "ok")
    Path("run/cells", f"{lost}.json").unlink()
    resumed = longeval("run", "run/spec.yaml", "--json", "again.json")
    again = json.loads(Path("again.json").read_text(encoding="utf-8"))

    found = {
        "dry_run": {"status": dry_run.status, "stdout": shown_lines(dry_run.out), "messages": messages(dry_run.err)},
        "run": {"status": ran.status, "stdout": shown_lines(ran.out), "messages": messages(ran.err)},
        "resumed": {"status": resumed.status, "messages": messages(resumed.err)},
        "files": files,
        "spec": Path("run/spec.yaml").read_text(encoding="utf-8").splitlines(),
        "cell_keys": sorted({" ".join(content) for content in stored.values()}),
        "record_keys": sorted({" ".join(record) for record in records}),
        "records": [comparable(record) for record in records],
        "artefacts": kept,
    }
    check_json(f"requests/{name}.json", found, tolerance=RUN_TOLERANCE)
    assert [(r["cell"], r["metric"]) for r in again] == [(r["cell"], r["metric"]) for r in records]

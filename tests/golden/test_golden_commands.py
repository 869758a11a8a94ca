"""Commands that need no run folder: tables of rotation, tasks, models, sequences."""

from __future__ import annotations

import json

import pytest
from golden import REPORT_TOLERANCE, check_json

SHAPE = "--head-dim 16 --theta 10000 --native 64"
COMMANDS = {
    "rope_all": "rope none,resonance,pi,ntk,ntk_by_parts,yarn,resonance_yarn,dynamic_ntk,dynamic_yarn,abf "
    f"{SHAPE} --factor 4 --json -",
    "rope_length": f"rope dynamic_ntk,resonance_dynamic_yarn {SHAPE} --factor 4 --length 96 --json -",
    "rope_parameters": f"rope yarn {SHAPE} --factor 2 --pe-arg yarn.beta_fast=16 --json -",
    "rope_of_a_model": "rope llama3 --model model --factor 4 --json -",
    "posgen_generate": "posgen generate --task semi_recursive --modulus 10 --j 2 --k 2 --num-train 3 --num-valid 2 "
    "--num-test 2 --length 16 --test-length 24 --seed 1 --json -",
    "models": "models --json -",
    "tasks_list": "tasks --list --json -",
}


def stable(name, value):
    """The part of an answer that is the same on every machine."""
    if name == "models":
        return [{key: value for key, value in model.items() if key != "cached"} for model in value]
    if name == "tasks_list":  # those of lm-eval are its own, and thousands
        own = [entry for entry in value if entry["source"] == "longeval"]
        return [{"name": entry["name"], "kind": entry["kind"]} for entry in own]
    return value


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints(name, longeval):
    answer = longeval(*COMMANDS[name].split())
    assert answer.status == 0, answer.err
    if name == "posgen_generate":
        value = [json.loads(line) for line in answer.out.splitlines()]
    else:
        value = stable(name, json.loads(answer.out))
    check_json(f"commands/{name}.json", value, tolerance=REPORT_TOLERANCE)

"""The estimated memory of a training against its measured peak, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from studies.finetune.tiny_training import request
from tiny import make_text, save_tiny_llama

from longeval.models.prepare import prepare
from longeval.run.cost import model_size
from longeval.studies.finetune.estimate import choose, memory_bytes

SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(tmp_path, lora, checkpointing):
    model = save_tiny_llama(tmp_path / "model", **SIZES)
    text = tmp_path / "text.txt"
    text.write_text(make_text(20_000))
    flags = ["--lora"] if lora else []
    flags += ["--gradient-checkpointing" if checkpointing else "--no-gradient-checkpointing"]
    command = [sys.executable, "-m", "longeval", "finetune", "--model", str(model), "--pe", "yarn", "--length", "2k"]
    command += ["--window", "1k", "--augment", "pose", "--steps", "2", "--batch-size", "1", "--data", str(text)]
    command += ["--no-eval", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path / "run"), *flags]
    subprocess.run([*command, "--json", str(tmp_path / "records.json")], check=True, capture_output=True)
    (record,) = json.loads((tmp_path / "records.json").read_text())
    asked = request(length=2048, window=1024, batch_size=1, lora=lora, gradient_checkpointing=checkpointing)
    prepared = prepare(str(model), dtype="float32", device="cpu")
    size = model_size(prepared)
    estimated = memory_bytes(asked, prepared, size, "float32", choose(asked, prepared, size, "float32"))
    assert estimated == pytest.approx(record["peak_memory_bytes"], rel=0.25)

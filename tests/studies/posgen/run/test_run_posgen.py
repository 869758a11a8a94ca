"""From a PosGen request to records: values against the models themselves, shared trainings, resuming, failures."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import posgen_requests
import pytest
import torch
from posgen_requests import ALL, BOTH, Told, carry_out, tiny_request, value, weights_of

from longeval.request import requests_from_yaml
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen import work as work_module
from longeval.studies.posgen.data import generate
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.model import cos_sin, forward, model_inputs
from longeval.studies.posgen.plan import check_settings, plan_posgen
from longeval.studies.posgen.train import train


@pytest.mark.parametrize(("pe", "regime", "seed"), [("none", "trained", 0), ("yarn", "swapped", 1)])
def test_values_are_what_the_stored_weights_say_under_the_evaluation_table(whole, pe, regime, seed):
    store, _, result = whole
    plan = plan_posgen(tiny_request(pe=ALL, regimes=BOTH))
    (cell,) = (c for c in plan.cells if (c.pe.canonical, c.regime, c.training.seed) == (pe, regime, seed))
    own = plan_posgen(tiny_request(pe=(pe,), regimes=("trained",), seeds=1)).work[0].evaluations[0].table
    test_NT = generate(cell.training.data).test_NT
    weights, table = weights_of(store, cell.training.id), cos_sin(own, 20)

    def predict(tokens_NT):
        inputs = model_inputs(torch.from_numpy(tokens_NT), plan.experiment.config)
        with torch.no_grad():
            return forward(weights, inputs, table.cos_TF[:19], table.sin_TF[:19], plan.experiment.config).numpy()

    right_NP = predict(test_NT).argmax(-1)[:, 3:] == test_NT[:, 4:]  # row i is of token i + 1; four tokens are given
    inside, ood = right_NP[:, :8].mean(), right_NP[:, 8:].mean()
    assert value(result, pe, "accuracy_in_distribution", regime, seed).value == pytest.approx(inside, abs=1e-12)
    assert value(result, pe, "accuracy_ood", regime, seed).value == pytest.approx(ood, abs=1e-12)
    made_NT = test_NT.copy()
    made_NT[:, 4:] = 0
    for position in range(4, 20):
        made_NT[:, position] = predict(made_NT).argmax(-1)[:, position - 1]
    generated = (made_NT == test_NT)[:, 12:].mean()
    assert value(result, pe, "accuracy_generated", regime, seed).value == pytest.approx(generated, abs=1e-12)


def test_the_records_of_a_cell(whole):
    _, _, result = whole
    assert len(result.records) == 3 * 16 and result.computed == 16 and result.failed == 0
    inside, ood, generated = (
        value(result, "yarn", f"accuracy_{kind}", "swapped", 1) for kind in ("in_distribution", "ood", "generated")
    )
    assert inside.cell == ood.cell == generated.cell
    assert (ood.model, ood.pe, ood.factor, ood.length) == ("posgen-1x12", "yarn", 20 / 12, 20)
    assert (ood.data, ood.task, ood.backend, ood.dtype) == ("posgen_cot", None, "posgen", "float32")
    assert [r.protocol for r in (inside, ood, generated)] == ["teacher_forced", "teacher_forced", "free_running"]
    assert [(r.n, r.tokens) for r in (inside, ood, generated)] == [(7, 56), (7, 56), (7, 56)]
    assert ood.nll_sum > 0 and generated.nll_sum is None
    assert ood.params["trained_with"] == "none" and ood.elapsed_s > 0
    assert ood.provenance.device.startswith("cpu (") and ood.provenance.versions["torch"]


def test_the_digest_is_of_the_table_that_was_on_in_evaluation(whole):
    _, _, result = whole
    angles_TF = np.arange(20)[:, None] * 100.0 ** (-np.arange(4) / 4)
    content = (np.cos(angles_TF).astype("<f4").tobytes(), np.sin(angles_TF).astype("<f4").tobytes())
    plain = hashlib.sha256(b"".join(content)).hexdigest()
    assert value(result, "none", "accuracy_ood", "swapped").rope_digest == plain
    swapped = value(result, "yarn", "accuracy_ood", "swapped").rope_digest
    assert swapped == value(result, "yarn", "accuracy_ood").rope_digest != plain


def test_curves_are_what_the_records_are_means_of(whole):
    store, _, result = whole
    for record in result.records:
        curves = store.curves(record.cell)
        assert curves.positions == tuple(range(4, 20))
        assert curves.epochs == (2, 4)
        inside, ood = slice(0, 8), slice(8, 16)
        part = inside if record.metric == "accuracy_in_distribution" else ood
        values = curves.generated if record.metric == "accuracy_generated" else curves.accuracy
        assert np.mean(values[part]) == pytest.approx(record.value, abs=1e-12)
        if record.nll_sum is not None:
            assert 7 * sum(curves.loss[part]) == pytest.approx(record.nll_sum)


def test_where_nothing_is_swapped_the_regimes_agree_and_elsewhere_they_share_no_value(whole):
    store, _, result = whole
    for pe in ALL:
        one, other = (store.curves(value(result, pe, "accuracy_ood", regime).cell) for regime in BOTH)
        assert (one == other) is (pe in ("none", "resonance"))


def test_trainings_are_shared_by_methods_and_regimes(whole):
    store, told, _ = whole
    assert len(list(store._fs.ls(f"{store._root}/weights"))) == 8
    assert not store._fs.exists(f"{store._root}/checkpoints")
    trainings = [what for what, _, noun in told.stages if noun == "step"]
    assert trainings == [f"cot, trained with {pe} · seed {seed}, epochs 1 … 4" for pe in ALL for seed in (0, 1)]
    assert [cost for *_, cost in told.advanced] == pytest.approx(told.costs)
    evaluations = [what for what, _, noun in told.stages if noun == "evaluation"]
    assert len(evaluations) == 2 * 6, "where nothing is swapped, one evaluation serves both regimes"


def test_a_resumed_run_announces_what_is_left(store, often):
    with pytest.raises(KeyboardInterrupt):
        carry_out(tiny_request(pe=("none",), seeds=1), store, Told(interrupt=8))
    resumed = Told()
    carry_out(tiny_request(pe=("none",), seeds=1), store, resumed)
    assert [cost for *_, cost in resumed.advanced] == pytest.approx(resumed.costs)
    assert resumed.steps() == 6


def test_time_is_that_of_the_passes_that_served_a_cell(store, monkeypatch):
    clock = [0.0]

    def slow(*arguments, **options):
        clock[0] += 100
        return train(*arguments, **options)

    def timed(*arguments, **options):
        clock[0] += 1
        return evaluate(*arguments, **options)

    monkeypatch.setattr(work_module, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: clock[0]))
    monkeypatch.setattr(train_posgen, "train", slow)
    monkeypatch.setattr(work_module, "evaluate", timed)

    def seconds(folder, pe):
        result = carry_out(tiny_request(pe=pe, regimes=("swapped",)), Store(f"{store.path}-{folder}"))
        return {(r.pe, r.params["seed"]): r.elapsed_s for r in result.records}

    assert set(seconds("together", ("none", "yarn")).values()) == {101.0}
    assert set(seconds("apart", ("none",)).values()) == {101.0}
    later = seconds("apart", ("none", "yarn"))
    # From weights that were there; and once more on the validation sequences, which its training didn't see with it.
    assert later == {("none", 0): 101.0, ("none", 1): 101.0, ("yarn", 0): 2.0, ("yarn", 1): 2.0}


def test_a_table_that_a_training_did_not_know_has_the_loss_of_its_end(store, whole):
    told = Told()
    carry_out(tiny_request(pe=("none",), validate_every=3), store, told)
    assert [cost for *_, cost in told.advanced] == pytest.approx(told.costs)
    later = carry_out(tiny_request(pe=("yarn",), regimes=("swapped",), validate_every=3), store)
    known_store, _, known = whole
    for seed in (0, 1):
        late = store.curves(value(later, "yarn", "accuracy_ood", "swapped", seed).cell)
        full = known_store.curves(value(known, "yarn", "accuracy_ood", "swapped", seed).cell)
        assert late.epochs == (4,) and full.epochs == (2, 4)
        assert late.valid_loss_ood == pytest.approx(full.valid_loss_ood[-1:], rel=1e-4)
        assert late.accuracy == full.accuracy


def test_other_commands_may_share_the_folder(store):
    store.write_text("spec.yaml", "command: ppl\nmodel: m\npe: none\nlengths: 4k\n")
    check_settings([tiny_request()], store)
    carry_out(tiny_request(pe=("none",), seeds=1), store)
    commands = [plain["command"] for plain in requests_from_yaml(store.read_text("spec.yaml"), origin="f")]
    assert commands == ["ppl", "posgen"]


HEAVY = {"transformers", "tokenizers", "datasets", "huggingface_hub", "accelerate", "safetensors", "gguf", "lm_eval"}
TRAIN = """
import sys
from posgen_requests import carry_out, tiny_request
from longeval.store.folder import Store

run, device, precision = sys.argv[1:]
result = carry_out(tiny_request(device=device, precision=precision), Store(run))
assert result.failed == 0 and result.computed == 4, result
print(*{name.split('.')[0] for name in sys.modules})
"""


def train_elsewhere(run, device, precision):
    """The modules that a process has after a run."""
    command = [sys.executable, "-c", TRAIN, str(run), device, precision]
    tests = Path(posgen_requests.__file__).parent
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tests)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def test_a_run_needs_nothing_of_what_loads_models_and_text(tmp_path):
    modules = train_elsewhere(tmp_path / "run", "cpu", "float32")
    assert "torch" in modules and not HEAVY & modules


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])  # with tf32 the plan has looked at the device before
def test_a_run_is_the_first_in_its_process_to_use_the_gpu(tmp_path, precision):
    assert "torch" in train_elsewhere(tmp_path / "run", "cuda:0", precision)


@pytest.mark.gpu
def test_seeds_one_after_another_on_the_gpu_are_those_of_the_cpu_and_need_no_more_memory(store, whole, caplog):
    _, _, on_cpu = whole
    result = carry_out(tiny_request(pe=ALL, regimes=BOTH, device="cuda:0"), store)
    assert (result.computed, result.failed) == (16, 0) and "without a CUDA graph" not in caplog.text
    for one, other in zip(result.records, on_cpu.records, strict=True):
        assert (one.cell, one.metric, one.rope_digest) == (other.cell, other.metric, other.rope_digest)
        if one.metric != "accuracy_generated":  # where one other token, by rounding, makes others too
            assert one.value == pytest.approx(other.value, abs=0.1)
        losses = [folder.curves(one.cell).valid_loss_ood for folder in (store, whole[0])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    # Of a training, its evaluations and what stays in the process; the first works make the latter.
    peaks = {(r.params["trained_with"], r.params["seed"]): r.peak_memory_bytes for r in result.records}
    later = list(peaks.values())[2:]
    assert max(later) <= min(later) + 2**20

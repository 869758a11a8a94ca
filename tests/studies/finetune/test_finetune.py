"""`longeval finetune` as users run it, on a tiny model: trainings, saved models, evaluations, resume, refusals."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import make_text, save_tiny_llama

import longeval
from longeval.cli.app import run_app
from longeval.models.resolve import resolve, weights_digest
from longeval.request.base import requests_to_yaml
from longeval.store.folder import Store

SETTINGS = "--steps 3 --batch-size 2 --lr 1e-3 --dtype float32 --data train --out run -q"
POSE = f"finetune --model tiny --pe yarn,resonance_yarn --length 256 --window 64 --augment pose {SETTINGS}"
STOCK = """
import json, sys
import numpy as np, torch, transformers
sys.path = [place for place in sys.path if "longeval" not in place]
if sys.argv[3] == "import": import longeval.hf
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
ids = torch.tensor([json.loads(sys.argv[2])])
logits = model(ids).logits[0, :-1].double()
nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
print(json.dumps([nll.tolist(), "longeval" in sys.modules]))
"""


@pytest.fixture
def folder(tmp_path, tiny_llama, monkeypatch):
    """The current folder: a model `tiny` (native 64), text to train on and to measure on."""
    (tmp_path / "tiny").symlink_to(tiny_llama)
    for name, seeds in (("train", range(3)), ("held", range(10, 13))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.txt").write_text(make_text(600, seed=seed))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line):
    return run_app(shlex.split(line))


def stock_nll(path, tokens, longeval_too=False):
    how = "import" if longeval_too else ""
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(path), json.dumps([int(token) for token in tokens]), how],
        capture_output=True,
        check=True,
        text=True,
    )
    nll, knows = json.loads(done.stdout)
    assert knows == longeval_too
    return nll


def test_models_are_measured_trained_saved_and_measured_again(folder, capfd):
    assert run(f"{POSE} --eval-data held --json records.json") == 0
    records = json.loads((folder / "records.json").read_text())
    losses = [record for record in records if record["metric"] == "loss"]
    assert [(record["pe"], record["factor"], record["length"]) for record in losses] == [
        ("yarn", 4.0, 256),
        ("resonance_yarn", 4.0, 256),
    ]
    assert all(record["tokens"] == 3 * 2 * 64 and record["params"]["augment"] == "pose" for record in losses)
    measured = {
        (record["model"], record["pe"], record["length"]) for record in records if record["metric"] == "perplexity"
    }
    before = {("tiny", pe, length) for pe in ("none", "yarn", "resonance_yarn") for length in (64, 256)}
    after = {(f"run/models/{pe}-pose", "none", n) for pe in ("yarn", "resonance_yarn") for n in (64, 256)}
    assert measured == before | after
    trained = {record["params"]["trained_weights"] for record in losses}
    assert trained == {record["params"]["weights"] for record in records if record["model"].startswith("run/")}
    assert (folder / "run/spec.yaml").read_text().count("command:") == 1
    assert not (folder / "run/checkpoints").exists()

    files = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.is_file()}
    assert run("run run -q --json again.json") == 0
    assert json.loads((folder / "again.json").read_text()) == records
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("pe", "flags", "longeval_too"),
    [("yarn", "", False), ("pi", "", False), ("resonance_yarn", "--stock", False), ("resonance_yarn", "", True)],
)
def test_a_saved_model_gives_the_same_values_in_transformers(folder, pe, flags, longeval_too):
    asked = f"finetune --model tiny --pe {pe} --length 128 --window 64 --augment pose {SETTINGS} {flags}"
    assert run(f"{asked} --eval-data held --lengths 128") == 0
    results = longeval.load("run")
    (cell,) = {record.cell for record in results.records if record.model.startswith("run/")}
    ours = results.nll(cell).nll.to_numpy()[:127]  # the first document's
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained("tiny")((folder / "held/10.txt").read_text()).input_ids[:128]
    # Stock modules multiply positions and frequencies in float32.
    np.testing.assert_allclose(ours, stock_nll(f"run/models/{pe}-pose", tokens, longeval_too), atol=2e-3)
    untrained = stock_nll("tiny", tokens)
    assert np.abs(ours - untrained).max() > 0.05


def test_a_killed_run_goes_on_to_the_same_weights(folder):
    asked = POSE.replace("--steps 3", "--steps 8") + " --no-eval --checkpoint-every 1"
    assert run(asked.replace("--out run", "--out whole")) == 0
    command = [sys.executable, "-m", "longeval", *shlex.split(asked)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list((folder / "run").glob("checkpoints/*/step-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "run/models/resonance_yarn-pose").exists()
    assert run(asked) == 0
    for name in ("yarn-pose", "resonance_yarn-pose"):
        digests = [weights_digest(resolve(f"{out}/models/{name}")) for out in ("whole", "run")]
        assert digests[0] == digests[1]


def test_a_model_that_was_removed_is_trained_again(folder):
    assert run(f"{POSE} --no-eval") == 0
    first = weights_digest(resolve("run/models/yarn-pose"))
    shutil.rmtree("run/models/yarn-pose")
    assert run(f"{POSE} --no-eval") == 0
    assert weights_digest(resolve("run/models/yarn-pose")) == first


def test_a_training_that_diverges_is_a_failed_cell_without_a_model(folder):
    assert run(POSE.replace("1e-3", "1e30") + " --pe yarn --clip 0 --eval-data held --json out.json") == 3
    records = json.loads((folder / "out.json").read_text())
    (training,) = [record for record in records if record["metric"] == "loss"]
    assert training["status"] == "failed" and "step" in training["error"]
    assert not (folder / "run/models").exists()
    assert {record["model"] for record in records} == {"tiny"}


def test_seeds_and_augmentations_have_models_of_their_own(folder):
    asked = f"finetune --model tiny --pe pi --length 256 --window 64 --augment none,pose,e2 --seeds 2 {SETTINGS}"
    assert run(f"{asked} --no-eval") == 0
    names = {f"pi-{augment}-seed{seed}" for augment in ("none", "pose", "e2") for seed in (0, 1)}
    assert set(os.listdir("run/models")) == names
    assert len({weights_digest(resolve(f"run/models/{name}")) for name in names}) == len(names)
    digests = {record.rope_digest for record in longeval.load("run").records}
    losses = longeval.load("run").losses(longeval.load("run").records[0].cell)
    assert list(losses.step) == [1, 2, 3] and losses.tokens.sum() == 3 * 2 * 64 and (losses.loss > 0).all()
    assert len(digests) == 1  # E²-LLM's steps had other tables; the model's is that of s = 4


def test_an_adapter_is_saved_and_gives_the_values_of_the_merged_model(folder):
    pytest.importorskip("peft")
    asked = f"finetune --model tiny --pe yarn --length 256 --window 64 --augment pose {SETTINGS} --lora --lr 1e-1"
    assert run(f"{asked} --eval-data held --lengths 256") == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir("run/adapters/yarn-pose"))
    own = longeval.ppl(
        model="tiny", adapter="run/adapters/yarn-pose", pe="yarn", factor=4, lengths=256, data="held", dtype="float32"
    )
    (adapted,) = [r.value for r in own.records if r.metric == "perplexity"]
    found = {(r.model, r.pe): r.value for r in longeval.load("run").records if r.metric == "perplexity"}
    assert found["run/models/yarn-pose", "none"] == pytest.approx(adapted, rel=1e-5)
    assert found["tiny", "yarn"] != pytest.approx(adapted, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--pe yarn --length 64 --window 128", "--window 128"),
        ("--pe yarn --length 64 --augment pose", "--augment pose"),
        ("--pe yarn --length 64 --augment none --augment-arg pose.chunks=2", "pose"),
        ("--pe none --length 256 --augment e2", "--augment e2"),
        ("--pe yarn --length 256 --steps 0", "--steps 0"),
        ("--pe yarn --length 64k --augment pose --window 16k", "train"),
        ("--pe dynamic_yarn --length 256", "dynamic_yarn"),
        ("--pe yarn --length 256 --lora-rank 4", "--lora-rank 4"),
        ("--pe yarn --length 256 --tasks passkey", "--no-eval"),
        ("--pe yarn --length 256 --eval-data train", "--no-eval"),
        ("--pe yarn --length 256 --warmup 3", "--warmup 3"),
        ("--pe yarn --length 256 --packing documents --augment pose --window 64", "--packing documents"),
        ("--pe yarn --length 256 --loss longce", "longce"),
        ("--pe yarn --length 256 --out memory://run", "memory://run"),
        ("--pe yarn --length 256 --model nowhere/model.gguf", "nowhere"),
    ],
)
def test_a_wrong_request_is_refused_and_writes_nothing(folder, capfd, flags, names):
    there = sorted(folder.rglob("*"))
    assert run(f"finetune --model tiny {SETTINGS} --no-eval {flags}") == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("longeval: ") and names in message
    assert sorted(folder.rglob("*")) == there


def test_a_batch_that_the_processes_can_not_share_is_refused_before_anything_is_measured(folder, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(f"{POSE} --eval-data held") == 2
    assert "--batch-size 2" in capfd.readouterr().err
    assert not (folder / "run").exists()


def test_models_of_one_name_are_not_trained_into_one_folder(folder, capfd):
    (folder / "other").mkdir()
    save_tiny_llama(folder / "other" / "tiny", initializer_range=0.2)
    assert run(f"{POSE} --no-eval --model tiny,other/tiny") == 2
    assert "models/tiny-yarn-pose" in capfd.readouterr().err
    assert not (folder / "run").exists()


def test_text_that_is_trained_on_is_not_measured_on(folder, capfd):
    shutil.copy("train/1.txt", "held/copy.txt")
    assert run(f"{POSE} --eval-data held") == 2
    assert "copy.txt" in capfd.readouterr().err
    assert not (folder / "run").exists()
    assert run(f"{POSE} --eval-data held/10.txt,held/11.txt") == 0


@pytest.mark.parametrize("data", ["nowhere.txt", "gov_reprot", "empty.txt"])
def test_wrong_text_to_measure_on_is_told_of_its_own_flag(folder, capfd, data):
    (folder / "empty.txt").write_text("")
    assert run(f"{POSE} --eval-data {data}") == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"longeval: --eval-data {data}") and " --data" not in message
    assert not (folder / "run").exists()


def test_models_of_other_trainings_are_not_overwritten(folder, capfd):
    assert run(f"{POSE} --no-eval") == 0
    first = weights_digest(resolve("run/models/yarn-pose"))
    assert run(f"{POSE} --no-eval --lr 1e-4") == 2
    assert "models/yarn-pose" in capfd.readouterr().err
    assert weights_digest(resolve("run/models/yarn-pose")) == first
    assert run(f"{POSE} --no-eval --fresh") == 0
    assert weights_digest(resolve("run/models/yarn-pose")) == first


def test_of_two_requests_for_one_name_the_second_fails(folder):
    asked = {"command": "finetune", "model": ["tiny"], "pe": ["yarn"], "length": 128, "steps": 1, "batch_size": 1}
    asked |= {"data": ["train"], "evaluates": False}
    (folder / "both.yaml").write_text(requests_to_yaml([asked, asked | {"steps": 2}]))
    assert run("run both.yaml --out run -q") == 3
    first, second = longeval.load("run").records
    assert (first.status, second.status) == ("ok", "failed")
    assert "models/yarn" in second.error
    assert weights_digest(resolve("run/models/yarn")) == first.params["trained_weights"]


def test_a_model_that_is_saved_in_another_form_is_refused(folder, capfd):
    assert run(f"{POSE} --no-eval --stock") == 0
    assert run(f"{POSE} --no-eval --stock") == 0
    assert run(f"{POSE} --no-eval") == 2
    assert "saved with rope type longrope, and without --stock it would be yarn" in capfd.readouterr().err


def test_the_order_of_methods_changes_nothing(folder):
    assert run(f"{POSE} --no-eval") == 0
    assert run(POSE.replace("yarn,resonance_yarn", "resonance_yarn").replace("--out run", "--out alone --no-eval")) == 0
    name = "models/resonance_yarn-pose"
    assert weights_digest(resolve(f"run/{name}")) == weights_digest(resolve(f"alone/{name}"))
    one, other = ({record.cell for record in longeval.load(out).records} for out in ("run", "alone"))
    assert other < one


def test_after_out_of_memory_less_is_asked_of_the_device(folder):
    from longeval.run.host import Silent
    from longeval.run.study import find_study

    study = find_study("finetune")
    asked = {"model": "tiny", "pe": "yarn", "length": 128, "steps": 1, "batch_size": 4, "data": "train"}
    plan = study.plan(study.Request.read(asked | {"evaluates": False, "micro_batch": 4}), Silent())
    work, sizes = plan.work[0], []
    while work is not None:
        sizes.append((work.resources.micro_batch, work.resources.checkpointing))
        work = work.smaller()
    assert sizes == [(4, False), (2, False), (1, False), (1, True)]


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(folder):
    asked = f"{POSE} --eval-data held"
    assert run(asked.replace("--out run", "--out alone")) == 0
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2 -m longeval"
    command = [sys.executable, *shlex.split(launch), *shlex.split(asked)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    alone, both = (
        {(r.model.removeprefix(out), r.pe, r.length, r.metric): r.value for r in longeval.load(out).records}
        for out in ("alone", "run")
    )
    assert alone.keys() == both.keys()
    assert [both[key] for key in alone] == pytest.approx(list(alone.values()), rel=1e-4)
    assert Store("run").plan() is not None
    assert Path("run/models/yarn-pose/config.json").exists()


def test_without_a_method_the_length_is_what_the_model_was_trained_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "tiny")
    (tmp_path / "train.txt").write_text(make_text(800))
    line = (
        "finetune --model tiny --pe none --length 128 --steps 1 --batch-size 1 --data train.txt --no-eval --out run -q"
    )
    assert run(line) == 0
    config = json.loads((tmp_path / "run/models/none/config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["rope_type"] == "default"

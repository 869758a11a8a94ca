"""Every command of README.md and docs/*.md runs, with small inputs where its own are large, or is listed with a reason.

A command that is in neither table is run as it stands, in an empty folder that has `runs/mine`, `runs/other` and
`runs/smoke`. One that can't run so gets an entry in `AS_RUN`, or, if nothing here can run it, in `NOT_RUN`.
"""

# ruff: noqa: E501  # a command stands on one line

from __future__ import annotations

import shlex

import pytest
from adapters import save_adapter
from completions_server import CompletionsServer
from docs_commands import all_commands
from tiny import make_text, save_tiny_llama
from words_model import save_words_model

from longeval.backends.vllm import options as vllm_options
from longeval.cli.app import run_app

TINY_PPL = "--lengths 64,128 --data documents.txt --dtype float32"
SMOKE = (
    "--num-train 64 --num-valid 8 --num-test 8 --batch-size 16 --epochs 2 --d-model 32 --d-ff 64 --heads 2 --head-dim 16 "
    "--length 16 --test-length 32"
)
TINY_TRAINING = "--data documents.txt --steps 2 --dtype float32 --no-eval"
GEOMETRY = "--head-dim 64 --theta 10000 --native 64 --factor 4"

AS_RUN = {
    # llama2-7b, M and the embedded model: a tiny model of the tests, in the folder `tiny`.
    "ppl --model smollm2-135m-q4 --pe none,yarn --lengths 4k,8k --data stdlib": f"ppl --model tiny --pe none,yarn {TINY_PPL}",
    "ppl --model smollm2-135m-q4 --pe none,yarn --lengths 512,1k --data stdlib --docs 1 --out runs/first --dry-run": (
        "ppl --model tiny --pe none,yarn --lengths 512,1k --data stdlib --docs 1 --out runs/first --dry-run"
    ),
    "ppl --model M --pe none,yarn,resonance_yarn --lengths 4k,8k,16k": (
        f"ppl --model tiny --pe none,yarn,resonance_yarn {TINY_PPL}"
    ),
    "ppl --model M --adapter DIR --pe none,yarn --lengths 4k,8k": f"ppl --model tiny --adapter lora --pe none,yarn {TINY_PPL}",
    "tasks --model smollm2-135m-q4 --pe none,yarn --tasks passkey --lengths 4k,10k --limit 2": (
        "tasks --model tiny --pe none,yarn --tasks passkey,niah --lengths 640 --limit 2 --max-new-tokens 4 --dtype float32"
    ),
    "tasks --tasks posgen": (
        "tasks --tasks posgen --model tiny --pe none --lengths 1k --limit 1 --max-new-tokens 4 --dtype float32"
    ),
    "tasks --backend openai --base-url http://127.0.0.1:8000/v1 --model smollm2-135m-q4 --tasks passkey --lengths 4k --pe none": (
        "tasks --backend openai --base-url {server} --model words --tasks passkey --lengths 4k --limit 1 --pe none"
    ),
    "export --model llama2-7b --pe resonance_yarn --factor 4 --out DIR": (
        "export --model tiny --pe resonance_yarn --factor 4 --out DIR"
    ),
    "export --model M --pe resonance_yarn --factor 4 --out DIR": (
        "export --model tiny --pe resonance_yarn --factor 4 --out DIR-of-M"
    ),
    "rope --model smollm2-135m-q4 none,resonance --factor 2": "rope --model tiny none,resonance --factor 2",
    "report RUN --out report.md": "report runs/mine --out report.md",
    "report RUN --pairs none:yarn,yarn:resonance_yarn": "report runs/mine runs/other --pairs none:yarn",
    "diff RUN_A RUN_B": "diff runs/mine runs/mine",
    "diff runs/mine runs/other": "diff runs/mine runs/mine",  # they have no method in common
    "run RUN --show 3": "run runs/mine --show 3",
    "status RUN": "status runs/mine",
    "report RUN --out report.html": "report runs/mine --out report.html",
    # The geometry that stands for "…".
    "rope resonance …": f"rope resonance {GEOMETRY}",
    "ppl --model smollm2-135m-q4 --pe none,resonance,pi,resonance_pi,ntk,resonance_ntk,yarn,resonance_yarn --lengths 2k,4k,8k,12k,16k --dtype float32 --pe-arg resonance.max_period=native --out RUN": (
        f"ppl --model tiny --pe none,resonance,pi,resonance_pi,ntk,resonance_ntk,yarn,resonance_yarn {TINY_PPL} "
        "--pe-arg resonance.max_period=native --out runs/periods"
    ),
    "rope abf …": f"rope abf {GEOMETRY}",
    "rope ntk … --pe-arg ntk.base_rule=linear": f"rope ntk {GEOMETRY} --pe-arg ntk.base_rule=linear",
    # vLLM's command line is shown, and nothing is started.
    "serve --model smollm2-135m-q4 --pe resonance_yarn --factor 2": (
        "serve --model tiny --pe resonance_yarn --factor 2 --dry-run"
    ),
    "serve --length 8k": "serve --model tiny --length 8k --dry-run",
    # Trainings of seconds; those of recipes are only planned, with their settings but for size.
    "ppl --model llama2-7b --pe yarn,resonance_yarn --lengths 8k,16k,32k --metric perplexity,long_ppl --key-model llama3.1-8b": (
        "ppl --model tiny --pe yarn,resonance_yarn --lengths 32,64 --data documents.txt --dtype float32 "
        "--metric perplexity,long_ppl --key-model tiny --metric-arg long_ppl.context=16 --metric-arg long_ppl.step=8"
    ),
    "finetune --model smollm2-135m-q4 --pe yarn,resonance_yarn --length 16k --window 2k --augment pose --steps 60 --batch-size 4 --data stdlib --eval-data gov_report --out runs/ft": (
        "finetune --model tiny --pe yarn,resonance_yarn --length 256 --window 32 --augment pose --steps 2 --batch-size 4 "
        "--data documents.txt --eval-data held-out.txt --dtype float32 --out runs/ft"
    ),
    "finetune --model smollm2-135m-q4 --pe yarn --length 16k --window 512 --augment pose --steps 8 --batch-size 1 --data stdlib --docs 20 --no-eval": (
        f"finetune --model tiny --pe yarn --length 256 --window 32 --augment pose --batch-size 1 {TINY_TRAINING} --out runs/readme"
    ),
    "ppl --model runs/ft/models/resonance_yarn-pose --lengths 4k,8k,16k": f"ppl --model tiny {TINY_PPL}",
    "report runs/ft": "report runs/mine",
    "finetune --model llama2-7b-chat --pe yarn,resonance_yarn --length 32k --data pg19 --steps 50 --batch-size 64 --lr 2e-5": (
        f"finetune --model tiny --pe yarn,resonance_yarn --length 256 --batch-size 64 --lr 2e-5 {TINY_TRAINING} --dry-run"
    ),
    "finetune --model llama2-7b-chat --pe yarn,resonance_yarn --length 32k --window 4k --data pg19 --steps 400 --batch-size 64 --lr 2e-5": (
        f"finetune --model tiny --pe yarn,resonance_yarn --length 256 --window 32 --batch-size 64 --lr 2e-5 {TINY_TRAINING} --dry-run"
    ),
    "finetune --model llama2-7b --pe yarn --length 64k --data pg19 --steps 400 --batch-size 64 --lr 2e-5 --warmup 20": (
        f"finetune --model tiny --pe yarn --length 256 --batch-size 64 --lr 2e-5 {TINY_TRAINING} --warmup 1 --dry-run"
    ),
    "finetune --model llama2-7b --pe pi --length 32k --data pg19 --steps 1000 --batch-size 64 --lr 2e-5 --warmup 20 --schedule constant --lora-plus": (
        f"finetune --model tiny --pe pi --length 256 --batch-size 64 --lr 2e-5 {TINY_TRAINING} --warmup 1 --schedule constant --lora-plus --dry-run"
    ),
    "finetune --model llama2-7b --pe pi --length 16k --window 2k --augment pose --data pg19 --steps 1000 --batch-size 64 --lr 2e-5 --warmup 10": (
        f"finetune --model tiny --pe pi --length 256 --window 32 --augment pose --batch-size 64 --lr 2e-5 {TINY_TRAINING} --warmup 1 --dry-run"
    ),
    "finetune --model llama2-7b --pe pi --length 32k --window 4k --augment e2 --data pg19 --steps 30000 --batch-size 16 --lr 1e-5": (
        f"finetune --model tiny --pe pi --length 256 --window 32 --augment e2 --batch-size 16 --lr 1e-5 {TINY_TRAINING} --dry-run"
    ),
    "posgen train --preset small": f"posgen train --preset small {SMOKE} --k 3",
    "posgen train --preset small --out runs/small": f"posgen train --preset small --out runs/small {SMOKE} --k 3",
    "posgen table runs/posgen --out reports/posgen.md": "posgen table runs/smoke --out reports/posgen.md",
    "posgen table RUN…": "posgen table runs/smoke",
    "report --published": "report runs/mine --published",
    # Ray is not started: tests/test_slurm.py and tests/run/cluster do that.
    "ppl --model llama2-7b --pe all --lengths 4k,8k,16k,32k --out runs/study --workers 8": (
        f"ppl --model tiny --pe all {TINY_PPL} --out runs/study --workers 8 --dry-run"
    ),
    "run spec.yaml --out /shared/runs/study --executor ray": "run runs/mine --out runs/again --executor ray --dry-run",
    "run spec.yaml --out s3://bucket/study --executor ray": "run runs/mine --out runs/stored --executor ray --dry-run",
}
"""A command of the pages → what is run in its place."""

NOT_RUN = {
    "view RUN --live": "serves until it is interrupted: tests/cli/test_view.py",
    "posgen train --tf32 --out runs/posgen": "TF32 needs an NVIDIA GPU",
    "posgen train --regime swapped --pe-arg yarn.beta_fast=2 --factor 3.953846 --native 257 --start-token --dropout 0.1 "
    "--frozen-mlp --tf32 --out runs/posgen-as-code": "TF32 needs an NVIDIA GPU",
    "doctor --parity": "starts vLLM's engine, which takes minutes and may not be installed: tests/test_parity.py",
    "doctor --parity --model M --pe none,yarn,resonance_yarn": "as above",
}
"""A command of the pages → why nothing here can run it."""

WHOLE = {"doctor", "models"}
"""Commands that need no argument. The name of any other alone only names it: its help is shown."""


def as_run(command):
    """The words of what is run for a command of the pages."""
    line = AS_RUN.get(command, command)
    bare = all(word.isalpha() for word in line.split()) and line not in WHOLE
    return shlex.split(f"{line} --help" if bare else line)


def case(command):
    words = as_run(command)
    tables = words[0] in ("rope", "models") and "--model" not in words
    quick = tables or words[:2] == ["posgen", "generate"] or words[-1] == "--help"
    return pytest.param(command, marks=() if quick else pytest.mark.slow, id=command[:60])


COMMANDS = all_commands()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("reports", "docs/figures", "runs"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def inputs(folder):
    """The models, documents and run folders that commands name."""
    save_tiny_llama(folder / "tiny", max_position_embeddings=128)
    save_adapter(folder / "tiny", folder / "lora")
    save_words_model(folder / "words")
    (folder / "documents.txt").write_text(make_text(400))
    (folder / "held-out.txt").write_text(make_text(400, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, pe in (("mine", "none"), ("other", "yarn")):
            words = f"ppl --model tiny --pe {pe} {TINY_PPL} --out runs/{name} -q"
            assert run_app(shlex.split(words)) == 0
        assert run_app(shlex.split(f"posgen train --preset smoke-test --out runs/smoke {SMOKE} -q")) == 0


@pytest.fixture(scope="module")
def server():
    server = CompletionsServer()
    server.models = [{"id": "bigram", "limit": 8192}]
    yield server
    server.close()


@pytest.fixture
def as_if_vllm_were_installed(monkeypatch):
    """`serve --dry-run` shows vLLM's command line; whether vLLM is here changes nothing of it."""
    monkeypatch.setattr(vllm_options, "check_installed", lambda needed_by: None)
    monkeypatch.setattr(vllm_options, "check_known", lambda args: None)
    monkeypatch.setattr(vllm_options, "engine_device", lambda device, serving: device)


@pytest.mark.parametrize("command", [case(command) for command in COMMANDS if command not in NOT_RUN])
def test_a_command_of_the_pages_runs(command, folder, monkeypatch, capfd, request):
    words = as_run(command)
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("inputs")
    if words[0] == "serve":
        request.getfixturevalue("as_if_vllm_were_installed")
    if "{server}" in words:
        words[words.index("{server}")] = request.getfixturevalue("server").url
    monkeypatch.chdir(folder)
    status = run_app(words)
    shown = capfd.readouterr()
    assert status == 0, f"longeval {shlex.join(words)}: {shown.err[-2000:]}"
    assert "--out" in words or "--json" in words or shown.out


def test_the_tables_name_commands_that_the_pages_have():
    listed = [*AS_RUN, *NOT_RUN]
    assert len(listed) == len({*listed})
    assert {*listed} <= {*COMMANDS}, "no page has this command any more: remove its entry"
    assert len(COMMANDS) >= 40

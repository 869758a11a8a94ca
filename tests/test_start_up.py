"""`--help` answers at once: it imports nothing heavy. What is imported is asserted, not how long it takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from tiny import make_text, save_tiny_llama

import longeval
from longeval.cli.app import app, run_app

COMMANDS = sorted(
    " ".join((name, *sub))
    for name, command in typer.main.get_command(app).commands.items()
    for sub in ((), *((inner,) for inner in getattr(command, "commands", ())))
)
"""As they are typed, those of groups too: posgen, posgen train."""

HEAVY = {
    "numpy", "torch", "transformers", "tokenizers", "matplotlib", "datasets", "pandas", "pyarrow", "fsspec", "yaml",
    "huggingface_hub", "safetensors", "accelerate", "gguf", "psutil", "scipy",
}  # fmt: skip

HELP_OF_ALL = """
import contextlib, io, json, sys
from longeval.cli.app import run_app
answers = {}
for command in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run_app([*command.split(), "--help"])
    answers[command] = {"status": status, "out": out.getvalue(), "modules": [*sys.modules]}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers():
    """Every command's help in one fresh process: status, text and the modules loaded by then."""
    command = [sys.executable, "-c", HELP_OF_ALL, json.dumps(["", *COMMANDS])]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return json.loads(answer.stdout)


def test_the_program_lists_its_commands(answers):
    assert answers[""]["status"] == 0
    assert all(command.split()[0] in answers[""]["out"] for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_imports_nothing_heavy(answers, command):
    assert answers[command]["status"] == 0
    _, _, examples = answers[command]["out"].partition("Examples")
    assert f"longeval {command}" in examples
    loaded = set(answers[command]["modules"])
    assert "longeval.cli.app" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("argument", "status", "said"), [("--help", 0, "Usage: longeval"), ("nonsense", 2, "nonsense")]
)
def test_python_dash_m_is_the_same_program(argument, status, said):
    command = [sys.executable, "-m", "longeval", argument]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == status
    assert said in (answer.stderr if status else answer.stdout)


def test_nothing_says_to_install_somebody_elses_package():
    """`longeval` on the package index is another program; ours is installed from a checkout or a wheel."""
    top = Path(__file__).parents[1]
    folders = [top / name for name in ("longeval", "docs", "tests", "tasks", "reports")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    files += [path for path in top.iterdir() if path.suffix in (".md", ".toml", ".txt") or path.name == "Makefile"]
    wrong = re.compile(r"(pipx? install|uv (add|tool install)|uvx) ([^`]*[ '\"])?longeval(?![\w/.-])")
    assert wrong.search("pip install 'longeval[vllm]'") and wrong.search("pip install -U longeval")
    assert not wrong.search("pip install './longeval_rope-0.1.0.whl[vllm]'")
    found = [f"{path}: {line}" for path in files for line in path.read_text().splitlines() if wrong.search(line)]
    assert [line for line in found if "test_start_up.py" not in line] == []


NOTHING_TO_DO = """
import json, sys
from longeval.cli.app import run_app
status = run_app([*sys.argv[1:], "-q"])
print(json.dumps({"status": status, "modules": [*sys.modules]}))
"""


def test_a_run_with_nothing_to_do_imports_no_data_science(tmp_path):
    """Those that transformers would bring along, a third of all; its configurations need torch."""
    model, text = save_tiny_llama(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(make_text(100))
    flags = ["ppl", "--model", str(model), "--pe", "none", "--lengths", "16", "--data", str(text), "--device", "cpu"]
    flags += ["--out", str(tmp_path / "run")]
    assert run_app([*flags, "-q"]) == 0
    command = [sys.executable, "-c", NOTHING_TO_DO, *flags]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert answer["status"] == 0
    assert (
        set(answer["modules"]) & {"sklearn", "pandas", "pyarrow", "scipy", "datasets", "lm_eval", "matplotlib"} == set()
    )


def test_version_names_the_version(capsys):
    assert run_app(["--version"]) == 0
    commit = r"( \([0-9a-f]{12}(, changed)?\))?\n"
    assert re.fullmatch(f"longeval {re.escape(longeval.__version__)}{commit}", capsys.readouterr().out)


@pytest.mark.parametrize("command", [[], ["ppl"], ["posgen", "train"]])
def test_h_is_short_for_help(command, capsys):
    shown = []
    for flag in ("-h", "--help"):
        assert run_app([*command, flag]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", {"COMP_WORDS": "longeval pp", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "longeval pp"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "longeval pp", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_complete_commands(shell, words):
    environment = {**os.environ, "_LONGEVAL_COMPLETE": f"complete_{shell}", **words}
    program = Path(sys.executable).with_name("longeval")
    answer = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert "ppl" in answer.stdout and "posgen" not in answer.stdout, answer.stderr

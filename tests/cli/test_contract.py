"""What other programs rely on, written down: commands, options, record keys, exit statuses. A change is a break."""

from __future__ import annotations

import json
import shlex

import pytest
import typer.main

from longeval.cli.app import app, run_app
from longeval.report.formats.json import records_json
from longeval.run.engine import RunResult
from longeval.run.study import Plan
from longeval.store.records import SCHEMA_VERSION, Provenance, Record, record_from_json


def flat(commands):
    """Commands by what is typed, those of a group after it: posgen, posgen train."""
    found = {}
    for name, command in commands.items():
        found[name] = command
        found |= {f"{name} {sub}": inner for sub, inner in flat(getattr(command, "commands", {})).items()}
    return found


COMMANDS = flat(typer.main.get_command(app).commands)

OPTIONS = {
    "ppl": "--model --pe --lengths --data --protocol --factor --native --pe-arg --scale-from --layers --docs "
    "--min-tokens --stride --bos --no-bos --parse-special --text-field --backend --vllm-arg --pin-length --base-url "
    "--served-model --dtype --device --device-map --attn --revision --adapter --trust-remote-code --batch-size --seed "
    "--metric --key-model --metric-arg --keep-text --no-keep-text "
    "--out --json --dry-run --fresh --executor --workers --gpus-per-worker --track --show --quiet -q --verbose -v",
    "tasks": "--model --pe --tasks --lengths --list --limit --overlong --same-samples --chat-template --num-fewshot "
    "--max-new-tokens --haystack --include --factor --native --pe-arg --scale-from --layers --bos --no-bos "
    "--parse-special --backend --vllm-arg --pin-length --base-url --served-model --dtype --device --device-map "
    "--attn --revision --adapter --trust-remote-code --seed --out --json --dry-run --fresh "
    "--executor --workers --gpus-per-worker --track --show "
    "--keep-text --no-keep-text --save-prompts --quiet -q --verbose -v",
    "posgen": "",
    "posgen generate": "--task --json --num-train --num-valid --num-test --length --test-length --modulus --j --k "
    "--seed --quiet -q",
    "posgen train": "--task --pe --seeds --regime --preset --first-seed --num-train --num-valid --num-test "
    "--length --test-length --modulus --j --k --data-seed --factor --native --pe-arg --layers --d-model --d-ff "
    "--heads --head-dim --theta --tied --untied --attention-scale --no-attention-scale --init --start-token "
    "--no-start-token --dropout --frozen-mlp --no-frozen-mlp --epochs --batch-size --lr --weight-decay --warmup "
    "--validate-every --tf32 --bf16 --device --out --json --dry-run --fresh "
    "--executor --workers --gpus-per-worker --track "
    "--quiet -q --verbose -v",
    "posgen table": "--out --json --title --preface --quiet -q",
    "finetune": "--model --pe --length --steps --window --augment --augment-arg --factor --pe-arg --native "
    "--scale-from --layers --data --docs --text-field --packing --bos --no-bos --parse-special "
    "--batch-size --lr --schedule --warmup --beta1 --beta2 --weight-decay --clip --loss --loss-arg --lora "
    "--lora-plus --lora-rank --lora-alpha --seeds --first-seed --stock --eval --no-eval --lengths "
    "--eval-data --eval-docs --tasks --limit --micro-batch --gradient-checkpointing "
    "--no-gradient-checkpointing --checkpoint-every --keep --dtype --device --attn --revision --out "
    "--json --dry-run --fresh --executor --workers --gpus-per-worker --track --quiet -q --verbose -v",
    "run": "--pe --out --trust-remote-code --json --dry-run --fresh "
    "--executor --workers --gpus-per-worker --track --show "
    "--quiet -q --verbose -v",
    "status": "--watch --json",
    "report": "--out --json --title --preface --published --pairs --quiet -q",
    "view": "--out --no-open --live --port",
    "diff": "--json --out",
    "rope": "--model --head-dim --theta --native --factor --length --pe-arg --scale-from --revision "
    "--trust-remote-code --json --plot --list",
    "export": "--model --pe --out --factor --native --pe-arg --scale-from --layers --revision --adapter --quiet -q",
    "models": "--json",
    "doctor": "--parity --model --pe --length --factor --native --pe-arg --scale-from --layers --pin-length --vllm-arg "
    "--dtype --device --revision --trust-remote-code --json",
    "serve": "--model --pe --factor --length --native --pe-arg --scale-from --layers --pin-length --host --port "
    "--served-model --no-api-key --vllm-arg --dtype --device --revision --adapter --trust-remote-code --dry-run "
    "--quiet -q --verbose -v",
}
"""All options of all commands, in both forms of those that have two."""

REQUIRED = {
    "ppl": set(),  # requests say what is missing
    "tasks": set(),
    "finetune": set(),
    "posgen": set(),
    "posgen generate": {"--task", "--json"},
    "posgen train": set(),
    "posgen table": {"runs"},
    "run": {"file"},
    "status": {"run"},
    "report": {"runs"},
    "view": {"runs"},
    "diff": {"run_a", "run_b"},
    "rope": set(),
    "export": {"--model", "--pe", "--out"},
    "models": set(),
    "doctor": set(),
    "serve": {"--model"},
}

DEFAULTS = {
    "pe": "none",
    "data": "gov_report",
    "protocol": "prefix",
    "backend": "hf",
    "stride": None,
    "dtype": "auto",
    "seed": "0",
}

RECORD_KEYS = [
    "schema_version", "cell", "model", "pe", "factor", "length", "data", "task", "protocol", "params", "backend",
    "dtype", "metric", "value", "ci_low", "ci_high", "n", "nll_sum", "tokens", "documents", "truncated", "skipped",
    "status", "error", "elapsed_s", "peak_memory_bytes", "rope_digest", "provenance",
]  # fmt: skip

PROVENANCE_KEYS = ["versions", "commit", "dirty", "command", "date", "device", "platform"]

PPL = ["ppl", "--model", "m", "--pe", "none", "--lengths", "4k"]


def make_record(**changes):
    provenance = Provenance(
        versions={"longeval": "0.1.0"}, commit=None, dirty=None, command="c", date="d", device="cpu", platform="p"
    )
    fields = {
        "cell": "a1",
        "model": "m",
        "pe": "none",
        "factor": None,
        "length": 4096,
        "data": "stdlib",
        "task": None,
        "protocol": "prefix",
        "backend": "hf",
        "dtype": "float32",
        "metric": "perplexity",
        "value": 10.0,
        "status": "ok",
        "provenance": provenance,
    }
    return Record(**fields | changes)


def test_the_commands():
    assert set(COMMANDS) == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_each_command(command):
    options = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    assert {name for option in options for name in [*option.opts, *option.secondary_opts]} == set(
        OPTIONS[command].split()
    )
    assert {p.opts[0] for p in COMMANDS[command].params if p.required} == REQUIRED[command]


OF_ITS_OWN = {
    "serve": "--model --pe --factor --served-model --trust-remote-code --dry-run --quiet --verbose",  # one of each
    "posgen train": "--batch-size --factor --layers",
    "finetune": "--batch-size --bos --data --docs --dtype --factor --lengths --limit --tasks",
    "posgen generate": "--json --seed",
    "posgen table": "--out --quiet",
}
"""Flags that mean something else than in `ppl` and `tasks`."""


@pytest.mark.parametrize("command", OF_ITS_OWN)
def test_a_flag_that_means_the_same_is_described_in_the_same_words(command):
    def described(name):
        options = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
        return {max(option.opts, key=len): option.help.partition(" [dim red]")[0] for option in options}

    known, own = described("ppl") | described("tasks"), described(command)
    shared = own.keys() & known.keys() - {"--help"}
    assert {flag for flag in shared if own[flag] != known[flag]} == set(OF_ITS_OWN[command].split())


def test_the_defaults_of_ppl():
    defaults = {option.name: option.default for option in COMMANDS["ppl"].params}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("command", OPTIONS)
def test_every_example_is_a_command_line_that_parses(command):
    lines = [line.strip() for line in COMMANDS[command].help.splitlines()]
    examples = [line for line in lines if line.startswith("longeval ")]
    assert examples
    for example in examples:
        name, *arguments = shlex.split(example.partition(" | ")[0])[1:]
        if getattr(COMMANDS[name], "commands", {}):
            name, arguments = f"{name} {arguments[0]}", arguments[1:]
        COMMANDS[name].make_context(name, arguments)


def test_record_keys_in_the_written_order():
    plain = make_record().to_json()
    assert list(plain) == RECORD_KEYS
    assert list(plain["provenance"]) == PROVENANCE_KEYS
    assert plain["schema_version"] == SCHEMA_VERSION == 1


def test_fields_that_do_not_apply_are_null_and_nothing_is_nan():
    plain = make_record(value=float("nan"), ci_low=float("inf"), status="failed", error="why").to_json()
    given = {"schema_version", "cell", "model", "pe", "length", "data", "protocol", "params", "backend", "dtype"}
    assert {key for key, value in plain.items() if value is None} == set(RECORD_KEYS) - given - {
        "metric", "status", "error", "provenance",
    }  # fmt: skip


def test_records_travel_as_a_json_array_of_those_objects():
    record = make_record(nll_sum=1.5, params={"seed": 0})
    array = json.loads(records_json([record]))
    assert [list(plain) for plain in array] == [RECORD_KEYS]
    assert record_from_json(array[0]) == record


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Returns a function that makes `ppl` end with the given records instead of computing any."""
    monkeypatch.chdir(tmp_path)
    plan = "longeval.studies.ppl.plan.plan_ppl"
    monkeypatch.setattr(plan, lambda spec, *_, **__: Plan(request=spec, cells=(), work=(), notes=()))

    def end_with(outcome):
        def run(*arguments, **settings):
            if isinstance(outcome, BaseException):
                raise outcome
            return RunResult(records=tuple(outcome), computed=len(outcome), taken=0, skipped=0, reused=0)

        monkeypatch.setattr("longeval.run.engine.run", run)

    return end_with


def test_status_0_all_done_and_only_json_on_stdout(planned, capsys):
    planned([make_record()])
    assert run_app([*PPL, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [list(plain) for plain in json.loads(out)] == [RECORD_KEYS]
    assert "1 cell computed" in err


def test_status_3_some_cells_failed(planned, capsys):
    planned([make_record(), make_record(cell="b2", value=None, status="failed", error="no memory")])
    assert run_app([*PPL, "-q"]) == 3
    assert "1 cell failed" in capsys.readouterr().err


def test_status_130_interrupted(planned, capsys):
    planned(KeyboardInterrupt())
    assert run_app([*PPL, "-q"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == "longeval: interrupted"


def test_status_1_is_a_bug_and_keeps_its_traceback(planned):
    planned(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):  # the interpreter then prints it and ends with 1
        run_app([*PPL, "-q"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["ppl", "--nonsense"], "--nonsense"),
        (["ppl"], "--model: missing. Give it, such as --model smollm2-135m-q4."),
        (["ppl", "--model", "m", "--pe-arg", "yarn.beta_fast=2"], "--pe-arg yarn.beta_fast=2"),
        (["ppl", "--model", "m"], "--lengths: missing. Give it, such as --lengths 4k,8k."),
        (["finetune", "--model", "m", "--length", "4k"], "--pe: missing. Give it, such as --pe none,yarn."),
        ([*PPL, "--stride"], "--stride"),
        ([*PPL, "--stride", "0"], "--stride 0"),
        (["report"], "RUN"),
        (["rope", "yarn", "extra"], "extra"),
    ],
)
def test_status_2_wrong_requests_get_one_message(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert run_app(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longeval: ")
    assert err.count("\n") == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []


def test_no_command_at_all_shows_the_help_as_a_message(capsys):
    assert run_app([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(command.split()[0] in err for command in OPTIONS)

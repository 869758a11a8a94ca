"""`longeval posgen generate`, and `longeval posgen` itself."""

import hashlib
import json
import subprocess
import sys

import pytest
from posgen_reference import wrong_tokens

from longeval.cli.app import run_app

SMALL = ["--num-train", "20", "--num-valid", "3", "--num-test", "7"]


def generate(*arguments):
    return run_app(["posgen", "generate", *arguments])


@pytest.mark.parametrize("task", ["recursive", "cot", "semi_recursive"])
def test_lines_on_stdout_hold_sequences_of_the_rule(capsys, task):
    assert generate("--task", task, *SMALL, "--json", "-") == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["split"], len(line["tokens"])) for line in lines] == (
        [("train", 64)] * 20 + [("valid", 256)] * 3 + [("test", 256)] * 7
    )
    assert all(wrong_tokens(line["tokens"], task, modulus=17, j=1, k=3) == [] for line in lines)
    assert len({tuple(line["tokens"][:4]) for line in lines}) == 30
    assert out.endswith("]}\n")
    assert err == ""


def test_every_flag_counts(capsys):
    flags = "--modulus 10 --j 2 --k 1 --length 12 --test-length 1k --num-train 2 --num-valid 1 --num-test 1 --seed 3"
    assert generate("--task", "semi_recursive", *flags.split(), "--json", "-") == 0
    lines = [json.loads(line)["tokens"] for line in capsys.readouterr().out.splitlines()]
    assert [len(tokens) for tokens in lines] == [12, 12, 1024, 1024]
    assert {token for tokens in lines for token in tokens} == set(range(10))
    assert all(wrong_tokens(tokens, "semi_recursive", modulus=10, j=2, k=1) == [] for tokens in lines)
    seeds = []
    for seed in ("3", "4", "3"):
        assert generate("--task", "cot", *SMALL, "--seed", seed, "--json", "-") == 0
        seeds.append(capsys.readouterr().out)
    assert seeds[0] == seeds[2] != seeds[1]


def test_a_file_has_the_same_bytes(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text("what was there before")
    assert generate("--task", "cot", *SMALL, "--json", str(path)) == 0
    assert capsys.readouterr() == ("", f"longeval: {path}: cot, 20 train, 3 valid, 7 test\n")
    assert generate("--task", "cot", *SMALL, "--json", "-") == 0
    assert path.read_bytes() == capsys.readouterr().out.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_the_defaults_are_the_papers_setting(tmp_path):
    path, spelled = tmp_path / "data.jsonl", tmp_path / "spelled.jsonl"
    assert generate("--task", "cot", "--json", str(path)) == 0
    sizes = "--num-train 10000 --num-valid 1000 --num-test 1000 --length 64 --test-length 256 --modulus 17 --j 1 --k 3"
    assert generate("--task", "cot", *sizes.split(), "--seed", "0", "--json", str(spelled)) == 0
    assert path.read_bytes() == spelled.read_bytes()
    # As published in the program's first version: other bytes are other data, for all who gave a seed.
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "6e1c4a2a3a677815aafe2f82029e1ba4ab5e82b4166a9afeaa4938d81701057b"
    )


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        ("--task nonsense", "--task nonsense", "cot, recursive, semi_recursive"),
        ("--task cot,recursive", "--task cot,recursive", "once for each"),
        ("--task semi_recursive --k 0", "--k 0", "--k 1"),
        ("--task recursive --j 0 --k 0", "--j 0, --k 0", "at least 1"),
        ("--task cot --modulus 3", "81 ways to start (3^4)", "--modulus 11 or more"),
        ("--task cot --test-length 32", "--test-length 32: is shorter", "--length"),
        ("--task cot --length 4", "--length 4", "--length 5"),
        ("--task cot --num-train -1", "--num-train -1", "at least 0"),
        ("--task cot --modulus 1", "--modulus 1", "at least 2"),
        ("--task cot --j 12 --num-train 99999999999999", "--num-train 99999999999999", "fewer"),
        ("--task cot --json there/is/none.jsonl", "--json there/is/none.jsonl", "exists"),
        ("--json data.jsonl", "--task", "--help"),
    ],
)
def test_wrong_requests_get_one_message_and_write_nothing(refused, arguments, problem, remedy):
    arguments = arguments.split()
    if "--json" not in arguments:
        arguments += ["--json", "data.jsonl"]
    message = refused(["posgen", "generate", *arguments])
    assert problem in message and remedy in message


@pytest.mark.parametrize(("arguments", "said"), [(["generate", "--task", "cot"], "--json"), (["nonsense"], "nonsense")])
def test_what_is_missing_or_unknown_is_named(refused, arguments, said):
    assert said in refused(["posgen", *arguments])


def test_a_reader_who_has_enough_is_no_error():
    command = [sys.executable, "-m", "longeval", "posgen", "generate", "--task", "cot", "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline().startswith('{"split": "train", "tokens": [')
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait() == 0


def test_the_group_alone_shows_its_help_as_a_message(capsys):
    assert run_app(["posgen"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "longeval posgen generate --task cot --json data.jsonl" in err

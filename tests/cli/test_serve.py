"""`longeval serve` without starting a server: what it would start, and with which key."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest
from tiny import save_tiny_llama

from longeval.backends import vllm_options
from longeval.backends.vllm_rope import from_parameters
from longeval.cli.app import run_app
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda: None)
    monkeypatch.setattr(vllm_options, "check_known", lambda args: None)
    monkeypatch.setattr(vllm_options, "engine_device", lambda device: device)
    monkeypatch.delenv("LONGEVAL_API_KEY", raising=False)


@pytest.fixture
def started(monkeypatch):
    """Command and environment of the process that would be vLLM's."""
    found = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: found.append((path, command, environment)))
    return found


def options(command):
    """Flags with their values; None for those without."""
    found, key = {}, None
    for word in command:
        if word.startswith("--"):
            key = word
            found[key] = None
        elif key is not None:
            found[key] = word
    return found


def test_the_server_gets_our_table_and_length(folder, capsys):
    line = ["serve", "--model", str(folder), "--pe", "resonance_yarn", "--factor", "4", "--dry-run"]
    assert run_app(line) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    given = options(words)
    assert given["--model"] == given["--tokenizer"] == str(folder)
    overrides = json.loads(given["--hf-overrides"])
    held = from_parameters(overrides["rope_parameters"])
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
    assert held.table.same_as(build_table("resonance_yarn", geometry))
    assert (held.length, given["--max-model-len"]) == (257, "257")  # four times 64, and a token to be generated
    assert (given["--host"], given["--port"], given["--served-model-name"]) == ("127.0.0.1", "8000", str(folder))
    assert "--no-trust-remote-code" in given
    assert "--enable-prefix-caching" in given


def test_a_new_key_is_told_once_and_stands_in_no_command_line(folder, started, capsys):
    assert run_app(["serve", "--model", str(folder)]) == 0
    ((path, command, environment),) = started
    key = environment["VLLM_API_KEY"]
    assert path == sys.executable
    assert len(key) >= 24
    assert key not in " ".join(command)
    out, err = capsys.readouterr()
    assert f"export LONGEVAL_API_KEY={key}" in err
    assert key not in out


def test_a_key_of_ones_own_is_taken_and_not_shown(folder, started, capsys, monkeypatch):
    monkeypatch.setenv("LONGEVAL_API_KEY", "mine-alone")
    assert run_app(["serve", "--model", str(folder)]) == 0
    assert started[0][2]["VLLM_API_KEY"] == "mine-alone"
    assert "mine-alone" not in "".join(capsys.readouterr())


def test_no_key_is_a_choice_and_away_from_this_machine_a_warning(folder, started, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "left over")
    assert run_app(["serve", "--model", str(folder), "--no-api-key"]) == 0
    assert "VLLM_API_KEY" not in started[0][2]
    assert "whoever" not in capsys.readouterr().err
    assert run_app(["serve", "--model", str(folder), "--no-api-key", "--host", "0.0.0.0"]) == 0
    assert "whoever reaches this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pe", "dynamic_ntk", "--length", "128"], "--pin-length"),
        (["--pe", "yarn", "--length", "128", "--pin-length", "128"], "--pin-length"),
        (["--vllm-arg", "max_model_len=5"], "--vllm-arg max_model_len"),
        (["--vllm-arg", "port=5"], "--vllm-arg port"),
        (["--pe", "yarm"], "yarm"),
        (["--length", "0"], "--length"),
    ],
)
def test_wrong_requests_start_nothing(folder, started, capsys, arguments, said):
    assert run_app(["serve", "--model", str(folder), *arguments]) == 2
    assert started == []
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("length", ["128", "32"])  # 32: below the native 64, where it would otherwise be as it was
def test_a_pinned_table(folder, capsys, length):
    line = ["serve", "--model", str(folder), "--pe", "dynamic_ntk", "--length", length, "--pin-length", "96"]
    assert run_app([*line, "--dry-run"]) == 0
    given = options(shlex.split(capsys.readouterr().out))
    held = from_parameters(json.loads(given["--hf-overrides"])["rope_parameters"]).table
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64)
    assert held.same_as(build_table("dynamic_ntk", geometry, seq_len=96))

"""`longeval serve` without starting a server: what it would start, and with which key."""

from __future__ import annotations

import json
import shlex
import socket

import pytest
from tiny import save_tiny_llama

from longeval.backends.vllm import options as vllm_options
from longeval.backends.vllm import server as vllm_server
from longeval.backends.vllm.rope import from_parameters
from longeval.cli.app import run_app
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda needed_by: None)
    monkeypatch.setattr(vllm_options, "check_known", lambda args: None)
    monkeypatch.setattr(vllm_options, "engine_device", lambda device, serving: device)
    monkeypatch.delenv("LONGEVAL_API_KEY", raising=False)


@pytest.fixture
def started(monkeypatch):
    """Flags, environment and settings of the server that would be started, and that is up at once."""
    found = []

    def run(flags, environment, **settings):
        found.append((flags, environment, settings))
        settings["announce"]()
        return 0

    monkeypatch.setattr(vllm_server, "run_server", run)
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
    assert words[:3] == ["python", "-m", "vllm.entrypoints.launchers.api_server.entry"]
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


def test_a_method_that_stretches_nothing_is_told(folder, capsys):
    def notes(*more):
        assert run_app(["serve", "--model", str(folder), "--pe", "yarn", "--dry-run", *more]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "nothing is stretched" in line]

    assert notes() == [
        "longeval: yarn: s = 1, nothing is stretched (the native length is 64; --factor or a longer --length would)"
    ]
    assert notes("--factor", "2") == notes("--length", "128") == notes("--pe", "none") == []


@pytest.mark.parametrize("key", ["a b", "schl\u00fcssel"])
def test_a_key_that_no_client_could_send_is_refused_before_anything_else(folder, started, capsys, monkeypatch, key):
    monkeypatch.setenv("LONGEVAL_API_KEY", key)
    assert run_app(["serve", "--model", "no such model"]) == 2
    err = capsys.readouterr().err
    assert "LONGEVAL_API_KEY: has characters" in err and key not in err and not started


def test_a_key_is_the_one_that_a_client_sends(folder, started, monkeypatch):
    monkeypatch.setenv("LONGEVAL_API_KEY", "abc\r\n")
    assert run_app(["serve", "--model", str(folder)]) == 0
    assert started[0][1]["VLLM_API_KEY"] == "abc"


def test_devices_are_one_word_to_vllm(folder, capsys):
    line = ["serve", "--model", str(folder), "--dry-run", "--vllm-arg", "device_ids=[0, 1]"]
    assert run_app(line) == 0
    assert options(shlex.split(capsys.readouterr().out))["--device-ids"] == "0,1"


def test_a_new_key_is_told_once_and_stands_in_no_command_line(folder, started, capsys):
    assert run_app(["serve", "--model", str(folder)]) == 0
    ((flags, environment, _),) = started
    key = environment["VLLM_API_KEY"]
    assert len(key) >= 24
    assert key not in " ".join(flags)
    out, err = capsys.readouterr()
    assert err.count(key) == 1
    assert err.splitlines()[-1].endswith(f"export LONGEVAL_API_KEY={key}")
    assert out == ""


def test_what_is_said_while_it_starts_and_when_it_is_up(folder, started, capsys):
    line = [
        "serve",
        "--model",
        str(folder),
        "--pe",
        "resonance_yarn",
        "--factor",
        "4",
        "--host",
        "::1",
        "--port",
        "8007",
    ]
    assert run_app([*line, "--no-api-key", "--served-model", "tiny"]) == 0
    first, last = capsys.readouterr().err.splitlines()
    what = "tiny with resonance_yarn, s = 4, up to 256 tokens"
    assert first.startswith(f"longeval: starting vLLM's server: {what}")
    assert last == f"longeval: ready: http://[::1]:8007/v1 serves {what}; Ctrl-C ends it; it asks for no key"


def test_the_log_is_shown_if_asked_for(folder, started, capsys):
    for flags, shown in (([], False), (["-v"], True)):
        assert run_app(["serve", "--model", str(folder), *flags]) == 0
        given, _, settings = started[-1]
        assert settings["show_log"] is shown
        assert ("--disable-uvicorn-access-log" in given) is not shown
        assert ("-v shows its log" in capsys.readouterr().err) is not shown


def test_a_port_that_is_taken_is_told_before_a_model_is_looked_at(started, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_app(["serve", "--model", "nowhere", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}: can't be listened on at 127.0.0.1 (address already in use)" in err
    assert started == []


def test_a_dry_run_says_what_its_line_doesnt(folder, capsys):
    line = [
        "serve",
        "--model",
        str(folder),
        "--pe",
        "dynamic_ntk",
        "--length",
        "128",
        "--pin-length",
        "96",
        "--dry-run",
    ]
    assert run_app(line) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "VLLM_API_KEY" not in out
    assert "set VLLM_API_KEY" in err
    assert "dynamic_ntk, pinned to its table at 96, up to 128 tokens" in err
    assert "--pin-length 96: is shorter than the longest prompt, 128" in err
    assert run_app([*line[:-2], "128", "--dry-run", "--no-api-key"]) == 0
    err = capsys.readouterr().err
    assert "VLLM_API_KEY" not in err
    assert "is shorter" not in err


def test_lists_are_words_of_the_command_line(folder, started):
    line = ["serve", "--model", str(folder), "--vllm-arg", "cudagraph_capture_sizes=[1, 2]"]
    assert run_app([*line, "--vllm-arg", "speculative_config={a: 1}", "--vllm-arg", "shutdown_timeout=7"]) == 0
    flags, _, settings = started[0]
    at = flags.index("--cudagraph-capture-sizes")
    assert flags[at + 1 : at + 3] == ["1", "2"]
    assert flags[at + 3].startswith("--")
    assert options(flags)["--speculative-config"] == '{"a": 1}'
    assert settings["drain_s"] == 7


def test_a_key_of_ones_own_is_taken_and_not_shown(folder, started, capsys, monkeypatch):
    monkeypatch.setenv("LONGEVAL_API_KEY", "mine-alone")
    assert run_app(["serve", "--model", str(folder)]) == 0
    assert started[0][1]["VLLM_API_KEY"] == "mine-alone"
    said = "".join(capsys.readouterr())
    assert "mine-alone" not in said
    assert "its key is the one in LONGEVAL_API_KEY" in said


def test_no_key_is_a_choice_and_away_from_this_machine_a_warning(folder, started, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "left over")
    assert run_app(["serve", "--model", str(folder), "--no-api-key"]) == 0
    assert "VLLM_API_KEY" not in started[0][1]
    assert "whoever" not in capsys.readouterr().err
    assert run_app(["serve", "--model", str(folder), "--no-api-key", "--host", "0.0.0.0"]) == 0
    assert "whoever reaches this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pe", "dynamic_ntk", "--length", "128"], "--pin-length"),
        (["--pe", "yarn", "--length", "128", "--pin-length", "128"], "--pin-length"),
        (["--pe", "none", "--length", "128", "--factor", "2"], "--factor 2: would be ignored, --length 128 is given"),
        (["--vllm-arg", "max_model_len=5"], "--vllm-arg max_model_len: is set by --length. Leave"),
        (["--vllm-arg", "port=5"], "--vllm-arg port: is set by --port. Leave"),
        (["--vllm-arg", "host=x"], "--vllm-arg host: is set by --host. Leave"),
        (["--vllm-arg", "served-model-name=x"], "is set by --served-model. Leave"),
        (["--vllm-arg", "api_key=x"], "--vllm-arg api_key: is set by LONGEVAL_API_KEY"),
        (["--pe", "none,yarn"], "--pe none,yarn: a server has one method"),
        (["--pe", "yarm"], "yarm"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no address"),
        (["--host", ""], "--host '': no address"),
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


def test_without_vllm_no_other_backend_is_named(monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_app(["serve", "--model", "m"]) == 2
    said = capsys.readouterr().err
    assert "serve: vLLM isn't installed" in said
    assert "pip install -e '.[vllm]'" in said
    assert "--backend" not in said

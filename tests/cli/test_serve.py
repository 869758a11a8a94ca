"""`longeval serve` without starting a server: what it would start, and with which key."""

from __future__ import annotations

import json
import shlex
import socket

import pytest
from tiny import save_tiny_llama

from longeval.backends.served import ServedMethod
from longeval.backends.vllm import options as vllm_options
from longeval.backends.vllm import server as vllm_server
from longeval.backends.vllm.rope import from_parameters
from longeval.cli.app import run_app
from longeval.plain import made_from
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda needed_by: None)
    monkeypatch.setattr(vllm_options, "check_known", lambda args: None)
    monkeypatch.setattr(vllm_options, "engine_device", lambda device, serving: device)
    monkeypatch.delenv("LONGEVAL_API_KEY", raising=False)


@pytest.fixture
def line(tiny_llama):
    return ["serve", "--model", str(tiny_llama)]


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


def dry_run(capsys, arguments):
    """The command that a dry run prints, as words, and what it says on stderr."""
    assert run_app([*arguments, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return shlex.split(out), err


def test_the_server_gets_our_table_and_length(line, tiny_llama, capsys):
    words, _ = dry_run(capsys, [*line, "--pe", "resonance_yarn", "--factor", "4"])
    assert words[:3] == ["python", "-m", "vllm.entrypoints.launchers.api_server.entry"]
    given = options(words)
    assert given["--model"] == given["--tokenizer"] == str(tiny_llama)
    held = from_parameters(json.loads(given["--hf-overrides"])["rope_parameters"])
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
    assert held.table.same_as(build_table("resonance_yarn", geometry))
    assert (held.length, given["--max-model-len"]) == (257, "257")  # four times 64, and a token to be generated
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "8000")
    assert given["--served-model-name"] == str(tiny_llama)
    assert "--no-trust-remote-code" in given
    assert "--enable-prefix-caching" in given
    assert given["--middleware"] == "longeval.backends.vllm.card.MethodCard"
    told = json.loads(given["--hf-overrides"])["longeval_served"]
    assert told.pop("keeps_others") is False
    method = made_from(ServedMethod, told)
    assert (method.pe, method.factor, method.native_length, method.length) == ("resonance_yarn", 4.0, 64, 256)
    assert method.parameters == {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}


def test_a_model_with_a_scaling_of_its_own_is_served_to_its_end(tmp_path, line, capsys):
    scaled = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    model = save_tiny_llama(tmp_path / "scaled", rope_parameters=scaled, max_position_embeddings=256)
    words, _ = dry_run(capsys, [*line, "--model", str(model), "--pe", "none"])
    assert options(words)["--max-model-len"] == "257"


@pytest.mark.parametrize("length", ["128", "32"])  # 32: below the native 64, where it would otherwise be as it was
def test_a_pinned_table(line, capsys, length):
    words, _ = dry_run(capsys, [*line, "--pe", "dynamic_ntk", "--length", length, "--pin-length", "96"])
    held = from_parameters(json.loads(options(words)["--hf-overrides"])["rope_parameters"]).table
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64)
    assert held.same_as(build_table("dynamic_ntk", geometry, seq_len=96))


@pytest.mark.parametrize(
    ("more", "told"),
    [([], True), (["--factor", "2"], False), (["--length", "128"], False), (["--pe", "none"], False)],
)
def test_a_method_that_stretches_nothing_is_told(line, capsys, more, told):
    _, err = dry_run(capsys, [*line, "--pe", "yarn", *more])
    assert ("nothing is stretched" in err) is told


def test_a_dry_run_says_what_its_line_doesnt(line, capsys):
    pinned = [*line, "--pe", "dynamic_ntk", "--length", "128", "--pin-length"]
    words, err = dry_run(capsys, [*pinned, "96"])
    assert "VLLM_API_KEY" not in " ".join(words) and "set VLLM_API_KEY" in err
    assert "dynamic_ntk, pinned to its table at 96, up to 128 tokens" in err
    assert "--pin-length 96: is shorter" in err
    _, err = dry_run(capsys, [*pinned, "128", "--no-api-key"])
    assert "VLLM_API_KEY" not in err and "is shorter" not in err


def test_what_is_said_while_it_starts_and_when_it_is_up(line, started, capsys):
    address = ["--host", "::1", "--port", "8007"]
    table = ["--pe", "resonance_yarn", "--factor", "4"]
    assert run_app([*line, *table, *address, "--no-api-key", "--served-model", "tiny"]) == 0
    first, last = capsys.readouterr().err.splitlines()
    what = "tiny with resonance_yarn, s = 4, up to 256 tokens"
    assert what in first
    assert f"http://[::1]:8007/v1 serves {what}" in last and "asks for no key" in last


@pytest.mark.parametrize(("flags", "shown"), [([], False), (["-v"], True)])
def test_the_log_is_shown_if_asked_for(line, started, capsys, flags, shown):
    assert run_app([*line, *flags]) == 0
    given, _, settings = started[-1]
    assert settings["show_log"] is shown
    assert ("--disable-uvicorn-access-log" in given) is not shown
    assert ("-v shows its log" in capsys.readouterr().err) is not shown


def test_quiet_says_nothing_but_a_key_that_is_new(line, started, capsys, monkeypatch):
    yarn = [*line, "--pe", "yarn", "-q"]  # s = 1, of which a note tells otherwise
    assert run_app(yarn) == 0
    key = started[0][1]["VLLM_API_KEY"]
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.rstrip().endswith(key)
    monkeypatch.setenv("LONGEVAL_API_KEY", "mine")
    assert run_app(yarn) == 0
    assert capsys.readouterr() == ("", "")
    assert run_app([*yarn, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    assert run_app([*yarn, "-v"]) == 2
    assert "-q and -v: contradict each other" in capsys.readouterr().err


def test_lists_are_words_of_the_command_line(line, started):
    lists = ["--vllm-arg", "cudagraph_capture_sizes=[1, 2]", "--vllm-arg", "device_ids=[0, 1]"]
    others = ["--vllm-arg", "speculative_config={a: 1}", "--vllm-arg", "shutdown_timeout=7"]
    assert run_app([*line, *lists, *others]) == 0
    flags, _, settings = started[0]
    at = flags.index("--cudagraph-capture-sizes")
    assert flags[at + 1 : at + 3] == ["1", "2"]
    assert flags[at + 3].startswith("--")
    given = options(flags)
    assert given["--speculative-config"] == '{"a": 1}'
    assert given["--device-ids"] == "0,1"  # one word to vLLM
    assert settings["drain_s"] == 7


def test_a_new_key_is_told_once_and_stands_in_no_command_line(line, started, capsys):
    assert run_app(line) == 0
    ((flags, environment, _),) = started
    key = environment["VLLM_API_KEY"]
    assert len(key) >= 24
    assert key not in " ".join(flags)
    out, err = capsys.readouterr()
    assert err.count(key) == 1
    assert err.splitlines()[-1].endswith(f"export LONGEVAL_API_KEY={key}")
    assert out == ""


def test_a_key_of_ones_own_is_taken_as_a_client_sends_it_and_not_shown(line, started, capsys, monkeypatch):
    monkeypatch.setenv("LONGEVAL_API_KEY", "mine-alone\r\n")
    assert run_app(line) == 0
    assert started[0][1]["VLLM_API_KEY"] == "mine-alone"
    said = "".join(capsys.readouterr())
    assert "mine-alone" not in said
    assert "LONGEVAL_API_KEY" in said


@pytest.mark.parametrize("key", ["a b", "schl\u00fcssel"])
def test_a_key_that_no_client_could_send_is_refused_before_anything_else(started, refused, monkeypatch, key):
    monkeypatch.setenv("LONGEVAL_API_KEY", key)
    message = refused(["serve", "--model", "no such model"])
    assert "LONGEVAL_API_KEY" in message and key not in message and not started


def test_no_key_is_a_choice_and_away_from_this_machine_a_warning(line, started, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "left over")
    assert run_app([*line, "--no-api-key"]) == 0
    assert "VLLM_API_KEY" not in started[0][1]
    assert "whoever" not in capsys.readouterr().err
    assert run_app([*line, "--no-api-key", "--host", "0.0.0.0"]) == 0
    assert "whoever reaches this machine" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_a_model_is_looked_at(started, refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused(["serve", "--model", "nowhere", "--port", str(port)])
    assert f"--port {port}" in message and "127.0.0.1" in message and "address already in use" in message
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pe", "dynamic_ntk", "--length", "128"], "--pin-length"),
        (["--pe", "yarn", "--length", "128", "--pin-length", "128"], "--pin-length"),
        (["--pe", "none", "--length", "128", "--factor", "2"], "--factor 2: would be ignored"),
        (["--vllm-arg", "max_model_len=5"], "--vllm-arg max_model_len: is set by --length"),
        (["--vllm-arg", "served-model-name=x"], "is set by --served-model"),
        (["--vllm-arg", "api_key=x"], "--vllm-arg api_key: is set by LONGEVAL_API_KEY"),
        (["--pe", "none,yarn"], "--pe none,yarn"),
        (["--pe", "yarm"], "yarm"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--host", ""], "--host ''"),
        (["--length", "0"], "--length"),
    ],
)
def test_wrong_requests_start_nothing(line, started, refused, arguments, said):
    assert said in refused([*line, *arguments])
    assert started == []


def test_without_vllm_no_other_backend_is_named(monkeypatch, refused):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(["serve", "--model", "m"])
    assert "pip install -e '.[vllm]'" in message
    assert "--backend" not in message

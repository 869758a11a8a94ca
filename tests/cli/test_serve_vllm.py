"""`longeval serve` and `--backend openai` together, with vLLM's real server: the method that was served is measured."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from own_tasks import ANSWER, CHOICE, write_data, write_task
from ports import free_port
from tiny import make_text, save_tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed here"),
]

KEY = "tests-only"


def carry_out(tmp_path, name, environment, **plain):
    """Exit status, messages, and records by (length, metric)."""
    (tmp_path / f"{name}.yaml").write_text(json.dumps(plain))
    out = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", "longeval", "run", f"{name}.yaml", "--out", name, "--json", str(out)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    records = json.loads(out.read_text()) if out.exists() else []
    return done.returncode, done.stderr, {(r["length"], r["metric"]): r for r in records}


ENVIRONMENT = os.environ | {"LONGEVAL_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1"}


def start(tmp_path, folder, *flags):
    """A server that is starting; its messages go to the file `log`."""
    served = [sys.executable, "-m", "longeval", "serve", "--model", str(folder), "--pe", "resonance_yarn"]
    served += ["--factor", "8", "--dtype", "float32", "--served-model", "tiny", *flags]
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(
            served, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=tmp_path, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def wait_for(server, log, seen):
    """Waits until something is seen; what the server said is shown if it never is."""
    until = time.monotonic() + 400
    while not seen():
        assert server.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)


def test_what_is_served_is_what_is_measured(tmp_path):
    folder = save_tiny_llama(tmp_path / "tiny", head_dim=32, hidden_size=64)
    port = free_port()
    environment, log = ENVIRONMENT, tmp_path / "log"
    server = start(tmp_path, folder, "--port", str(port))
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_for(server, log, lambda: "longeval: ready:" in log.read_text())
        first, last = log.read_text().splitlines()  # and nothing of vLLM's
        assert first.startswith("longeval: starting vLLM's server: tiny with resonance_yarn, s = 8, up to 512 tokens")
        assert last.startswith(f"longeval: ready: {url} serves tiny with resonance_yarn, s = 8, up to 512 tokens")
        assert KEY not in log.read_text()
        tasks = [str(write_task(tmp_path, *each)) for each in (
            (CHOICE, write_data(tmp_path), "which_word"), (ANSWER, write_data(tmp_path), "what_word")
        )]  # fmt: skip
        (tmp_path / "book.txt").write_text(make_text(2000))
        common = {"model": [str(folder)], "pe": ["resonance_yarn"], "factor": 8, "lengths": [128, 512]}
        hf = {"dtype": "float32"}
        openai = {"backend": "openai", "base_url": url, "served_model": "tiny"}
        for name, kind in (
            ("tasks", {"command": "tasks", "tasks": tasks}),
            ("ppl", {"data": [str(tmp_path / "book.txt")]}),
        ):
            status, said, expected = carry_out(tmp_path, f"{name}-hf", environment, **common, **kind, **hf)
            assert status == 0, said
            status, said, found = carry_out(tmp_path, f"{name}-openai", environment, **common, **kind, **openai)
            assert status == 0, said
            assert "only labels the results" in said
            assert KEY not in said
            assert found.keys() == expected.keys()
            for key, record in found.items():
                assert record["value"] == pytest.approx(expected[key]["value"], rel=1e-4)
                assert (record["backend"], record["rope_digest"]) == ("openai", None)
        wrong = environment | {"LONGEVAL_API_KEY": "another"}
        status, said, found = carry_out(tmp_path, "wrong", wrong, **common, data=[str(tmp_path / "book.txt")], **openai)
        assert (status, found) == (2, {})
        assert "LONGEVAL_API_KEY" in said
        assert "another" not in said
    finally:
        below = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
        status = server.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        for process in alive:
            process.kill()
    assert (status, alive) == (0, [])


def engines(server):
    """The engine's processes below a server."""
    below = psutil.Process(server.pid).children(recursive=True)
    return [process for process in below if "EngineCore" in " ".join(process.cmdline())]


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends no processes with their parent")
def test_no_process_outlives_a_longeval_that_is_killed(tmp_path):
    folder = save_tiny_llama(tmp_path / "tiny", head_dim=32, hidden_size=64)
    server = start(tmp_path, folder, "--port", str(free_port()))
    below = []
    try:
        wait_for(server, tmp_path / "log", lambda: engines(server))
        below = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        assert alive == []
        assert len(below) >= 2
    finally:
        for process in below:
            if process.is_running():
                process.kill()
        server.kill()

"""The process of `longeval serve`, with a server that is none of vLLM's: waiting, signals, ends and what they leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from ports import free_port

from longeval.backends.vllm import server as vllm_server
from longeval.backends.vllm.server import base_url, check_address, is_up
from longeval.errors import LongEvalError

pytestmark = pytest.mark.timeout(60)

SERVER = """
import http.server, os, signal, subprocess, sys, threading, time

port, mode = int(sys.argv[1]), sys.argv[2]
CORE, DEAD = "(EngineCore pid=7) ERROR", "EngineDeadError: EngineCore encountered an issue. See stack trace (above)."
BEFORE_START = {
    "broken": [
        "(APIServer pid=6) WARNING 01-01 [ulimit.py:1] OSError: too many files; it goes on",
        f"{CORE} 01-01 [core.py:1] ValueError: no memory for the KV cache",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ],
    "refuses": ["entry.py: error: argument --x: invalid int value: 'two'", ""],
    "dies": ["ValueError: of the start"],
}
AT_THE_END = {
    "dies": ["KeyError: of the run"],
    "loses its engine": [DEAD],
    "loses a worker": [f"{CORE} RuntimeError: Executor failed.", DEAD],
    "is killed": ["ERROR ValueError: of a request that was refused"],
}
if mode in ("well", "deaf", "slow", *AT_THE_END):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(__file__ + ".child", "w") as file:
        file.write(str(child.pid))
print("log line", *BEFORE_START.get(mode, []), sep="\\n", flush=True)
if mode in ("broken", "refuses"):
    sys.exit(1 if mode == "broken" else 2)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "slow":
    time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if mode == "talks":
            print("x" * 200_000, flush=True)
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass

def end(number, _):
    if mode != "deaf":
        print("ended by", number, flush=True)
        os._exit(0)

def die():
    time.sleep(1)
    print(*AT_THE_END[mode], sep="\\n", flush=True)
    if mode == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)

signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
if mode in AT_THE_END:
    threading.Thread(target=die).start()
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """What a shell starts in the background, or under nohup, ignores these signals; a server under test then would."""
    asked = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in asked.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs such a server: its exit status; `announced` and `left`: what was announced, the processes still alive."""
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setattr(vllm_server, "_OURS", (str(tmp_path / "server.py"),))
    begun = set(psutil.Process().children(recursive=True))
    child = tmp_path / "server.py.child"

    def run(mode, announce=lambda: None, *, show_log=False):
        port = free_port()
        run.announced = []

        def told():
            pid = next(child.pid for child in psutil.Process().children() if child not in begun)
            assert os.getpgid(pid) == pid  # a terminal's Ctrl-C comes to longeval alone
            run.announced.append(is_up(pid, "127.0.0.1", port))
            announce()

        try:
            return vllm_server.run_server(
                [str(port), mode], dict(os.environ), name="tiny", host="127.0.0.1", port=port, show_log=show_log,
                drain_s=0, announce=told,
            )  # fmt: skip
        finally:
            run.left = set(psutil.Process().children(recursive=True)) - begun
            if child.exists() and psutil.pid_exists(int(child.read_text())):
                run.left.add(psutil.Process(int(child.read_text())))

    return run


def send(*numbers, every_s=0.0):
    """Signals to this process, the first at once."""

    def announce():
        os.kill(os.getpid(), numbers[0])
        for turn, number in enumerate(numbers[1:], 1):
            threading.Timer(turn * every_s, os.kill, (os.getpid(), number)).start()

    return announce


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_and_the_servers_status_is_ours(start, capfd, number):
    before = handlers()
    assert start("well", send(number), show_log=True) == 0
    assert (start.announced, start.left) == ([True], set())
    handed = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    err = capfd.readouterr().err
    assert f"ended by {int(handed)}" in err and "log line" in err
    assert handlers() == before


def test_its_log_is_not_shown_unless_asked_for(start, capfd):
    assert start("well", send(signal.SIGTERM)) == 0
    assert "".join(capfd.readouterr()) == ""


def test_a_log_that_nobody_reads_any_more_stops_no_server(start, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    in_vain = threading.Timer(15.0, os.kill, (os.getpid(), signal.SIGHUP))  # while it is waited for
    in_vain.start()
    try:
        assert start("talks", send(signal.SIGTERM), show_log=True) == 0
    finally:
        in_vain.cancel()
    assert start.announced == [True]


def test_a_second_signal_ends_a_server_that_doesnt_listen(start):
    begin = time.monotonic()
    assert start("deaf", send(signal.SIGINT, signal.SIGINT, every_s=0.7)) == 130
    assert time.monotonic() - begin < vllm_server._GRACE_S / 2
    assert start.left == set()


def test_time_ends_a_server_that_doesnt_listen(start, monkeypatch):
    monkeypatch.setattr(vllm_server, "_GRACE_S", 0.5)
    assert start("deaf", send(signal.SIGTERM)) == 143
    assert start.left == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_a_start_at_once(start, number):
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    begin = time.monotonic()
    if number == signal.SIGTERM:
        assert start("slow") == 143
    else:
        with pytest.raises(KeyboardInterrupt):
            start("slow")
    assert time.monotonic() - begin < 10
    assert (start.announced, start.left) == ([], set())


def test_a_signal_that_was_ignored_stays_so(start, capfd):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert start("well", send(signal.SIGINT, signal.SIGTERM, every_s=0.7), show_log=True) == 0
        assert f"ended by {int(signal.SIGTERM)}" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("broken", "ValueError: no memory for the KV cache. Let it use more memory:"),
        ("refuses", "status 2: entry.py: error: argument --x: invalid int value: 'two'. -v"),
        ("killed", "(SIGKILL), perhaps because the machine ran out of memory. Let it use less memory:"),
    ],
)
def test_a_server_that_doesnt_start(start, mode, said):
    with pytest.raises(LongEvalError, match="--model tiny: ") as caught:
        start(mode)
    assert said in str(caught.value) and "--backend" not in str(caught.value)
    assert start.announced == []


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dies", "KeyError: of the run"),
        ("loses its engine", "its engine ended without a message"),
        ("loses a worker", "its engine ended without a message"),
        ("is killed", "it was killed (SIGKILL)"),
    ],
)
def test_a_server_that_dies_is_told_with_the_reason(start, caplog, mode, said):
    assert start(mode) == 1  # though it says 0 itself
    assert (start.announced, start.left) == ([True], set())
    assert f"ended by itself: {said}" in caplog.text


def test_another_server_at_the_port_isnt_ours(server):
    server._proper = lambda handler, body: (200, {}, "")
    assert is_up(os.getpid(), "127.0.0.1", server.port)
    assert not is_up(os.getpid() + 10_000_000, "127.0.0.1", server.port)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not is_up(other.pid, "127.0.0.1", server.port)
    finally:
        other.kill()
        other.wait()


def test_addresses():
    assert base_url("127.0.0.1", 80) == "http://127.0.0.1:80/v1"
    assert base_url("::", 80) == "http://[::1]:80/v1"
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80/v1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            with pytest.raises(LongEvalError, match=f"--port {port}: .*{host}"):
                check_address(host, port)
    check_address("127.0.0.1", port)  # nothing is left there
    with pytest.raises(LongEvalError, match=r"--host 192\.0\.2\.7"):
        check_address("192.0.2.7", port)


FAMILY = """
import os, runpy, subprocess, sys, time
runpy.run_module("longeval.backends.vllm.serve", run_name="__mp_main__")
print(os.getpid(), flush=True)
depth = int(sys.argv[1])
if depth:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]])
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends no processes with their parent")
def test_processes_end_with_a_parent_that_is_killed():
    environment = os.environ | {"LONGEVAL_SERVER_PARENT": str(os.getpid())}
    top = subprocess.Popen(
        [sys.executable, "-c", FAMILY, "2", FAMILY], env=environment, stdout=subprocess.PIPE, text=True
    )
    family = [psutil.Process(int(top.stdout.readline())) for _ in range(3)]
    assert all(process.is_running() for process in family)
    top.kill()
    top.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends no processes with their parent")
def test_a_process_whose_parent_is_gone_already_ends_itself():
    environment = os.environ | {"LONGEVAL_SERVER_PARENT": str(os.getpid() + 10_000_000)}
    done = subprocess.run([sys.executable, "-c", FAMILY, "0", ""], env=environment, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL

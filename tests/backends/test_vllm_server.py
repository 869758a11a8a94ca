"""The process of `longeval serve`, with a server that is none of vLLM's: waiting, signals, ends and what they leave."""

from __future__ import annotations

import http.server
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
if mode in ("well", "deaf", "slow", "dies", "loses its engine"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(__file__ + ".child", "w") as file:
        file.write(str(child.pid))
print("log line", flush=True)
if mode == "broken":
    print("(APIServer pid=6) WARNING 01-01 [ulimit.py:1] OSError: too many files; it goes on", flush=True)
    print("(EngineCore pid=7) ERROR 01-01 [core.py:1] ValueError: no memory for the KV cache", flush=True)
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    sys.exit(1)
if mode == "refuses":
    print("entry.py: error: argument --x: invalid int value: 'two'\\n", flush=True)
    sys.exit(2)
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

signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
if mode == "dies":
    print("ValueError: of the start", flush=True)
    def die():
        time.sleep(1)
        print("KeyError: of the run", flush=True)
        os._exit(0)
    threading.Thread(target=die).start()
if mode == "loses its engine":
    def die():
        time.sleep(1)
        print("EngineDeadError: EngineCore encountered an issue. See stack trace (above).", flush=True)
        os._exit(0)
    threading.Thread(target=die).start()
if mode == "is killed":
    def die():
        time.sleep(1)
        print("ERROR ValueError: of a request that was refused", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=die).start()
if mode == "loses a worker":
    def die():
        time.sleep(1)
        print("(EngineCore pid=7) ERROR RuntimeError: Executor failed.", flush=True)
        print("EngineDeadError: EngineCore encountered an issue. See stack trace (above).", flush=True)
        os._exit(0)
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
def start(tmp_path, monkeypatch, capfd):
    """Runs such a server: exit status, what was announced and the processes that it left alive."""
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setattr(vllm_server, "_OURS", (str(tmp_path / "server.py"),))
    begun = set(psutil.Process().children(recursive=True))

    def run(mode, announce=lambda: None, *, port=None, show_log=False):
        port = port or free_port()
        announced = []

        def told():
            pid = next(child.pid for child in psutil.Process().children() if child not in begun)
            assert os.getpgid(pid) == pid  # a terminal's Ctrl-C comes to longeval alone
            announced.append(is_up(pid, "127.0.0.1", port))
            announce()

        try:
            status = vllm_server.run_server(
                [str(port), mode], dict(os.environ), name="tiny", host="127.0.0.1", port=port, show_log=show_log,
                drain_s=0, announce=told,
            )  # fmt: skip
        finally:
            child = tmp_path / "server.py.child"
            orphan = [psutil.Process(int(child.read_text()))] if child.exists() and _alive(child.read_text()) else []
            run.left = (set(psutil.Process().children(recursive=True)) - begun) | set(orphan)
            run.announced = announced
        return status

    return run


def _alive(pid):
    return psutil.pid_exists(int(pid))


def send(*numbers, every_s=0.0):
    """Signals to this process, the first at once."""

    def announce():
        os.kill(os.getpid(), numbers[0])
        for turn, number in enumerate(numbers[1:], 1):
            threading.Timer(turn * every_s, os.kill, (os.getpid(), number)).start()

    return announce


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_and_the_servers_status_is_ours(start, capfd, number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert start("well", send(number), show_log=True) == 0
    assert start.announced == [True]
    assert start.left == set()
    handed = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    err = capfd.readouterr().err
    assert f"ended by {int(handed)}" in err
    assert "log line" in err
    after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert after == before


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


def test_ctrl_c_and_sigterm_end_a_start_at_once(start):
    for number, status in ((signal.SIGINT, None), (signal.SIGTERM, 143)):
        threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
        begin = time.monotonic()
        if status is None:
            with pytest.raises(KeyboardInterrupt):
                start("slow")
        else:
            assert start("slow") == status
        assert time.monotonic() - begin < 10
        assert start.announced == []
        assert start.left == set()


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
        ("broken", "didn't start: ValueError: no memory for the KV cache. Give it more room:"),
        ("refuses", "it ended with status 2: entry.py: error: argument --x: invalid int value: 'two'. -v shows"),
        ("killed", "it was killed (SIGKILL), perhaps because the machine ran out of memory. Let it take less:"),
    ],
)
def test_a_server_that_doesnt_start(start, mode, said):
    with pytest.raises(LongEvalError, match="--model tiny: vLLM's server didn't start") as caught:
        start(mode)
    assert said in str(caught.value)
    assert "--backend" not in str(caught.value)
    assert start.announced == []


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dies", "KeyError: of the run"),
        ("loses its engine", "its engine ended without a word (killed, perhaps"),
        ("loses a worker", "its engine ended without a word (killed, perhaps"),
        ("is killed", "it was killed (SIGKILL), perhaps"),
    ],
)
def test_a_server_that_dies_is_told_with_the_reason(start, caplog, mode, said):
    assert start(mode) == 1  # though it says 0 itself
    assert start.announced == [True]
    assert start.left == set()
    assert f"ended by itself: {said}" in caplog.text


class Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_another_server_at_the_port_isnt_ours():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Well) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.server_address[1]
        assert is_up(os.getpid(), "127.0.0.1", port)
        assert not is_up(os.getpid() + 10_000_000, "127.0.0.1", port)
        server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            assert not is_up(server.pid, "127.0.0.1", port)
        finally:
            server.kill()
            server.wait()
            other.shutdown()


def test_addresses():
    assert base_url("127.0.0.1", 80) == "http://127.0.0.1:80/v1"
    assert base_url("::", 80) == "http://[::1]:80/v1"
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80/v1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            with pytest.raises(LongEvalError, match=f"--port {port}: can't be listened on at {host}"):
                check_address(host, port)
    check_address("127.0.0.1", port)  # nothing is left there
    with pytest.raises(LongEvalError, match=r"--host 192\.0\.2\.7: no address of this machine"):
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

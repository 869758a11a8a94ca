"""Several requests at once: no more than may be, none made early, and nothing left when one fails or Ctrl-C comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from longeval.backends.openai.client import ServerError, in_flight
from longeval.errors import LongEvalError


def test_bodies_are_taken_only_when_they_can_be_sent():
    taken, gate = [], threading.Event()

    def bodies():
        for number in range(10):
            taken.append(number)
            yield number, {}

    def post(body, stop):
        gate.wait(5)
        return body

    running = in_flight(post, bodies(), 3)
    threading.Timer(0.1, gate.set).start()
    first, _ = next(running)
    assert taken == [0, 1, 2]
    assert sorted([first, *(key for key, _ in running)]) == list(range(10))


def request_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("longeval-request-")}


def test_the_first_error_ends_it_and_no_thread_stays():
    sent, before = [], request_threads()  # another test's may still wait for an answer

    def post(body, stop):
        sent.append(body["n"])
        if body["n"] == 2:
            raise ServerError("gone")
        stop.wait(20)
        return body

    with pytest.raises(ServerError, match="gone"):
        list(in_flight(post, ((n, {"n": n}) for n in range(50)), 4))
    until = time.monotonic() + 4
    while (at_work := request_threads() - before) and time.monotonic() < until:
        time.sleep(0.02)
    assert not at_work
    assert 2 in sent and set(sent) <= {0, 1, 2, 3}


def test_an_error_while_bodies_are_made_is_raised():
    def bodies():
        yield 0, {}
        raise LongEvalError("no such text")

    with pytest.raises(LongEvalError, match="no such text"):
        list(in_flight(lambda body, stop: body, bodies(), 2))


INTERRUPTED = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from longeval.backends.openai.client import Client
from longeval.backends.openai.client import in_flight

client = Client(sys.argv[1], None, timeout_s=60, connections=4)
post = lambda body, stop: client.post("completions", body, stop)
for _ in in_flight(post, ((n, {"n": n}) for n in range(9)), 4):
    print("answered", flush=True)
"""


def test_ctrl_c_waits_for_no_answer(server):
    server.next_answers = [(200, {}, "{}"), *["hang"] * 8]
    command = [sys.executable, "-c", INTERRUPTED, server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "answered\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)  # the answers would take a minute
        assert errors.rstrip().endswith("KeyboardInterrupt") and process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.wait()

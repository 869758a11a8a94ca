"""A server that is gone, busy, slow, of another kind or behind a key: what is tried again, and what is said."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from completions_server import CompletionsServer, make_tokenizer

from longeval.backends.openai import client as openai_client
from longeval.backends.openai.backend import OpenAIBackend
from longeval.backends.openai.client import Client, RefusedError, ServerError
from longeval.errors import LongEvalError

KEY = "sk-0123456789abcdef"
BODY = {"model": "bigram", "prompt": [3, 4], "max_tokens": 1, "temperature": 0}
TOKENIZER = make_tokenizer()


@pytest.fixture
def server():
    server = CompletionsServer()
    yield server
    server.close()


class Waits:
    """Stands for the event that ends waiting; nobody really waits."""

    def __init__(self):
        self.seconds = []

    def wait(self, seconds):
        self.seconds.append(seconds)

    def is_set(self):
        return False


def client(server, key=None, timeout_s=5.0):
    return Client(server.url, key, timeout_s=timeout_s, connections=2)


def connect(url, **settings):
    return OpenAIBackend(base_url=url, tokenizer=TOKENIZER, **settings)


def problem(url, **settings):
    with pytest.raises(LongEvalError) as caught:
        connect(url, **settings)
    assert "\n" not in str(caught.value)
    return caught.value


def unused_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


# The first contact.


def test_a_server_that_is_not_there_is_told_at_once():
    url = f"http://127.0.0.1:{unused_port()}/v1"
    started = time.monotonic()
    error = problem(url)
    assert time.monotonic() - started < 2
    assert error.problem.startswith(f"--base-url {url}: can't be reached (") and "refused" in error.problem
    assert error.remedy == "Is the server up, and is this its address, /v1 included?"


def test_a_server_that_does_not_answer_is_told_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        assert problem(url, timeout_s=0.2).problem == f"--base-url: {url}: no answer within 0.2 s"


def test_a_wrong_key_and_a_missing_one(server):
    server.key = KEY
    error = problem(server.url, api_key=KEY[:-1])
    assert error.problem == f"LONGEVAL_API_KEY: the server at {server.url} refuses the key (401)"
    assert "LONGEVAL_API_KEY" in error.remedy and KEY[:-1] not in str(error)
    for none in (None, "", " "):
        assert problem(server.url, api_key=none).problem == (
            f"--base-url {server.url}: the server wants a key (401), none is given"
        )
    assert connect(server.url, api_key=f"{KEY}\n").served_model == "bigram"
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a b", "sk-ä"])
def test_a_key_that_no_header_holds_is_not_shown(server, key):
    error = problem(server.url, api_key=key)
    assert error.problem.startswith("LONGEVAL_API_KEY: ") and key not in str(error) and "sk-" not in str(error)
    assert server.paths == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000/v1", "not an address"),
        ("ftp://127.0.0.1/v1", "not an address of http or https"),
        ("", "not an address"),
        ("http://", "not an address"),
        ("//h", "not an address of http or https"),
        ("http://[::1", "not an address"),
        ("http://[x]/v1", "not an address"),
        ("http://h:99999/v1", "not an address"),
        ("http://host:port/v1", "--base-url http://host:port/v1: not an address"),
        ("http://me:secret@host:port/v1", "--base-url: not an address"),
        ("http://me:secret@127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1: has a name or password in it"),
        ("http://127.0.0.1:8000/v1?key=secret", "http://127.0.0.1:8000/v1: has a query in it"),
        ("http://127.0.0.1:8000/v1#secret", "http://127.0.0.1:8000/v1: has a fragment in it"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(url, said):
    error = problem(url)
    assert error.problem.startswith("--base-url") and said in error.problem and "secret" not in str(error)


def test_a_slash_at_the_end_changes_nothing(server):
    assert connect(f"{server.url}/").device == f"server 127.0.0.1:{server.port}"
    assert server.paths == ["/v1/models"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, "<html>hello</html>"), "answers with something that isn't JSON"),
        ((200, {}, "[1]"), "lists no models as OpenAI's interface does"),
        ((200, {}, '{"data": [{"name": "m"}]}'), "lists no models as OpenAI's interface does"),
        ((404, {}, '{"detail": "Not Found"}'), "refused a request (404): Not Found"),
        ((307, {"Location": "http://127.0.0.1:1/"}, ""), "refused a request (307): Temporary Redirect"),
        ((500, {"Content-Type": "text/html"}, "<p>oh</p>"), "500: Internal Server Error"),
        ((429, {}, '{"error": {"message": "later"}}'), "429: later"),
    ],
)
def test_servers_of_another_kind(server, reply, said):
    server._proper = lambda handler, body: reply
    error = problem(server.url)
    assert error.problem.startswith("--base-url") and server.url in error.problem and said in error.problem
    assert error.remedy
    assert len(server.paths) == 1


def test_which_model_is_meant(server):
    server.models = [{"id": "base", "max_model_len": 10}, {"id": "tuned"}]
    assert problem(server.url).problem == f"--base-url {server.url}: has several models (base, tuned)"
    assert problem(server.url).remedy == "Name one with --served-model."
    error = problem(server.url, model="tunde")
    assert error.problem == f"--served-model tunde: not at {server.url}"
    assert error.remedy == "Did you mean tuned? Known: base, tuned."
    assert (connect(server.url, model="base").max_length, connect(server.url, model="tuned").max_length) == (10, None)
    server.models = []
    assert problem(server.url).problem == f"--base-url {server.url}: has no model"


def test_no_proxy_stands_before_this_machine(server, monkeypatch):
    dead = f"http://127.0.0.1:{unused_port()}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        assert connect(f"http://{host}:{server.port}/v1").served_model == "bigram"
    # Another machine is asked through the proxy, as the environment says.
    assert "can't be reached" in problem("http://model.invalid/v1").problem


# A run under way.

BUSY = (429, {"Retry-After": "7"}, '{"error": {"message": "slow down"}}')
DOWN = (503, {}, "loading")


@pytest.mark.parametrize(
    ("trouble", "waits"),
    [
        ([(500, {}, "oh")], [0.5]),
        ([DOWN, (502, {}, ""), (504, {}, "")], [0.5, 1.0, 2.0]),
        (["drop", "drop"], [0.5, 1.0]),
        ([BUSY], [7.0]),
        ([DOWN, BUSY, DOWN, DOWN, DOWN, DOWN], [0.5, 7.0, 2.0, 4.0, 8.0, 8.0]),
        ([], []),
    ],
)
def test_what_passes_is_tried_again(server, trouble, waits):
    server.next_answers = list(trouble)
    waited = Waits()
    answer = client(server).post("completions", BODY, waited)
    assert answer["choices"][0]["text"] == "brown"
    assert waited.seconds == waits
    assert len(server.posts) == len(trouble) + 1


def test_retry_after_may_be_a_date(server):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    server.next_answers = [(429, {"Retry-After": text}, "") for text in (moment, past, "soon")]
    waited = Waits()
    client(server).post("completions", BODY, waited)
    assert waited.seconds[0] == pytest.approx(19.5, abs=1)
    assert waited.seconds[1:] == [0.0, 2.0]


def test_a_wait_beyond_patience_is_an_error_at_once(server):
    server.next_answers = [(429, {"Retry-After": "61"}, '{"error": {"message": "quota"}}')]
    waited = Waits()
    with pytest.raises(ServerError) as caught:
        client(server).post("completions", BODY, waited)
    assert str(caught.value) == f"{server.url}: 429: quota, which asks to wait 61 s; given up after 1 try in 0 s"
    assert waited.seconds == []


def test_patience_ends(server, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(openai_client.time, "monotonic", lambda: now[0])

    class Clock(Waits):
        def wait(self, seconds):
            super().wait(seconds)
            now[0] += seconds

    server.next_answers = [DOWN] * 20
    waited = Clock()
    here = client(server)
    with pytest.raises(ServerError) as caught:
        here.post("completions", BODY, waited)
    assert waited.seconds == [0.5, 1.0, 2.0, 4.0, *[8.0] * 6]
    assert sum(waited.seconds) <= openai_client.PATIENCE_S == 60.0
    assert str(caught.value) == f"{server.url}: 503: loading; given up after 11 tries in 56 s"
    # The next cell's requests don't wait another minute each; once the server is back, patience is too.
    waited = Clock()
    with pytest.raises(ServerError, match=r"given up after 1 try in 0 s"):
        here.post("completions", BODY, waited)
    assert waited.seconds == []
    server.next_answers = []
    here.post("completions", BODY)
    server.next_answers = [DOWN]
    here.post("completions", BODY, waited)
    assert waited.seconds == [0.5]


def test_a_server_that_went_away(server, monkeypatch):
    monkeypatch.setattr(openai_client, "PATIENCE_S", 0.0)
    here = client(server)
    server.next_answers = ["drop"]
    with pytest.raises(ServerError, match=r"/v1: lost the connection \(.+\); given up after 1 try in 0 s$"):
        here.post("completions", BODY)
    server.close()
    with pytest.raises(ServerError, match=r"/v1: (can't be reached|lost the connection) \(.+\); given up after 1 try"):
        here.post("completions", BODY)


def test_a_request_that_hangs_is_given_up_once(server):
    server.next_answers = ["hang"]
    started = time.monotonic()
    with pytest.raises(ServerError) as caught:
        client(server, timeout_s=0.3).post("completions", BODY)
    assert str(caught.value) == f"{server.url}: no answer within 0.3 s"
    assert time.monotonic() - started < 2 and len(server.posts) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_request_is_not_tried_again(server, status):
    server.next_answers = [(status, {}, '{"object": "error", "message": "no\\nway"}')]
    with pytest.raises(RefusedError) as caught:
        client(server).post("completions", BODY, Waits())
    assert str(caught.value) == f"{server.url} refused a request ({status}): no way"
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    ("text", "said"), [("{not", "isn't JSON"), ("", "isn't JSON"), ("[]", "JSON that is no object")]
)
def test_garbage_is_an_error(server, text, said):
    server.next_answers = [(200, {}, text)]
    with pytest.raises(ServerError, match=said):
        client(server).post("completions", BODY, Waits())
    assert len(server.posts) == 1


def test_an_answer_without_choices_is_an_error(server):
    backend = connect(server.url)
    server.next_answers = [(200, {}, '{"choices": []}')] * 4
    with pytest.raises(LongEvalError, match="the server's answer has no choices"):
        backend._dialect.form()


def test_the_key_is_shown_nowhere(server, caplog):
    caplog.set_level("DEBUG")
    server.key = KEY
    backend = connect(server.url, api_key=KEY)
    here = backend._client
    for status in (400, 500):
        server.next_answers = [(status, {}, json.dumps({"error": {"message": f"bad {KEY}!"}}))]
        with pytest.raises(ServerError, match=r"bad \*\*\*!") as caught:
            here._lost = True
            here.post("completions", BODY, Waits())
        assert KEY not in str(caught.value) and KEY not in repr(caught.value)
    here.post("completions", BODY)
    server.key = "another"
    with pytest.raises(LongEvalError, match=r"refuses the key \(401\)") as caught:
        here.post("completions", BODY)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text and KEY not in repr(vars(backend))


def test_long_errors_are_cut_to_one_line(server):
    server.next_answers = [(400, {"Content-Type": "text/plain"}, "word\n" * 200)]
    with pytest.raises(RefusedError) as caught:
        client(server).post("completions", BODY)
    assert len(caught.value.said) == 301 and "\n" not in caught.value.said


# A server that means harm.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def often(connection, piece, wait_s=0.0):
    while True:
        connection.sendall(piece)
        time.sleep(wait_s)


def packed_blanks(times):
    content = b" " * 2**23
    for _ in range(times):
        content = gzip.compress(content, 1)
    return HEAD + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (b"gzip," * times, len(content)) + content


def whole(body, status=b"200 OK", *headers):
    lines = (b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body)
    return lambda connection: connection.sendall(b"\r\n".join(lines))


def _length(asked):
    """Bytes of a request whose headers are there."""
    head = asked.partition(b"\r\n\r\n")[0]
    found = re.search(rb"(?i)content-length: (\d+)", head)
    return len(head) + 4 + (int(found[1]) if found else 0)


@pytest.fixture
def hostile():
    """Starts servers that answer every request by a function of the connection; returns their addresses."""
    listening = []

    def serve(answer):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def handle(connection):
            with contextlib.suppress(OSError), connection:
                asked = b""  # all of it: a connection that is closed with unread bytes is reset
                while b"\r\n\r\n" not in asked or len(asked) < _length(asked):
                    if not (piece := connection.recv(65536)):
                        break
                    asked += piece
                answer(connection)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"

    yield serve
    for server in listening:
        server.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda c: (c.sendall(HEAD + b"Content-Length: 99999\r\n\r\n"), often(c, b" ", 0.02)),
            "no answer within 0.4 s",
        ),
        (lambda c: (c.sendall(HEAD + b"X: "), often(c, b"a", 0.02)), "no answer within 0.4 s"),
        (lambda c: often(c, b"HTTP/1.1 100 Continue\r\n\r\n", 0.02), "no answer within 0.4 s"),
        (lambda c: (c.sendall(HEAD), often(c, b"X: " + b"a" * 999 + b"\r\n")), "lost the connection"),
        (lambda c: (c.sendall(HEAD + b"\r\n"), often(c, b" " * 65536)), "answers with more than 1 MiB"),
        (lambda c: c.sendall(packed_blanks(1)), "answers with more than 1 MiB"),
        (lambda c: c.sendall(packed_blanks(2)), "answers with more than 1 MiB"),
        (whole(b"hello", b"200 OK", b"Content-Encoding: gzip"), "answers unreadably"),
        (whole(b"[" * 100_000), "JSON nested too deeply"),
        (whole(b'{"a": ' + b"1" * 9999 + b"}"), "isn't JSON"),
        (whole(b'{"error":' + b"[" * 900 + b"]" * 900 + b"}", b"400 no"), "refused a request (400)"),
        (whole(b"no", b"400 no", b"Content-Type: text/plain; charset=hex"), "refused a request (400): no"),
        (whole(b"", b"400 " + b"word " * 9999), "refused a request (400): word"),
        (whole(b"no", b"429 no", b"Retry-After: " + b"9" * 5000), "429: no"),
        (whole(b"no", b"429 no", b"Retry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999"), "429: no"),
        (whole(json.dumps({"data": [{"id": "x" * 10**5}]}).encode()), "lists no models as OpenAI's interface does"),
        (whole(json.dumps({"data": [{"id": f"m{n}"} for n in range(9999)]}).encode()), "and 9599 more"),
    ],
)
def test_whatever_a_server_sends_ends_in_one_message(hostile, monkeypatch, answer, said):
    monkeypatch.setattr(openai_client, "MOST_BYTES", 2**20)
    started = time.monotonic()
    message = str(problem(hostile(answer), timeout_s=0.4))
    assert said in message and len(message) < 5000
    assert time.monotonic() - started < 10


def test_requests_go_on_beside_one_that_was_given_up(hostile):
    drips = hostile(lambda c: (c.sendall(HEAD + b"X: "), often(c, b"a", 0.02)))
    here = Client(drips, None, timeout_s=0.2, connections=1)
    for _ in range(3):
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            here.post("completions", BODY, Waits())


def test_long_prompts_may_have_long_answers(hostile, monkeypatch):
    monkeypatch.setattr(openai_client, "MOST_BYTES", 2**10)
    here = Client(hostile(whole(json.dumps({"a": "x" * 200_000}).encode())), None, timeout_s=5.0, connections=1)
    assert here.post("completions", {**BODY, "prompt": [3] * 100})["a"] == "x" * 200_000
    with pytest.raises(ServerError, match="more than"):
        here.post("completions", {**BODY, "prompt": [3] * 90})


def test_the_key_does_not_travel_with_a_redirect(hostile):
    seen = []
    other = hostile(lambda c: seen.append(c))
    away = hostile(whole(b"", b"307 Elsewhere", b"Location: " + other.encode()))
    with pytest.raises(RefusedError, match=r"\(307\)"):
        Client(away, KEY, timeout_s=5.0, connections=1).post("completions", BODY, Waits())
    assert not seen

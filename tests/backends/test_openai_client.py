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
from completions_server import make_tokenizer

from longeval.backends.openai import client as openai_client
from longeval.backends.openai.backend import OpenAIBackend
from longeval.backends.openai.client import Client, RefusedError, ServerError
from longeval.errors import LongEvalError

KEY = "sk-0123456789abcdef"
BODY = {"model": "bigram", "prompt": [3, 4], "max_tokens": 1, "temperature": 0}
TOKENIZER = make_tokenizer()


class Waits:
    """Stands for the event that ends waiting; nobody really waits, but its clock goes on."""

    def __init__(self):
        self.seconds = []

    def wait(self, seconds):
        self.seconds.append(seconds)

    def is_set(self):
        return False

    def monotonic(self):
        return 100.0 + sum(self.seconds)


def client(url, key=None, timeout_s=5.0):
    return Client(url, key, timeout_s=timeout_s, connections=1)


def connect(url, **settings):
    return OpenAIBackend(base_url=url, tokenizer=TOKENIZER, **settings)


def problem(url, **settings):
    with pytest.raises(LongEvalError) as caught:
        connect(url, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unused_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


# The first contact.


def test_a_server_that_is_not_there_or_does_not_answer_is_told_at_once():
    started = time.monotonic()
    url = f"http://127.0.0.1:{unused_port()}/v1"
    assert problem(url).startswith(f"--base-url {url}: can't be reached (")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        assert "0.2 s" in problem(url, timeout_s=0.2)
    assert time.monotonic() - started < 2


def test_a_wrong_key_and_a_missing_one(server):
    server.key = KEY
    wrong = problem(server.url, api_key=KEY[:-1])
    assert wrong.startswith("LONGEVAL_API_KEY: ") and "401" in wrong and KEY[:-1] not in wrong
    for none in (None, "", " "):
        missing = problem(server.url, api_key=none)
        assert missing.startswith(f"--base-url {server.url}: ") and "LONGEVAL_API_KEY" in missing
    assert connect(server.url, api_key=f"{KEY}\n").served_model == "bigram"
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a b", "sk-ä"])
def test_a_key_that_no_header_holds_is_not_shown(server, key):
    message = problem(server.url, api_key=key)
    assert message.startswith("LONGEVAL_API_KEY: ") and "sk-" not in message
    assert server.paths == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", " : not an address"),
        ("127.0.0.1:8000/v1", " 127.0.0.1:8000/v1: not an address"),
        ("ftp://127.0.0.1/v1", " ftp://127.0.0.1/v1: not an address of http"),
        ("http://[::1", " http://[::1: not an address"),
        ("http://h:99999/v1", " http://h:99999/v1: not an address"),
        ("http://me:secret@host:port/v1", ": not an address"),
        ("http://me:secret@127.0.0.1:8000/v1", " http://127.0.0.1:8000/v1: has a name or password"),
        ("http://127.0.0.1:8000/v1?key=secret", " http://127.0.0.1:8000/v1: has a query"),
        ("http://127.0.0.1:8000/v1#secret", " http://127.0.0.1:8000/v1: has a fragment"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(url, shown):
    message = problem(url)
    assert message.startswith(f"--base-url{shown}") and "secret" not in message


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, "<html>hello</html>"), "JSON"),
        ((200, {}, "[1]"), "lists no models"),
        ((200, {}, '{"data": [{"name": "m"}]}'), "lists no models"),
        ((404, {}, '{"detail": "Not Found"}'), "(404): Not Found"),
        ((307, {"Location": "http://127.0.0.1:1/"}, ""), "(307): Temporary Redirect"),
        ((500, {"Content-Type": "text/html"}, "<p>oh</p>"), "500: Internal Server Error"),
        ((429, {}, '{"error": {"message": "later"}}'), "429: later"),
    ],
)
def test_servers_of_another_kind(server, reply, said):
    server._proper = lambda handler, body: reply
    message = problem(server.url)
    assert message.startswith("--base-url") and server.url in message and said in message
    assert len(server.paths) == 1


def test_which_model_is_meant(server):
    server.models = [{"id": "base", "max_model_len": 10}, {"id": "tuned"}]
    several = problem(server.url)
    assert "(base, tuned)" in several and "--served-model" in several
    unknown = problem(server.url, model="tunde")
    assert unknown.startswith("--served-model tunde: ") and "Did you mean tuned?" in unknown
    assert (connect(server.url, model="base").max_length, connect(server.url, model="tuned").max_length) == (10, None)
    server.models = []
    assert "has no model" in problem(server.url)


def test_no_proxy_stands_before_this_machine(server, monkeypatch):
    dead = f"http://127.0.0.1:{unused_port()}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        assert connect(f"http://{host}:{server.port}/v1").served_model == "bigram"
    # Another machine is asked through the proxy, as the environment says.
    assert "can't be reached" in problem("http://model.invalid/v1")


# A run under way.

BUSY = (429, {"Retry-After": "7"}, '{"error": {"message": "slow down"}}')
DOWN = (503, {}, "loading")


@pytest.mark.parametrize(
    ("trouble", "waits"),
    [
        ([], []),
        ([(500, {}, "oh")], [0.5]),
        ([DOWN, (502, {}, ""), (504, {}, "")], [0.5, 1.0, 2.0]),
        (["drop", "drop"], [0.5, 1.0]),
        ([DOWN, BUSY, DOWN, DOWN, DOWN, DOWN], [0.5, 7.0, 2.0, 4.0, 8.0, 8.0]),
    ],
)
def test_what_passes_is_tried_again(server, trouble, waits):
    server.next_answers = list(trouble)
    waited = Waits()
    answer = client(server.url).post("completions", BODY, waited)
    assert answer["choices"][0]["text"] == "brown"
    assert waited.seconds == waits
    assert len(server.posts) == len(trouble) + 1


def test_retry_after_may_be_a_date(server):
    moments = [datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (20, -20)]
    dates = [format_datetime(moment, usegmt=True) for moment in moments]
    server.next_answers = [(429, {"Retry-After": text}, "") for text in (*dates, "soon")]
    waited = Waits()
    client(server.url).post("completions", BODY, waited)
    assert waited.seconds == [pytest.approx(19.5, abs=1), 0.0, 2.0]


def test_a_wait_beyond_patience_is_an_error_at_once(server):
    server.next_answers = [(429, {"Retry-After": "61"}, '{"error": {"message": "quota"}}')]
    waited = Waits()
    with pytest.raises(ServerError, match=r"429: quota.* 61 s.* 1 try in 0 s"):
        client(server.url).post("completions", BODY, waited)
    assert waited.seconds == []


def test_patience_ends(server, monkeypatch):
    waited, here = Waits(), client(server.url)
    monkeypatch.setattr(openai_client.time, "monotonic", waited.monotonic)
    server.next_answers = [DOWN] * 20
    with pytest.raises(ServerError, match=r"503: loading.* 11 tries in 56 s"):
        here.post("completions", BODY, waited)
    assert waited.seconds == [0.5, 1.0, 2.0, 4.0, *[8.0] * 6]
    # The next cell's requests don't wait another minute each; once the server is back, patience is too.
    again = Waits()
    with pytest.raises(ServerError, match="1 try in 0 s"):
        here.post("completions", BODY, again)
    assert again.seconds == []
    server.next_answers = []
    here.post("completions", BODY)
    server.next_answers = [DOWN]
    here.post("completions", BODY, again)
    assert again.seconds == [0.5]


def test_a_server_that_went_away(server, monkeypatch):
    monkeypatch.setattr(openai_client, "PATIENCE_S", 0.0)
    here = client(server.url)
    server.next_answers = ["drop"]
    with pytest.raises(ServerError, match=r"lost the connection.* 1 try"):
        here.post("completions", BODY)
    server.close()
    with pytest.raises(ServerError, match=r"(can't be reached|lost the connection).* 1 try"):
        here.post("completions", BODY)


def test_a_request_that_hangs_is_given_up_once(server):
    server.next_answers = ["hang"]
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"0\.3 s"):
        client(server.url, timeout_s=0.3).post("completions", BODY)
    assert time.monotonic() - started < 2 and len(server.posts) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_request_is_not_tried_again(server, status):
    server.next_answers = [(status, {}, '{"object": "error", "message": "no\\nway"}')]
    with pytest.raises(RefusedError, match=rf"\({status}\): no way"):
        client(server.url).post("completions", BODY, Waits())
    assert len(server.posts) == 1


def test_the_key_is_shown_nowhere(server, caplog):
    caplog.set_level("DEBUG")
    server.key = KEY
    backend = connect(server.url, api_key=KEY)
    here = backend._client
    for status in (400, 500):
        server.next_answers = [(status, {}, json.dumps({"error": {"message": f"bad {KEY}!"}}))]
        here._lost = True
        with pytest.raises(ServerError, match=r"bad \*\*\*!") as caught:
            here.post("completions", BODY, Waits())
        assert KEY not in repr(caught.value)
    here.post("completions", BODY)
    server.key = "another"
    with pytest.raises(LongEvalError, match=r"LONGEVAL_API_KEY.*401") as caught:
        here.post("completions", BODY)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text and KEY not in repr(vars(backend))


# A server that means harm.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def often(connection, piece, wait_s=0.0):
    while True:
        connection.sendall(piece)
        time.sleep(wait_s)


def drip(head, piece):
    """Sends a piece from time to time, without an end."""
    return lambda connection: (connection.sendall(head), often(connection, piece, 0.02))


def flood(head, piece):
    return lambda connection: (connection.sendall(head), often(connection, piece))


def packed_blanks(times):
    content = b" " * 2**23
    for _ in range(times):
        content = gzip.compress(content, 1)
    return whole(content, b"200 OK", b"Content-Encoding: " + b"gzip," * times)


def whole(body, status=b"200 OK", *headers):
    lines = (b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body)
    return lambda connection: connection.sendall(b"\r\n".join(lines))


def whole_request(asked):
    """Whether these bytes are all of a request."""
    head, end, body = asked.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return end and len(body) >= (int(length[1]) if length else 0)


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
                while not whole_request(asked) and (piece := connection.recv(65536)):
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
        (drip(HEAD + b"Content-Length: 99999\r\n\r\n", b" "), "0.4 s"),
        (drip(HEAD + b"X: ", b"a"), "0.4 s"),
        (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "0.4 s"),
        (flood(HEAD, b"X: " + b"a" * 999 + b"\r\n"), "lost the connection"),
        (flood(HEAD + b"\r\n", b" " * 65536), "1 MiB"),
        (packed_blanks(1), "1 MiB"),
        (packed_blanks(2), "1 MiB"),
        (whole(b"hello", b"200 OK", b"Content-Encoding: gzip"), "unreadably"),
        (whole(b"[" * 100_000), "nested"),
        (whole(b'{"text": "\xed\xa0\x80"}'), "isn't JSON"),  # half of a surrogate pair, as bytes
        (whole(b'{"a": ' + b"1" * 9999 + b"}"), "JSON"),
        (whole(b'{"error":' + b"[" * 900 + b"]" * 900 + b"}", b"400 no"), "(400)"),
        (whole(b"no", b"400 no", b"Content-Type: text/plain; charset=hex"), "(400): no"),
        (whole(b"word\n" * 9999, b"400 no", b"Content-Type: text/plain"), "(400): word word"),
        (whole(b"", b"400 " + b"word " * 9999), "(400): word"),
        (whole(b"no", b"429 no", b"Retry-After: " + b"9" * 5000), "429: no"),
        (whole(b"no", b"429 no", b"Retry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999"), "429: no"),
        (whole(json.dumps({"data": [{"id": "x" * 10**5}]}).encode()), "lists no models"),
        (whole(json.dumps({"data": [{"id": f"m{n}"} for n in range(9999)]}).encode()), "and 9599 more"),
    ],
)
def test_whatever_a_server_sends_ends_in_one_message(hostile, monkeypatch, answer, said):
    monkeypatch.setattr(openai_client, "MOST_BYTES", 2**20)
    started = time.monotonic()
    message = problem(hostile(answer), timeout_s=0.4)
    assert said in message and len(message) < 5000
    assert time.monotonic() - started < 10


def test_requests_go_on_beside_one_that_was_given_up(hostile):
    here = client(hostile(drip(HEAD + b"X: ", b"a")), timeout_s=0.2)
    for _ in range(3):
        with pytest.raises(ServerError, match=r"0\.2 s"):
            here.post("completions", BODY, Waits())


def test_long_prompts_may_have_long_answers(hostile, monkeypatch):
    monkeypatch.setattr(openai_client, "MOST_BYTES", 2**10)
    here = client(hostile(whole(json.dumps({"a": "x" * 200_000}).encode())))
    assert here.post("completions", {**BODY, "prompt": [3] * 100})["a"] == "x" * 200_000
    with pytest.raises(ServerError, match="more than"):
        here.post("completions", {**BODY, "prompt": [3] * 90})


def test_the_key_does_not_travel_with_a_redirect(hostile):
    seen = []
    other = hostile(seen.append)
    away = hostile(whole(b"", b"307 Elsewhere", b"Location: " + other.encode()))
    with pytest.raises(RefusedError, match=r"\(307\)"):
        client(away, KEY).post("completions", BODY, Waits())
    assert not seen

"""HTTP to an OpenAI-compatible server: its address, the key, patience with what passes, and errors in one line.

What a server sends is bounded, in bytes after unpacking and in seconds, headers and body together: none can hold a run
or fill the memory. The key goes into one header and nowhere else: what a server says is shown without it, in case it
repeats it.
Interface: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import ipaddress
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar, cast

import httpx2

from longeval.errors import LongEvalError

# The key of an OpenAI-compatible server: where it is read from, and what one may consist of.

KEY_VARIABLE = "LONGEVAL_API_KEY"
"""Where the key is read from: on a command line, in a spec or in a record somebody could read it."""


def own_key() -> str | None:
    """The key that the environment holds, fit for a header; None for none.

    Raises:
        LongEvalError: It can't be sent. It is not shown, since it may be nearly right.
    """
    return checked_key(os.environ.get(KEY_VARIABLE))


def checked_key(key: str | None) -> str | None:
    """See `own_key`."""
    stripped = (key or "").strip()
    if not (stripped.isascii() and stripped.isprintable() and " " not in stripped):
        raise LongEvalError(
            f"{KEY_VARIABLE}: has characters in it that no header can hold",
            "Use ASCII letters and digits, without blanks and line breaks.",
        )
    return stripped or None


PATIENCE_S = 60.0
"""How long one request is tried again after its first failure, all waits and tries together."""
FIRST_WAIT_S = 0.5
"""Before the second try; doubled from try to try."""
LONGEST_WAIT_S = 8.0
CONNECT_S = 10.0
"""How long a connection may take."""
ANSWER_S = 600.0
"""How long an answer may take: a long prompt on a busy server."""
LOOK_S = 30.0
"""How long a GET may take."""
LOOK_UP_S = 0.5
"""How often who waits looks up: a Ctrl-C just before a wait doesn't end it."""
MOST_SAID = 300
"""Characters of what a server says that are shown."""
MOST_BYTES = 16 * 2**20
"""Of any answer, unpacked; a list of hundreds of models has 1 MiB."""
MOST_BYTES_TOKEN = 2048
"""And for each token that was sent or asked for; vLLM's `prompt_logprobs` take 200."""

T = TypeVar("T")

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be gone at the next try."""


class ServerError(Exception):
    """The server failed while a run was under way; one line."""


class RefusedError(ServerError):
    """The server refused a request as such: asking again is no use.

    Args:
        status: HTTP status.
        said: What the server says, in one line.
        where: The server.
    """

    def __init__(self, status: int, said: str, where: str) -> None:
        super().__init__(f"{where} refused a request ({status}): {said}")
        self.status = status
        self.said = said


class _PassingError(Exception):
    """What may be gone at the next try.

    Args:
        reason: What happened.
        wait_s: How long the server asks to wait, if it says.
        lost: Whether the server may be gone, rather than busy.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, lost: bool) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.lost = lost


class _Answer(NamedTuple):
    """What a server sent, whole."""

    status: int
    """Of HTTP."""
    reason: str
    """The status in the server's words."""
    headers: Mapping[str, str]
    """Names in any case."""
    content: bytes
    """The body, unpacked."""


class Client:
    """A server under one address; may be used from several threads.

    Args:
        base_url: Address up to the version: `http://127.0.0.1:8000/v1`.
        api_key: Sent as a bearer token; None or empty: none.
        timeout_s: How long one answer may take.
        connections: Most requests at once.

    Raises:
        LongEvalError: The address or the key can't be used.
    """

    def __init__(self, base_url: str, api_key: str | None, *, timeout_s: float, connections: int) -> None:
        url = _checked(base_url)
        self.host = url.netloc.decode("ascii")
        """Host and port."""
        self.shown = str(url).rstrip("/")
        """The address, for messages."""
        self._key = checked_key(api_key)
        self._timeout_s = timeout_s
        self._lost = False
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # No limit on all of them: one that was given up is held until the server ends it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
            # A proxy of the environment can't reach this machine's own addresses, and would see the key.
            trust_env=not _is_loopback(url.host),
            verify=url.scheme == "https",  # reading the certificates takes a while
            follow_redirects=False,  # the key goes nowhere else
        )

    def get(self, path: str) -> Any:
        """One GET without a second try: the JSON of its answer.

        Raises:
            LongEvalError: The server can't be reached or refuses the key.
            ServerError: Anything else.
        """
        try:
            return self._once("GET", path, None)
        except _PassingError as error:
            if not error.lost:
                raise ServerError(f"{self.shown}: {error}") from None
            raise LongEvalError(
                f"--base-url {self.shown}: {error}", "Is the server up, and is this its address, /v1 included?"
            ) from None

    def post(self, path: str, body: dict[str, Any], stop: threading.Event | None = None) -> dict[str, Any]:
        """One POST, tried again while what goes wrong may pass: the JSON object of its answer.

        Args:
            path: Below the base address.
            body: What is sent, as JSON.
            stop: Set by another thread: no further try.

        Raises:
            LongEvalError: The server refuses the key.
            RefusedError: It refuses the request.
            ServerError: It fails for longer than `PATIENCE_S`, takes longer than the time limit, or answers nonsense.
        """
        stop = stop or threading.Event()
        failed_at, tries, wait_s = None, 0, FIRST_WAIT_S
        while True:
            tries += 1
            try:
                answer = self._once("POST", path, body)
            except _PassingError as error:
                failed_at = failed_at or time.monotonic()
                spent_s = time.monotonic() - failed_at
                # A server that was given up is asked once by each later request, not for another minute each.
                left_s = 0.0 if self._lost else PATIENCE_S - spent_s
                asked_s = wait_s if error.wait_s is None else error.wait_s
                if asked_s > left_s or stop.is_set():
                    self._lost = self._lost or error.lost
                    asks = "" if error.wait_s is None else f", which asks to wait {error.wait_s:.0f} s"
                    given_up = f"{tries} {'try' if tries == 1 else 'tries'} in {spent_s:.0f} s"
                    raise ServerError(f"{self.shown}: {error}{asks}; given up after {given_up}") from None
                stop.wait(asked_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            self._lost = False
            if not isinstance(answer, dict):
                raise ServerError(f"{self.shown}/{path}: answers with JSON that is no object")
            return answer

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """One try."""
        limit_s = self._timeout_s if body is not None else min(self._timeout_s, LOOK_S)
        tokens = 0 if body is None else len(body.get("prompt", "")) + body.get("max_tokens", 0)
        most = MOST_BYTES + MOST_BYTES_TOKEN * tokens
        given_up = threading.Event()
        try:
            answer = _within(limit_s, lambda: self._exchange(method, path, body, limit_s, most, given_up))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _PassingError(f"can't be reached ({self._line(str(error))})", lost=True) from None
        except (httpx2.TimeoutException, queue.Empty):
            # Not tried again: the server may still be at work on it, and would be asked for the same twice.
            raise ServerError(f"{self.shown}: no answer within {limit_s:g} s") from None
        except httpx2.TransportError as error:
            raise _PassingError(f"lost the connection ({self._line(str(error))})", lost=True) from None
        except httpx2.RequestError as error:
            raise ServerError(f"{self.shown}/{path}: answers unreadably ({self._line(str(error))})") from None
        finally:
            given_up.set()
        if answer.status in (401, 403):
            raise self._key_refused(answer.status)
        if answer.status in _PASSING:
            said = f"{answer.status}: {self._said(answer)}"
            raise _PassingError(said, _retry_after_s(answer.headers), lost=answer.status >= 500)
        if answer.status != 200:
            raise RefusedError(answer.status, self._said(answer), self.shown)
        try:
            value = json.loads(answer.content)
            if b"\\u" in answer.content:
                json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text: a ValueError
            return value
        except RecursionError:
            raise ServerError(f"{self.shown}/{path}: answers with JSON nested too deeply") from None
        except ValueError:  # no JSON, no text, or numbers of thousands of digits
            raise ServerError(f"{self.shown}/{path}: answers with something that isn't JSON") from None

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, limit_s: float, most: int, given_up: threading.Event
    ) -> _Answer:
        """Sends a request and reads the answer, at most `most` bytes of it and until nobody waits for it."""
        timeout = httpx2.Timeout(limit_s, connect=min(CONNECT_S, limit_s), pool=None)
        content = bytearray()
        with self._http.stream(method, f"{self.shown}/{path}", json=body, timeout=timeout) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > most:
                    raise ServerError(f"{self.shown}/{path}: answers with more than {most // 2**20} MiB")
                if given_up.is_set():
                    break
            return _Answer(response.status_code, response.reason_phrase, response.headers, bytes(content))

    def _key_refused(self, status: int) -> LongEvalError:
        remedy = "Give the key that the server was started with, in the environment as LONGEVAL_API_KEY."
        if self._key is None:
            return LongEvalError(f"--base-url {self.shown}: the server wants a key ({status}), none is given", remedy)
        return LongEvalError(f"LONGEVAL_API_KEY: the server at {self.shown} refuses the key ({status})", remedy)

    def _said(self, answer: _Answer) -> str:
        """What an error answer says: OpenAI's form, vLLM's older one, FastAPI's, or its text."""
        try:
            told = json.loads(answer.content)
            if isinstance(told, dict):
                inner = told.get("error", told)
                inner = inner.get("message", inner.get("detail")) if isinstance(inner, dict) else inner
                if inner:
                    return self._line(str(inner))
        except (ValueError, RecursionError):
            pass
        is_page = "html" in answer.headers.get("content-type", "")
        text = "" if is_page else answer.content[: 4 * MOST_SAID].decode("utf-8", "replace")
        return self._line(text) or self._line(answer.reason)

    def _line(self, text: str) -> str:
        """One line of limited length, the key left out."""
        text = text[: 100 * MOST_SAID]
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}…"


def _checked(base_url: str) -> httpx2.URL:
    """The address, without anything secret in it."""
    remedy = "An address looks like http://127.0.0.1:8000/v1."
    try:
        url = httpx2.URL(base_url.strip())
    except httpx2.InvalidURL:
        shown = "" if "@" in base_url or "?" in base_url else f" {base_url.strip()}"  # no secret, and no line of one
        raise LongEvalError(f"--base-url{shown}: not an address", remedy) from None
    plain = url.copy_with(username="", password="", query=None, fragment=None) if url.host else url
    if url.userinfo or url.query or url.fragment:
        # None is shown: all are places where keys are put, and every record holds the address.
        what = "a name or password" if url.userinfo else "a query" if url.query else "a fragment"
        raise LongEvalError(
            f"--base-url {plain}: has {what} in it",
            "Leave it out; a key goes into the environment as LONGEVAL_API_KEY.",
        )
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise LongEvalError(f"--base-url {base_url.strip()}: not an address of http or https", remedy)
    return plain


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _within(limit_s: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; queue.Empty if it takes longer, and it is left to itself then.

    A time limit on each read wouldn't do: a server that sends a byte a second keeps to it.
    """
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def carry_out() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=carry_out, daemon=True, name="longeval-exchange").start()
    until = time.monotonic() + limit_s
    while True:
        try:
            result, error = done.get(timeout=max(0.0, min(LOOK_UP_S, until - time.monotonic())))
            break
        except queue.Empty:
            if time.monotonic() >= until:
                raise
    if error is not None:
        raise error
    return cast("T", result)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header Retry-After asks for: a number, or a date."""
    asked = headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except (ValueError, OverflowError):
        return None
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


# Several requests to a server at once, so that it can batch them; a new one starts as soon as one is done.

Key = TypeVar("Key")
Body = dict[str, Any]
Post = Callable[[Body, threading.Event], Body]


def in_flight(post: Post, bodies: Iterable[tuple[Key, Body]], concurrency: int) -> Iterator[tuple[Key, Body]]:
    """Yields (key, answer) as answers come.

    Bodies are taken from `bodies` only when they can be sent, in the consumer's thread: long prompts never lie about
    by the hundred. Threads are daemons: Ctrl-C doesn't wait for what a server still computes.

    Args:
        post: Sends a body; the event says that the answer is no longer wanted.
        bodies: (key, body) of each request.
        concurrency: Most at once.

    Raises:
        Exception: The first that `post` or `bodies` raises; nothing new is sent then.
    """
    stop = threading.Event()
    asked: queue.SimpleQueue[tuple[Key, Body] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Key, Body | Exception]] = queue.SimpleQueue()

    def work() -> None:
        while (job := asked.get()) is not None:
            if stop.is_set():
                return
            key, body = job
            try:
                answer: Body | Exception = post(body, stop)
            except Exception as error:
                answer = error
            done.put((key, answer))

    waiting = iter(bodies)
    threads = started = 0
    try:
        while True:
            while started < concurrency and (job := next(waiting, None)) is not None:
                if started == threads:
                    threading.Thread(target=work, daemon=True, name=f"longeval-request-{threads}").start()
                    threads += 1
                asked.put(job)
                started += 1
            if not started:
                return
            try:
                key, answer = done.get(timeout=LOOK_UP_S)
            except queue.Empty:
                continue
            started -= 1
            if isinstance(answer, Exception):
                raise answer
            yield key, answer
    finally:
        stop.set()
        for _ in range(threads):
            asked.put(None)

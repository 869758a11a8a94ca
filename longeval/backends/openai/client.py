"""HTTP client for an OpenAI-compatible server: address, key, concurrent requests, retries, and errors in one line.

Answers are limited in bytes (after decompression) and in seconds (headers and body together), so that no server can
block a run or fill the memory. The key is only sent in a header, and is masked in messages of a server.
Interface: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from longeval.errors import LongEvalError

KEY_VARIABLE = "LONGEVAL_API_KEY"
"""Environment variable of the key. A flag, a spec or a record would show it to others."""

PATIENCE_S = 60.0
"""Time for which a request is repeated after its first failure, including waits."""
FIRST_WAIT_S = 0.5
"""Wait before the second try; it doubles after each try."""
LONGEST_WAIT_S = 8.0
CONNECT_S = 10.0
"""Time limit for connecting."""
ANSWER_S = 600.0
"""Time limit of an answer, enough for a long prompt on a busy server."""
GET_S = 30.0
"""Time limit of a GET."""
WAIT_STEP_S = 0.5
"""Longest uninterrupted wait; a Ctrl-C just before a wait only takes effect after it."""
MOST_SHOWN = 300
"""Most characters of a server's message that are shown."""
MOST_BYTES = 16 * 2**20
"""Largest answer after decompression; a list of hundreds of models has 1 MiB."""
MOST_BYTES_TOKEN = 2048
"""Allowance for each token that is sent or requested; vLLM's `prompt_logprobs` need 200."""

T = TypeVar("T")
Key = TypeVar("Key")
Body = dict[str, Any]

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of failures that may not occur at the next try."""


class ServerError(Exception):
    """The server failed during a run. The message is one line."""


class RefusedError(ServerError):
    """The server refused a request, so repeating it is useless.

    Args:
        status: HTTP status.
        message: The server's message, in one line.
        where: The server's address.
    """

    def __init__(self, status: int, message: str, where: str) -> None:
        super().__init__(f"{where} refused a request ({status}): {message}")
        self.status = status
        self.message = message


class _PassingError(Exception):
    """A failure that may not occur at the next try.

    Args:
        reason: What happened.
        wait_s: How long the server asks to wait; None if it doesn't say.
        lost: Whether the server may be down rather than busy.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, lost: bool) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.lost = lost


def own_key() -> str | None:
    """The key in the environment, or None. Raises LongEvalError, without showing the key, if it is invalid."""
    return _checked_key(os.environ.get(KEY_VARIABLE))


def _checked_key(key: str | None) -> str | None:
    stripped = (key or "").strip()
    if not (stripped.isascii() and stripped.isprintable() and " " not in stripped):
        raise LongEvalError(
            f"{KEY_VARIABLE}: has characters that a header can't hold",
            "Use ASCII letters and digits, without spaces and line breaks.",
        )
    return stripped or None


class Client:
    """The client of one server. It may be used from several threads.

    Args:
        base_url: Address including the version, such as `http://127.0.0.1:8000/v1`.
        api_key: Sent as a bearer token, unless None or empty.
        timeout_s: Time limit of one answer.
        connections: Connections that are kept open.

    Raises:
        LongEvalError: The address or the key can't be used.
    """

    def __init__(self, base_url: str, api_key: str | None, *, timeout_s: float, connections: int) -> None:
        url = _checked_url(base_url)
        self.host = url.netloc.decode("ascii")
        """Host and port."""
        self.shown = str(url).rstrip("/")
        """The address, for messages."""
        self._key = _checked_key(api_key)
        self._timeout_s = timeout_s
        self._lost = False
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # No limit on all connections, because one that was given up stays open until the server ends it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
            # A proxy of the environment can't reach this machine's own addresses, and would see the key.
            trust_env=not _is_loopback(url.host),
            verify=url.scheme == "https",  # reading the certificates takes a while
            follow_redirects=False,  # the key must not be sent elsewhere
        )

    def get(self, path: str) -> Any:
        """The JSON that a GET returns. It is not repeated after failures.

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
                f"--base-url {self.shown}: {error}", "Check that the server is up, and its address, which ends in /v1."
            ) from None

    def post(self, path: str, body: Body, stop: threading.Event | None = None) -> Body:
        """The JSON object that a POST returns. Retries after temporary failures until another thread sets `stop`.

        Raises:
            LongEvalError: The server refuses the key.
            RefusedError: The server refuses the request.
            ServerError: It fails for longer than `PATIENCE_S`, exceeds the time limit, or sends an invalid answer.
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
                # Once a server was given up, later requests try only once, instead of for another minute each.
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
                raise ServerError(f"{self.shown}/{path}: answers with JSON that is not an object")
            return answer

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _once(self, method: str, path: str, body: Body | None) -> Any:
        """Sends a request once and returns the JSON value of the answer."""
        limit_s = self._timeout_s if body is not None else min(self._timeout_s, GET_S)
        tokens = 0 if body is None else len(body.get("prompt", "")) + body.get("max_tokens", 0)
        most = MOST_BYTES + MOST_BYTES_TOKEN * tokens
        given_up = threading.Event()
        try:
            response, content = _within(limit_s, lambda: self._exchange(method, path, body, limit_s, most, given_up))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _PassingError(f"can't be reached ({self._line(str(error))})", lost=True) from None
        except (httpx2.TimeoutException, TimeoutError):
            # Not repeated, because the server may still be working on it.
            raise ServerError(f"{self.shown}: no answer within {limit_s:g} s") from None
        except httpx2.TransportError as error:
            raise _PassingError(f"lost the connection ({self._line(str(error))})", lost=True) from None
        except httpx2.RequestError as error:
            raise ServerError(f"{self.shown}/{path}: answers unreadably ({self._line(str(error))})") from None
        finally:
            given_up.set()
        status = response.status_code
        if status in (401, 403):
            raise self._key_refused(status)
        if status in _PASSING:
            failure = f"{status}: {self._error_message(response, content)}"
            raise _PassingError(failure, _retry_after_s(response.headers), lost=status >= 500)
        if status != 200:
            raise RefusedError(status, self._error_message(response, content), self.shown)
        try:
            value = json.loads(content.decode())  # json.loads of bytes would accept lone surrogates
            if b"\\u" in content:
                json.dumps(value, ensure_ascii=False).encode()  # raises ValueError for lone surrogates
            return value
        except RecursionError:
            raise ServerError(f"{self.shown}/{path}: answers with JSON nested too deeply") from None
        except ValueError:  # not JSON, not UTF-8, or numbers with thousands of digits
            raise ServerError(f"{self.shown}/{path}: answers with something that isn't JSON") from None

    def _exchange(
        self, method: str, path: str, body: Body | None, limit_s: float, most: int, given_up: threading.Event
    ) -> tuple[httpx2.Response, bytes]:
        """Sends a request; returns the response and its body of at most `most` bytes. Stops once `given_up` is set."""
        timeout = httpx2.Timeout(limit_s, connect=min(CONNECT_S, limit_s), pool=None)
        content = bytearray()
        with self._http.stream(method, f"{self.shown}/{path}", json=body, timeout=timeout) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > most:
                    raise ServerError(f"{self.shown}/{path}: answers with more than {most // 2**20} MiB")
                if given_up.is_set():
                    break
            return response, bytes(content)

    def _key_refused(self, status: int) -> LongEvalError:
        remedy = "Give the key that the server was started with, in the environment as LONGEVAL_API_KEY."
        if self._key is None:
            return LongEvalError(f"--base-url {self.shown}: the server requires a key ({status})", remedy)
        return LongEvalError(f"LONGEVAL_API_KEY: the server at {self.shown} refuses the key ({status})", remedy)

    def _error_message(self, response: httpx2.Response, content: bytes) -> str:
        """The message in an error answer, which may have OpenAI's, vLLM's older or FastAPI's form; else its text."""
        try:
            told = json.loads(content)
            if isinstance(told, dict):
                inner = told.get("error", told)
                inner = inner.get("message", inner.get("detail")) if isinstance(inner, dict) else inner
                if inner:
                    return self._line(str(inner))
        except (ValueError, RecursionError):
            pass
        is_page = "html" in response.headers.get("content-type", "")
        text = "" if is_page else content[: 4 * MOST_SHOWN].decode("utf-8", "replace")
        return self._line(text) or self._line(response.reason_phrase)

    def _line(self, text: str) -> str:
        """The text in one line of limited length, with the key masked."""
        text = text[: 100 * MOST_SHOWN]
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"


def in_flight(
    post: Callable[[Body, threading.Event], Body], bodies: Iterable[tuple[Key, Body]], concurrency: int
) -> Iterator[tuple[Key, Body]]:
    """Sends requests concurrently, so that the server can batch them; yields (key, answer) as answers arrive.

    Bodies are taken from `bodies` only when they can be sent, so that few long prompts are in memory. Threads are
    daemons, so Ctrl-C doesn't wait for answers.

    Args:
        post: Sends a body; the event is set when the answer is no longer needed.
        bodies: (key, body) of each request.
        concurrency: Most concurrent requests.

    Raises:
        Exception: The first error of `post` or `bodies`; no further requests are sent.
    """
    stop = threading.Event()
    done: queue.SimpleQueue[tuple[Key, Body | Exception]] = queue.SimpleQueue()

    def send(key: Key, body: Body) -> None:
        try:
            done.put((key, post(body, stop)))
        except Exception as error:
            done.put((key, error))

    waiting = iter(bodies)
    under_way = 0
    try:
        while True:
            while under_way < concurrency and (job := next(waiting, None)) is not None:
                threading.Thread(target=send, args=job, daemon=True, name=f"longeval-request-{under_way}").start()
                under_way += 1
            if not under_way:
                return
            try:
                key, answer = done.get(timeout=WAIT_STEP_S)
            except queue.Empty:
                continue
            under_way -= 1
            if isinstance(answer, Exception):
                raise answer
            yield key, answer
    finally:
        stop.set()


def _within(limit_s: float, work: Callable[[], T]) -> T:
    """Returns or raises the result of `work`, or raises TimeoutError after `limit_s`; `work` then goes on by itself.

    A time limit for each read is not enough, because a server can send one byte per second.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def carry_out() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=carry_out, daemon=True, name="longeval-exchange").start()
    until = time.monotonic() + limit_s
    while not done.done() and (left_s := until - time.monotonic()) > 0:
        concurrent.futures.wait([done], timeout=min(WAIT_STEP_S, left_s))
    return done.result(timeout=0)


def _checked_url(base_url: str) -> httpx2.URL:
    """Checks and normalises the address. Messages never show parts that may contain a key.

    Such parts are refused, because every record holds the address.
    """
    remedy = "An address looks like http://127.0.0.1:8000/v1."
    try:
        url = httpx2.URL(base_url.strip())
    except httpx2.InvalidURL:
        shown = "" if "@" in base_url or "?" in base_url else f" {base_url.strip()}"
        raise LongEvalError(f"--base-url{shown}: not an address", remedy) from None
    plain = url.copy_with(username="", password="", query=None, fragment=None) if url.host else url
    if url.userinfo or url.query or url.fragment:
        what = "a name or password" if url.userinfo else "a query" if url.query else "a fragment"
        raise LongEvalError(
            f"--base-url {plain}: has {what} in it",
            "Leave it out; give a key in the environment as LONGEVAL_API_KEY.",
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


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds in the header Retry-After, which is a number or a date; None without a valid one."""
    asked = headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except (ValueError, OverflowError):
        return None
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())

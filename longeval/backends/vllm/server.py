"""Runs vLLM's server as a child process, with one method for all prompts.

The server is started, polled until it answers, and ended with all its processes. Its log is not shown; it is used to
explain why the server didn't start or died. Ctrl-C and SIGTERM only reach this process (the server has its own process
group), which passes them on. If this process is killed, the system ends the others (see `serve`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any

import psutil

from longeval.backends.served import ServedMethod
from longeval.backends.vllm.engine import logged_cause, remedy_of
from longeval.backends.vllm.serve import PARENT_VARIABLE
from longeval.errors import LongEvalError, reason
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

logger = logging.getLogger(__name__)

COMMAND = ("-m", "vllm.entrypoints.launchers.api_server.entry")
"""Arguments of Python that start the same server without longeval; `serve` explains the choice."""

_OURS = ("-P", "-m", "longeval.backends.vllm.serve")

_LINES = 2000
"""Number of log lines that are kept."""

_EVERY_S = 0.2
"""Seconds between checks for signals, answers and the server's end."""

_GRACE_S = 30.0
"""Seconds that a server may take to end, in addition to the time for its requests."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound by it)
"""Hosts that mean all addresses, each with an address at which this machine reaches itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One method, set up for one length."""

    table: RopeTable
    method: ServedMethod
    """What it is, for clients; digests are the engine's to tell."""
    notes: tuple[str, ...]
    """Notes for the user."""


def served_method(
    model: PreparedModel,
    name: MethodName,
    *,
    factor: float | None,
    length: int | None,
    arguments: Mapping[str, Any],
    pin: int | None,
) -> Served:
    """The method with its table for a server.

    Args:
        model: The model.
        name: The method.
        factor: s; None: length / native length, at least 1.
        length: Longest prompt with its answer, tokens; None: s times the native length, or under none what the scaling
            that the model comes with reaches.
        arguments: The method's parameters.
        pin: The length in tokens whose table a length-dependent method uses for all prompts.

    Raises:
        LongEvalError: A factor or a pinned length would be ignored, or the method needs a pinned length.
    """
    if factor is not None and length is not None and not name.method.uses_factor:
        raise LongEvalError(
            f"--factor {factor:g}: would be ignored, because --length {length} is given and {name.canonical} uses no "
            "factor",
            "Leave one of the two out.",
        )
    reach = model.rope.shipped.reach if name.base == "none" else 0
    tokens = max(round((factor or 1.0) * model.native_length), reach) if length is None else length
    s = max(1.0, tokens / model.native_length) if factor is None else factor
    tables = model.rope.tables(name, dataclasses.replace(model.geometry, factor=s), arguments)
    dependent = model.rope.length_dependent(name)
    if pin is not None and not dependent:
        raise LongEvalError(
            f"--pin-length {format_length(pin)}: would be ignored, {name.canonical} has one table for all lengths",
            "Leave it out.",
        )
    if pin is None and dependent and not tables(tokens).same_as(tables(2)):
        raise LongEvalError(
            f"--pe {name.canonical}: has a different table for every length, but a vLLM engine holds one",
            "Pin it to one length, such as --pin-length 16k.",
        )
    notes = []
    if name.method.uses_factor and s == 1:
        notes.append(
            f"{name.canonical}: s = 1, nothing is stretched (the native length is "
            f"{format_length(model.native_length)}; --factor or a longer --length would)"
        )
    if pin is not None and pin < tokens:
        notes.append(
            f"--pin-length {format_length(pin)}: is shorter than the longest prompt, {format_length(tokens)}; "
            "prompts beyond it get that table too"
        )
    return Served(
        table=tables(tokens if pin is None else pin),
        method=ServedMethod(
            pe=name.canonical,
            parameters=model.rope.parameters(name, arguments).to_mapping(),
            factor=s if name.method.uses_factor else None,
            native_length=model.native_length,
            pin_length=pin,
            length=tokens,
        ),
        notes=tuple(notes),
    )


def check_address(host: str, port: int) -> None:
    """Raises LongEvalError if no server can listen at an address. Called before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as vLLM chooses
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise _no_address(host) from error
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as in vLLM: a port just freed counts as free
        try:
            tried.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(host) from error
            raise LongEvalError(
                f"--port {port}: can't listen there at {host} ({reason(error).lower()})",
                f"Use another, such as --port {port + 1 if port < 65535 else 8000}, or stop the program that uses it.",
            ) from error


def _no_address(host: str) -> LongEvalError:
    return LongEvalError(
        f"--host {host or repr(host)}: not an address of this machine", "Use 127.0.0.1, or 0.0.0.0 for all addresses."
    )


def base_url(host: str, port: int) -> str:
    """The server's address for programs on this machine, including /v1."""
    reached = _ANYWHERE.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"


def run_server(
    flags: Sequence[str],
    environment: Mapping[str, str],
    *,
    name: str,
    host: str,
    port: int,
    show_log: bool,
    drain_s: float,
    announce: Callable[[], None],
) -> int:
    """Runs the server until it ends or a signal comes.

    Args:
        flags: vLLM's command line.
        environment: The server's environment variables; those that tie it to this process are added.
        name: The model's name, for messages.
        host: The address where it listens.
        port: The port where it listens.
        show_log: Whether its log goes to stderr.
        drain_s: Seconds that it lets requests finish when it is asked to end.
        announce: Called once, when the server answers.

    Returns:
        The exit status: the server's own if it was up (0 after Ctrl-C or SIGTERM), else 128 + the signal that ended
        the start.

    Raises:
        LongEvalError: The server didn't start. The message has its reason, and a remedy if one is known.
        KeyboardInterrupt: Ctrl-C before the server was up.
    """
    with _noted_signals() as noted:
        process = subprocess.Popen(  # noqa: S603 (our own list)
            [sys.executable, *_OURS, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **environment,
                PARENT_VARIABLE: str(os.getpid()),
                # A forked engine wouldn't import the main module, which ties it to its parent.
                "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
                "TQDM_DISABLE": "1",
            },
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
        log = _Log(process, show=show_log)
        started: set[psutil.Process] = set()
        try:
            while process.poll() is None and not noted and not is_up(process.pid, host, port):
                time.sleep(_EVERY_S)
            if noted:
                if noted[0] == signal.SIGINT:
                    raise KeyboardInterrupt
                return 128 + noted[0]
            if process.poll() is not None:
                problem = _why(process, log.text())
                remedy = remedy_of(problem, serving=True)
                raise LongEvalError(f"--model {name}: vLLM's server didn't start: {problem}", remedy)
            log.forget()  # messages of the start don't explain a later end
            announce()
            started = _below(process)
            while process.poll() is None and not noted:
                time.sleep(_EVERY_S)
            if not noted:
                logger.error("vLLM's server ended by itself: %s", _why(process, log.text()))
                return process.returncode if process.returncode > 0 else 1
            started |= _below(process)
            logger.info("ending the server; repeat the signal to end it immediately")
            return _end_in_order(process, noted, _GRACE_S + drain_s)
        finally:
            _kill(process, started | _below(process))


def is_up(pid: int, host: str, port: int) -> bool:
    """Whether this process (not another server that took the port) listens there and reports that it is healthy."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
        if not any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in sockets):
            return False
    except psutil.Error:
        return False
    connection = http.client.HTTPConnection(_ANYWHERE.get(host, host), port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _why(process: subprocess.Popen[str], log: str) -> str:
    """Why a server ended by itself: the first exception in its log, else the log's last line."""
    if process.returncode == -signal.SIGKILL:  # the log can't tell
        return "it was killed (SIGKILL), perhaps because the machine ran out of memory"
    if (cause := logged_cause(log)) is not None:
        return cause
    if "EngineDeadError" in log:
        return "its engine ended without a message (it was killed, perhaps because the machine ran out of memory)"
    status = process.returncode
    if status < 0:
        return f"it was killed ({signal.Signals(-status).name})"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return f"it ended with status {status}{f': {last}' if last else ''}"


def _end_in_order(process: subprocess.Popen[str], noted: Sequence[int], within_s: float) -> int:
    """Passes the signal on and waits until the server ends, a second signal comes, or the time is over."""
    process.send_signal(signal.SIGINT if noted[0] == signal.SIGINT else signal.SIGTERM)
    until = time.monotonic() + within_s
    while process.poll() is None and len(noted) < 2 and time.monotonic() < until:
        time.sleep(_EVERY_S)
    if process.poll() is None:
        return 128 + noted[0]
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _below(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """All processes that the server has started."""
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _kill(process: subprocess.Popen[str], others: Iterable[psutil.Process]) -> None:
    """Kills the remaining processes of a server and waits for them."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    psutil.wait_procs(list(others), timeout=10)


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT, SIGTERM and SIGHUP are added inside the block, instead of ending the process.

    Signals that were already ignored (by nohup, or in a script's background job) stay ignored.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """The last lines of a process's piped output, read continuously; with `show` they also go to stderr."""

    def __init__(self, process: subprocess.Popen[str], *, show: bool) -> None:
        assert process.stdout is not None
        self._show = show
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), name="longeval-log", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Drops all lines so far."""
        self._lines.clear()

    def text(self) -> str:
        """The lines so far; if the process has ended, all of its last lines."""
        self._thread.join(timeout=2 * _EVERY_S)
        return "".join(self._lines.copy())

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line)
            if self._show:
                try:
                    sys.stderr.write(line)
                    sys.stderr.flush()
                except (OSError, ValueError):  # stderr is closed; go on reading, or a full pipe would stop the server
                    self._show = False

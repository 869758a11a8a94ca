"""vLLM's server as a process of ours, with one method for all prompts, chosen before it starts.

The server is started, waited for until it answers, and ended with all that it started. Its log is kept out of sight,
to say why it didn't start, or died. Ctrl-C and SIGTERM come here alone (the server is a process group of its own) and
are handed on; if this process is killed, the system ends the others (`serve`).
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
"""Arguments of Python for the same server without longeval (see `serve` for why this one)."""

_OURS = ("-P", "-m", "longeval.backends.vllm.serve")

_LINES = 2000
"""Lines of its log that are kept."""

_EVERY_S = 0.2
"""Time between two looks at signals, answers and the server's end."""

_GRACE_S = 30.0
"""How long a server may take to end after it was asked to, beyond the time that its requests have."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound by it)
"""Hosts that mean all addresses of a machine: the one at which it reaches itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One method, set up for one length."""

    table: RopeTable
    method: ServedMethod
    """What it is, for clients; digests are the engine's to tell."""
    notes: tuple[str, ...]
    """What a user should know."""


def served_method(
    model: PreparedModel,
    name: MethodName,
    *,
    factor: float | None,
    length: int | None,
    arguments: Mapping[str, Any],
    pin: int | None,
) -> Served:
    """The method as a server has it.

    Args:
        model: The model.
        name: The method.
        factor: s; None: length / native length, at least 1.
        length: Longest prompt with its answer, tokens; None: s times native.
        arguments: The method's own parameters.
        pin: The length, in tokens, whose table a length-dependent method has for all prompts.

    Raises:
        LongEvalError: A factor or a pin that nothing heeds, or a method that needs a pin.
    """
    if factor is not None and length is not None and not name.method.uses_factor:
        raise LongEvalError(
            f"--factor {factor:g}: would be ignored, --length {length} is given and {name.canonical} isn't stretched",
            "Leave one of the two out.",
        )
    tokens = round((factor or 1.0) * model.native_length) if length is None else length
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
            f"--pe {name.canonical}: has another table at every length, and a vLLM engine holds one",
            "Pin it to one length: --pin-length 16k.",
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
            parameters=dataclasses.asdict(model.rope.parameters(name, arguments)),
            factor=s if name.method.uses_factor else None,
            native_length=model.native_length,
            pin_length=pin,
            length=tokens,
        ),
        notes=tuple(notes),
    )


def check_address(host: str, port: int) -> None:
    """Raises LongEvalError where no server can listen at an address; before a model is loaded for it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as vLLM chooses
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise _no_address(host) from error
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM: else a port just left would seem taken
        try:
            tried.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(host) from error
            raise LongEvalError(
                f"--port {port}: can't be listened on at {host} ({reason(error).lower()})",
                f"Use another, such as --port {port + 1 if port < 65535 else 8000}, or end what listens there.",
            ) from error


def _no_address(host: str) -> LongEvalError:
    return LongEvalError(
        f"--host {host or repr(host)}: no address of this machine", "Such as 127.0.0.1, or 0.0.0.0 for all."
    )


def base_url(host: str, port: int) -> str:
    """The server's address for those on this machine, up to the version."""
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
    """Runs the server until it ends or is told to, and returns the exit status.

    That is the server's own where it was up (0 after Ctrl-C or SIGTERM), else 128 + the signal that ended the start.

    Args:
        flags: vLLM's command line.
        environment: The server's, to which what ties it to this process is added.
        name: The model, for messages.
        host: The address where it listens.
        port: The port there.
        show_log: Whether its log goes to stderr.
        drain_s: How long it lets requests finish when it is told to end.
        announce: Called once, when it answers.

    Raises:
        LongEvalError: It didn't start; its own reason, and a remedy where one is known.
        KeyboardInterrupt: Ctrl-C before it was up.
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
                # A forked engine wouldn't import the main module, and so wouldn't be tied to its parent.
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
            log.forget()  # what went before isn't why it may die later
            announce()
            started = _below(process)
            while process.poll() is None and not noted:
                time.sleep(_EVERY_S)
            if not noted:
                logger.error("vLLM's server ended by itself: %s", _why(process, log.text()))
                return process.returncode if process.returncode > 0 else 1
            started |= _below(process)
            logger.info("ending the server; the same signal again ends it at once")
            return _end_in_order(process, noted, _GRACE_S + drain_s)
        finally:
            _kill(process, started | _below(process))


def is_up(pid: int, host: str, port: int) -> bool:
    """Whether a process, and not another server that was quicker to take the port, answers there that it is well."""
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
    """Why a server ended that nobody told to: the first exception in its log, else its last line."""
    if process.returncode == -signal.SIGKILL:  # it can't have said so
        return "it was killed (SIGKILL), perhaps because the machine ran out of memory"
    if (cause := logged_cause(log)) is not None:
        return cause
    if "EngineDeadError" in log:
        return "its engine ended without a word (killed, perhaps because the machine ran out of memory)"
    status = process.returncode
    if status < 0:
        return f"it was killed ({signal.Signals(-status).name})"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return f"it ended with status {status}{f': {last}' if last else ''}"


def _end_in_order(process: subprocess.Popen[str], noted: Sequence[int], within_s: float) -> int:
    """Hands the signal on and waits; a second one, or the end of the time, ends the server at once."""
    process.send_signal(signal.SIGINT if noted[0] == signal.SIGINT else signal.SIGTERM)
    until = time.monotonic() + within_s
    while process.poll() is None and len(noted) < 2 and time.monotonic() < until:
        time.sleep(_EVERY_S)
    if process.poll() is None:
        return 128 + noted[0]
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _below(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """What the server has started so far."""
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _kill(process: subprocess.Popen[str], others: Iterable[psutil.Process]) -> None:
    """Ends what is left of a server, and waits for it."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    psutil.wait_procs(list(others), timeout=10)


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yields a list to which Ctrl-C, SIGTERM and SIGHUP are added while it is open, so that the server ends in order.

    One that this process was started to ignore (by nohup, or behind a script) stays ignored.
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
    """The end of what a process says, read as it says it.

    Args:
        process: Its stdout is a pipe.
        show: Whether it goes to stderr as well.
    """

    def __init__(self, process: subprocess.Popen[str], *, show: bool) -> None:
        assert process.stdout is not None
        self._show = show
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), name="longeval-log", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Drops what was said so far."""
        self._lines.clear()

    def text(self) -> str:
        """What was said; to the end where the process ended."""
        self._thread.join(timeout=2 * _EVERY_S)
        return "".join(self._lines.copy())

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line)
            if self._show:
                try:
                    sys.stderr.write(line)
                    sys.stderr.flush()
                except (OSError, ValueError):  # gone; a pipe that nobody empties would stop the server
                    self._show = False

"""Starts and stops vLLM's engine, keeps its log, and finds in it why an engine didn't start.

vLLM runs the engine in a process of its own, whose exceptions reach us only as "see root cause above"; the cause is in
its log, which therefore goes to a file. Results on stdout stay clean that way too: vLLM logs to stdout by default.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from longeval.backends.base import BackendError
from longeval.backends.vllm_plugin import LOG_VARIABLE

logger = logging.getLogger(__name__)

_CAUSE = re.compile(r"\b((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception))\s*:\s*(.+)")
"""An exception's last line in a traceback."""

_WRAPPERS = (
    "Engine core initialization failed",
    "Engine process failed",
    "WorkerProc initialization failed",
    "Worker proc",
)
"""What vLLM says of an exception that it has logged before."""

_MEMORY = re.compile(r"KV cache|memory|allocate", re.IGNORECASE)


class EngineLog:
    """A file that vLLM logs into, in this process and, told by the environment, in those that it starts."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="longeval-vllm-")
        self.path = os.path.join(self._folder.name, "vllm.log")
        os.environ[LOG_VARIABLE] = self.path
        # vLLM's own settings would write to stdout, where results go.
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        # A forked engine would inherit locks and threads of a process that has worked with torch already.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        handler = logging.FileHandler(self.path, delay=True)
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(name)s] %(message)s"))
        vllm = logging.getLogger("vllm")
        vllm.addHandler(handler)
        vllm.propagate = False

    def position(self) -> int:
        """Where the file ends now."""
        try:
            return os.path.getsize(self.path)
        except OSError:
            return 0

    def since(self, position: int) -> str:
        """What was logged after `position`."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                file.seek(position)
                return file.read()
        except OSError:
            return ""


_log: EngineLog | None = None


def engine_log() -> EngineLog:
    """The log of this process's engines; before vLLM is first imported."""
    global _log
    if _log is None:
        _log = EngineLog()
    return _log


def start_engine(name: str, arguments: Mapping[str, Any]) -> Any:
    """Builds an engine (`vllm.LLM`); 5 to 60 seconds and more.

    Args:
        name: The model, for messages.
        arguments: From `engine_arguments`.

    Raises:
        BackendError: The engine didn't start; its own reason, and a remedy where one is known.
    """
    log = engine_log()
    from vllm import LLM

    begin = log.position()
    before = set(psutil.Process().children(recursive=True))
    try:
        with _quiet_bars(), _insistent_interrupt():
            return LLM(**arguments)
    except BaseException as error:
        # What an engine had started before it failed, or was interrupted, doesn't always end by itself.
        _end(set(psutil.Process().children(recursive=True)) - before)
        if not isinstance(error, Exception):
            raise
        problem = cause_of(error, log.since(begin))
        logger.debug("vLLM's log:\n%s", log.since(begin))
        raise BackendError(f"--backend vllm: {name}: the engine didn't start: {problem}", remedy_of(problem)) from error


def stop_engine(engine: Any) -> None:
    """Ends the engine's processes and waits for them."""
    with contextlib.suppress(Exception):  # it may have died already
        engine.llm_engine.engine_core.shutdown()
    gc.collect()


def cause_of(error: BaseException, log: str) -> str:
    """Why an engine didn't start, in one line: the first exception in its log that isn't about another one."""
    for line in log.splitlines():
        found = _CAUSE.search(line)
        if found and not any(wrapper in found[2] for wrapper in _WRAPPERS):
            return f"{found[1].rpartition('.')[2]}: {found[2].strip()}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:600]


def remedy_of(problem: str) -> str:
    """What to do about an engine that didn't start."""
    if _MEMORY.search(problem):
        return (
            "Give it more room: --vllm-arg gpu_memory_utilization=0.95 (on a CPU: VLLM_CPU_KVCACHE_SPACE, in GiB), "
            "--vllm-arg tensor_parallel_size=2 on several GPUs, shorter --lengths, or --backend hf."
        )
    return "-v shows vLLM's log. Change --vllm-arg, or use --backend hf."


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=10)


@contextlib.contextmanager
def _insistent_interrupt() -> Iterator[None]:
    """Makes Ctrl-C end a start that is under way.

    vLLM 0.32 takes a KeyboardInterrupt while it waits for the engine's process, ends that process, and then waits ten
    minutes for its first message: the interrupt is repeated until it gets through.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, asked = threading.Event(), threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def interrupt(_signal: int, _frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    def repeat() -> None:
        asked.wait()
        while not over.wait(2.0):
            signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident or 0
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        over.set()
        asked.set()
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _quiet_bars() -> Iterator[None]:
    """Keeps vLLM's progress bars (loading, capturing) off the terminal; the engine's process inherits the setting."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before

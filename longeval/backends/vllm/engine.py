"""Starts and stops vLLM's engine, so that no process of it outlives its use, and says why one failed.

vLLM runs the engine in a process of its own, whose exceptions reach us only as "see root cause above". The cause is in
its log, which therefore goes to a file; vLLM's own settings would mix it with the results on stdout.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from longeval.backends.base import BackendError
from longeval.backends.vllm.options import PLUGINS_VARIABLE
from longeval.backends.vllm.plugin import LOG_VARIABLE
from longeval.files import lasting_folder

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
"""How often a thread looks whether an engine still lives."""

_CAUSE = re.compile(r"\b((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception))\s*:\s*(.+)")
"""An exception's last line in a traceback."""

_WRAPPERS = (
    "Engine core initialization failed",
    "Engine process failed",
    "EngineCore encountered an issue",
    "WorkerProc initialization failed",
    "Worker proc",
    "Executor failed",
)
"""What vLLM says of an exception that it has logged before."""

_REMARK = re.compile(r"\b(?:WARNING|INFO|DEBUG)\b")
"""Levels of lines that may name an exception, but none that ended anything."""

_PYDANTIC = re.compile(r"\s*\[type=\w+, input_value=.*$")
"""What follows pydantic's sentence about an option's value: types, inputs, an address."""

_OVER = re.compile(r"free memory|out of memory|can't allocate|allocate memory|MemoryError", re.IGNORECASE)
"""More memory was taken than there is."""

_UNDER = re.compile(r"KV cache|cache blocks|memory", re.IGNORECASE)
"""Too little memory is left for the cache."""

_NO_TABLE = re.compile(r"KeyError: '?longeval_table")
"""transformers' code doesn't know our rope type: its functions of rope types are in a dictionary."""

_NO_PLUGIN = re.compile(r"Unknown RoPE scaling type '?longeval_table")
"""vLLM's own `get_rope` doesn't know it: ours didn't take its place."""


class Engine:
    """A started engine.

    Args:
        llm: `vllm.LLM`.
        log: Where its messages go.
    """

    def __init__(self, llm: Any, log: EngineLog) -> None:
        self.llm = llm
        self._log = log
        self._begin = log.position()
        self._watch = _Watch(llm.llm_engine.engine_core)

    def cause_of_death(self) -> str:
        """Why it died, as far as its log says."""
        logged = self._log.since(self._begin)
        logger.debug("vLLM's log:\n%s", logged)
        # vLLM's own words point to a trace that isn't there.
        return logged_cause(logged) or (
            "its process ended without a word (killed, perhaps by the system for want of memory)"
        )

    def stop(self) -> None:
        """Ends the engine's processes and waits for them."""
        self._watch.stop()
        with contextlib.suppress(Exception):  # it may have died already
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def start_engine(name: str, arguments: Mapping[str, Any]) -> Engine:
    """Builds an engine; 5 to 60 seconds and more.

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
        with _insistent_interrupt():
            return Engine(LLM(**arguments), log)
    except BaseException as error:
        # What an engine had started before it failed, or was interrupted, doesn't always end by itself.
        _end(set(psutil.Process().children(recursive=True)) - before)
        if not isinstance(error, Exception):
            raise
        problem = cause_of(error, log.since(begin))
        logger.debug("vLLM's log:\n%s", log.since(begin))
        raise BackendError(f"--backend vllm: {name}: the engine didn't start: {problem}", remedy_of(problem)) from error


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=10)


class EngineLog:
    """A file that vLLM logs into, in this process and, told by the environment, in those that it starts."""

    def __init__(self) -> None:
        self.path = os.path.join(lasting_folder(), "vllm.log")
        os.environ[LOG_VARIABLE] = self.path
        # vLLM's own settings would write to stdout, where results go.
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        # A forked engine would inherit locks and threads of a process that has worked with torch already.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # Progress bars (loading, capturing) stay off the terminal.
        os.environ["TQDM_DISABLE"] = "1"
        # Shared memory that vLLM leaves to the system at its end is told to the user otherwise, after the results.
        ignored = "ignore:resource_tracker:UserWarning"
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), ignored]))
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


@functools.cache
def engine_log() -> EngineLog:
    """The log of this process's engines; to be called before vLLM is first imported."""
    return EngineLog()


def logged_cause(log: str) -> str | None:
    """The first exception in a log that isn't about another one, in one line; None if there is none."""
    for line in log.splitlines():
        found = _CAUSE.search(line)
        if not found or _REMARK.search(line[: found.start()]):
            continue
        if not any(wrapper in found[2] for wrapper in _WRAPPERS):
            return _shortened(f"{found[1].rpartition('.')[2]}: {found[2].strip()}")
    return None


def cause_of(error: BaseException, log: str) -> str:
    """Why an engine didn't start, in one line: what its log says, else the exception that reached us."""
    return logged_cause(log) or _shortened(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _shortened(problem: str) -> str:
    return _PYDANTIC.sub("", problem)[:600].strip()


def remedy_of(problem: str, *, serving: bool = False) -> str:
    """What to do about an engine that didn't start.

    Args:
        problem: Its own reason, from `cause_of`.
        serving: Whether it is a server's, for which there is no other backend.
    """
    if _NO_TABLE.search(problem):
        return (
            "vLLM runs this family through transformers' code, which doesn't take our table (docs/vllm.md lists such "
            f"families): {'serve a model of another one' if serving else 'use --backend hf'}."
        )
    if _NO_PLUGIN.search(problem):
        return (
            "longeval's plugin wasn't loaded, or failed, in vLLM's process: -v shows its log; install longeval into "
            f"the same Python, and unset {PLUGINS_VARIABLE}."
        )
    if serving and "Address already in use" in problem:
        return "Another server took the port while this one was starting: use another --port."
    several = "--vllm-arg tensor_parallel_size=2 on several GPUs"
    rest = f"{several}, or a shorter --length." if serving else f"{several}, shorter --lengths, or --backend hf."
    if is_memory(problem) or "decrease `--gpu-memory-utilization`" in problem:  # others hold what it asks for
        return (
            "Let it take less: --vllm-arg gpu_memory_utilization=0.8 (on a CPU: VLLM_CPU_KVCACHE_SPACE, in GiB), "
            f"--vllm-arg max_num_seqs=32, --vllm-arg max_num_batched_tokens=1024; or {rest}"
        )
    if _UNDER.search(problem) and "Input should be" not in problem:  # an option's value, whatever its name
        return (
            "Give it more room: --vllm-arg gpu_memory_utilization=0.95 (on a CPU: VLLM_CPU_KVCACHE_SPACE, in GiB), "
            f"{rest}"
        )
    return f"-v shows vLLM's log. Change --vllm-arg{'' if serving else ', or use --backend hf'}."


def is_memory(problem: str) -> bool:
    """Whether memory ran out."""
    return _OVER.search(problem) is not None


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
    main = threading.main_thread().ident or 0

    def interrupt(_signal: int, _frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    def repeat() -> None:
        asked.wait()
        while not over.wait(2.0):
            signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=repeat, daemon=True).start()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        over.set()
        asked.set()
        signal.signal(signal.SIGINT, previous)


class _Watch:
    """A thread that waits for an engine's death, and then wakes whoever waits for the engine's answer.

    vLLM 0.32 notices that the engine's process was killed (by the kernel, when memory runs out), marks the engine as
    dead, and leaves its synchronous client waiting for the next answer for ever.

    Args:
        core: vLLM's client of the engine (`LLM.llm_engine.engine_core`); one that runs in this process isn't watched.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._over = threading.Event()
        if hasattr(core, "resources") and hasattr(core, "outputs_queue"):
            threading.Thread(target=self._watch, name="longeval-engine-watch", daemon=True).start()

    def stop(self) -> None:
        """The engine is being ended on purpose."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            if self._core.resources.engine_dead:
                self._wake()
                return

    def _wake(self) -> None:
        """Answers everything that is waited for, now and by calls that are on their way, with the engine's death."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._core.outputs_queue.put_nowait(EngineDeadError())
        end = time.monotonic() + 2 * _EVERY_S
        while time.monotonic() < end:
            for future in list(self._core.utility_results.values()):
                if not future.done():
                    with contextlib.suppress(Exception):  # it was answered meanwhile
                        future.set_exception(EngineDeadError())
            self._over.wait(_EVERY_S)

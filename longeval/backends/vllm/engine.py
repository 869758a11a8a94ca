"""Starts and stops vLLM's engine, ends all its processes, and finds out why it failed.

vLLM runs the engine in another process, whose exceptions reach us only as "see root cause above". The cause is in its
log, which goes to a file; by default vLLM would write it to stdout, where results go.
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
"""Seconds between checks whether an engine is still alive."""

_CAUSE = re.compile(r"\b((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception))\s*:\s*(.+)")
"""The last line of a traceback."""

_WRAPPERS = (
    "Engine core initialization failed",
    "Engine process failed",
    "EngineCore encountered an issue",
    "WorkerProc initialization failed",
    "Worker proc",
    "Executor failed",
)
"""Messages of exceptions that refer to one that vLLM has logged before."""

_REMARK = re.compile(r"\b(?:WARNING|INFO|DEBUG)\b")
"""Levels of log lines that may name an exception which was handled."""

_PYDANTIC = re.compile(r"\s*\[type=\w+, input_value=.*$")
"""Details that pydantic appends to its message about an option's value."""

_OUT_OF_MEMORY = re.compile(r"free memory|out of memory|can't allocate|allocate memory|MemoryError", re.IGNORECASE)
"""More memory was requested than is available."""

_CACHE_TOO_SMALL = re.compile(r"KV cache|cache blocks|memory", re.IGNORECASE)
"""Too little memory is left for the key/value cache."""

_NO_TABLE = re.compile(r"KeyError: '?longeval_table")
"""transformers' dictionary of rope types doesn't have ours."""

_NO_PLUGIN = re.compile(r"Unknown RoPE scaling type '?longeval_table")
"""vLLM's own `get_rope` was called, because ours didn't replace it."""


class Engine:
    """A started `vllm.LLM` with the log of its messages."""

    def __init__(self, llm: Any, log: EngineLog) -> None:
        self.llm = llm
        self._log = log
        self._begin = log.position()
        self._watch = _Watch(llm.llm_engine.engine_core)

    def cause_of_death(self) -> str:
        """Why the engine died, according to its log."""
        logged = self._log.since(self._begin)
        logger.debug("vLLM's log:\n%s", logged)
        # vLLM's own message refers to a traceback that isn't shown.
        return logged_cause(logged) or (
            "its process ended without a message (it was killed, perhaps because memory ran out)"
        )

    def stop(self) -> None:
        """Ends the engine's processes and waits for them."""
        self._watch.stop()
        with contextlib.suppress(Exception):  # the engine may already be dead
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def start_engine(name: str, arguments: Mapping[str, Any]) -> Engine:
    """Starts an engine with the arguments of `engine_arguments`, which takes 5 to 60 seconds or more.

    Raises:
        BackendError: The engine didn't start. The message has its reason, and a remedy if one is known.
    """
    log = engine_log()
    from vllm import LLM

    begin = log.position()
    before = set(psutil.Process().children(recursive=True))
    try:
        with _insistent_interrupt():
            return Engine(LLM(**arguments), log)
    except BaseException as error:
        # Processes that a failed or interrupted engine had started don't always end by themselves.
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
    """The log file of vLLM in this process and, through environment variables, in the processes that it starts."""

    def __init__(self) -> None:
        self.path = os.path.join(lasting_folder(), "vllm.log")
        os.environ[LOG_VARIABLE] = self.path
        # By default vLLM would log to stdout, where results go.
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        # A forked engine would inherit locks and threads of a process that has already used torch.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # No progress bars of loading and capturing on the terminal.
        os.environ["TQDM_DISABLE"] = "1"
        # No warning, after the results, about shared memory that vLLM leaves to the system at its end.
        ignored = "ignore:resource_tracker:UserWarning"
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), ignored]))
        handler = logging.FileHandler(self.path, delay=True)
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(name)s] %(message)s"))
        vllm = logging.getLogger("vllm")
        vllm.addHandler(handler)
        vllm.propagate = False

    def position(self) -> int:
        """The current size of the file, bytes."""
        try:
            return os.path.getsize(self.path)
        except OSError:
            return 0

    def since(self, position: int) -> str:
        """The text that was logged after `position`."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                file.seek(position)
                return file.read()
        except OSError:
            return ""


@functools.cache
def engine_log() -> EngineLog:
    """The log of this process's engines. Call it before vLLM is imported for the first time."""
    return EngineLog()


def logged_cause(log: str) -> str | None:
    """The first exception in a log that doesn't refer to another one, in one line; None if there is none."""
    for line in log.splitlines():
        found = _CAUSE.search(line)
        if not found or _REMARK.search(line[: found.start()]):
            continue
        if not any(wrapper in found[2] for wrapper in _WRAPPERS):
            return _shortened(f"{found[1].rpartition('.')[2]}: {found[2].strip()}")
    return None


def cause_of(error: BaseException, log: str) -> str:
    """Why an engine didn't start, in one line: the cause in its log, or else the exception that reached us."""
    return logged_cause(log) or _shortened(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _shortened(problem: str) -> str:
    return _PYDANTIC.sub("", problem)[:600].strip()


def remedy_of(problem: str, *, serving: bool = False) -> str:
    """The remedy for an engine that didn't start, by the reason from `cause_of`; `serving`: it belongs to a server."""
    if _NO_TABLE.search(problem):
        return (
            "vLLM runs this family through transformers' code, which doesn't support our table (docs/vllm.md lists "
            f"such families): {'serve a model of another family' if serving else 'use --backend hf'}."
        )
    if _NO_PLUGIN.search(problem):
        return (
            "longeval's plugin wasn't loaded, or failed, in vLLM's process: -v shows its log; install longeval into "
            f"the same Python, and unset {PLUGINS_VARIABLE}."
        )
    if serving and "Address already in use" in problem:
        return "Another server took the port while this one was starting. Use another --port."
    several = "--vllm-arg tensor_parallel_size=2 on several GPUs"
    rest = f"{several}, or a shorter --length." if serving else f"{several}, shorter --lengths, or --backend hf."
    if is_memory(problem) or "decrease `--gpu-memory-utilization`" in problem:  # other programs hold the memory
        return (
            "Let it use less memory: --vllm-arg gpu_memory_utilization=0.8 (on a CPU: VLLM_CPU_KVCACHE_SPACE, in "
            f"GiB), --vllm-arg max_num_seqs=32, --vllm-arg max_num_batched_tokens=1024; or {rest}"
        )
    if _CACHE_TOO_SMALL.search(problem) and "Input should be" not in problem:  # not pydantic's message about an option
        return (
            "Let it use more memory: --vllm-arg gpu_memory_utilization=0.95 (on a CPU: VLLM_CPU_KVCACHE_SPACE, in "
            f"GiB), {rest}"
        )
    return f"-v shows vLLM's log. Change --vllm-arg{'' if serving else ', or use --backend hf'}."


def is_memory(problem: str) -> bool:
    """Whether the reason is that memory ran out."""
    return _OUT_OF_MEMORY.search(problem) is not None


@contextlib.contextmanager
def _insistent_interrupt() -> Iterator[None]:
    """Makes Ctrl-C end the start of an engine.

    If vLLM 0.32 gets a KeyboardInterrupt while it waits for the engine's process, it ends that process and then waits
    ten minutes for its first message. So the interrupt is repeated until vLLM stops.
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
    """A thread that notices when an engine dies, and then ends all waiting for its answers.

    vLLM 0.32 notices that the engine's process was killed (such as by the kernel, when memory runs out) and marks the
    engine as dead, but its synchronous client waits for the next answer forever.

    Args:
        core: vLLM's client of the engine (`LLM.llm_engine.engine_core`). One that runs in this process isn't watched.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._over = threading.Event()
        if hasattr(core, "resources") and hasattr(core, "outputs_queue"):
            threading.Thread(target=self._watch, name="longeval-engine-watch", daemon=True).start()

    def stop(self) -> None:
        """Stops watching, before the engine is shut down."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            if self._core.resources.engine_dead:
                self._wake()
                return

    def _wake(self) -> None:
        """Raises EngineDeadError in all calls that wait for an answer, also in those that begin to wait now."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._core.outputs_queue.put_nowait(EngineDeadError())
        end = time.monotonic() + 2 * _EVERY_S
        while time.monotonic() < end:
            for future in list(self._core.utility_results.values()):
                if not future.done():
                    with contextlib.suppress(Exception):  # it may have been answered meanwhile
                        future.set_exception(EngineDeadError())
            self._over.wait(_EVERY_S)

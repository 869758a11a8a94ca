"""Starts and stops vLLM's engine, so that no process of it outlives its use."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from longeval.backends.base import BackendError
from longeval.backends.vllm.log import EngineLog, cause_of, engine_log, remedy_of

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
"""How often is looked whether an engine still lives."""


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

    def cause_of_death(self, error: BaseException) -> str:
        """Why it died, as far as its log says."""
        logged = self._log.since(self._begin)
        logger.debug("vLLM's log:\n%s", logged)
        cause = cause_of(error, logged)
        if cause.startswith(type(error).__name__):  # vLLM's own words point to a trace that isn't there
            return "its process ended without a word (killed, perhaps by the system for want of memory)"
        return cause

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
        with _quiet_bars(), _insistent_interrupt():
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

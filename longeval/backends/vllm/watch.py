"""Wakes whoever waits for an engine whose process is gone.

vLLM 0.32 notices that the engine's process was killed (by the kernel, when memory runs out), marks the engine as dead,
and leaves its synchronous client waiting for the next answer for ever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

_EVERY_S = 0.5


class EngineWatch:
    """A thread that waits for an engine's death.

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

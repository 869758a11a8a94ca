"""The log of vLLM's engines: why one didn't start or died, and what to do about it.

vLLM runs the engine in a process of its own, whose exceptions reach us only as "see root cause above"; the cause is in
its log, which therefore goes to a file. Results on stdout stay clean that way too: vLLM logs to stdout by default.
"""

from __future__ import annotations

import logging
import os
import re

from longeval.backends.vllm.family import remedy_for_family
from longeval.backends.vllm.plugin import LOG_VARIABLE
from longeval.files import lasting_folder

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
"""Levels of lines that name an exception, perhaps, but nothing that ended anything."""

_OVER = re.compile(r"free memory|out of memory|can't allocate|allocate memory|MemoryError", re.IGNORECASE)
"""More was taken than there is."""

_PYDANTIC = re.compile(r"\s*\[type=\w+, input_value=.*$")
"""What follows the sentence that says what is wrong with an option's value."""

_UNDER = re.compile(r"KV cache|cache blocks|memory", re.IGNORECASE)
"""What is left for the cache is too little."""


class EngineLog:
    """A file that vLLM logs into, in this process and, told by the environment, in those that it starts."""

    def __init__(self) -> None:
        self.path = os.path.join(lasting_folder(), "vllm.log")
        os.environ[LOG_VARIABLE] = self.path
        # vLLM's own settings would write to stdout, where results go.
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        # A forked engine would inherit locks and threads of a process that has worked with torch already.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
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


_log: EngineLog | None = None


def engine_log() -> EngineLog:
    """The log of this process's engines; before vLLM is first imported."""
    global _log
    if _log is None:
        _log = EngineLog()
    return _log


def cause_of(error: BaseException, log: str) -> str:
    """Why an engine didn't start, in one line: the first exception in its log that isn't about another one."""
    for line in log.splitlines():
        found = _CAUSE.search(line)
        if not found or _REMARK.search(line[: found.start()]):
            continue
        if not any(wrapper in found[2] for wrapper in _WRAPPERS):
            return _shortened(f"{found[1].rpartition('.')[2]}: {found[2].strip()}")
    text = " ".join(str(error).split())
    return _shortened(f"{type(error).__name__}: {text}")


def _shortened(problem: str) -> str:
    """One line without what pydantic adds to its own: types, inputs, an address."""
    return _PYDANTIC.sub("", problem)[:600].strip()


def remedy_of(problem: str, *, serving: bool = False) -> str:
    """What to do about an engine that didn't start, for `serve` or for commands that have another backend."""
    if (known := remedy_for_family(problem, serving=serving)) is not None:
        return known
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

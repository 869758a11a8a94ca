"""Executors carry out work and yield its outcomes. The local executor does so in this process."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

from longeval.backends.base import BackendError, OutOfMemoryError
from longeval.errors import WriteError
from longeval.run.host import Host
from longeval.run.study import Outcome, Plan, Work, failed

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Carries out work. It is used in a `with` block, after which nothing of it runs any more."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...

    def outcomes(self, plan: Plan, work: Sequence[Work], host: Host) -> Generator[Outcome]:
        """Carries out work of a plan; yields an outcome for every cell as it finishes, in any order.

        What `host.claim` does not give is left out: another process has computed it, or does so now.
        """
        ...


class LocalExecutor:
    """Carries out work in this process, one after another."""

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def outcomes(self, plan: Plan, work: Sequence[Work], host: Host) -> Generator[Outcome]:
        """See `Executor`."""
        for one in work:
            mine = host.claim(one)
            if mine is not None:
                yield from attempt(mine, host)


def attempt(work: Work, host: Host) -> Iterator[Outcome]:
    """Carries out one work. A cell that can't be computed gets a failed record with the reason.

    If memory runs out, the work goes on with `Work.smaller`, and the other cells fail.

    Raises:
        WriteError: The run folder can't be written.
    """
    left: Work | None = work
    while left is not None:
        done: set[str] = set()
        reason, error, rest = "", None, None
        try:
            for outcome in left.run(host):
                done.add(outcome.cell)
                yield outcome
        except WriteError:
            raise
        except BackendError as problem:
            reason, error = str(problem), problem
        except (OutOfMemoryError, MemoryError) as problem:
            rest = left.smaller()
            reason = left.no_memory(str(problem) or type(problem).__name__)
        except Exception as problem:
            # A vanished file, a model that fails at this length, or a bug: these cells fail, and the run goes on.
            logger.debug("%s", problem, exc_info=True)
            reason = f"{type(problem).__name__}: {problem}"
        # After the except blocks, because the exception keeps the failed pass's tensors in memory.
        kept = done | {cell.id for cell in (rest.cells if rest else ())}
        for cell in left.cells:
            if cell.id not in kept:
                yield failed(cell, reason, host.device, error)
        left = rest.without(done) if rest is not None and done else rest

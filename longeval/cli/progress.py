"""How a run tells what it does: a live line with time left on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from longeval.cli.terminal import console
from longeval.printable import printable
from longeval.run.overview import count
from longeval.values import format_duration, format_length

if TYPE_CHECKING:
    from longeval.store.records import Record

PLAIN_EVERY_S = 30.0
"""Seconds between plain lines of a long group."""

QUICK_S = 2.0
"""Seconds of planning that need no line, and between lines about it."""


class RunProgress(AbstractContextManager["RunProgress"]):
    """Implements `run.host.Progress` and, before a run, `run.study.Tell`.

    Args:
        quiet: Nothing at all.
        verbose: A line a pass too.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.num_finished = 0
        self._quiet = quiet
        self._verbose = verbose
        self._live: Any = None
        self._task: Any = None
        self._total = self._done = 0.0
        self._tokens = self._passes = self._num_passes = 0
        self._busy_s = 0.0
        self._noun = "window"
        self._details = False
        self._prepared = ""
        self._planned = threading.Event()
        self._watch: threading.Thread | None = None
        self._shown = threading.Lock()
        """Held while the live line's task changes."""
        self._last_line = self._last_pass = time.monotonic()
        self._workers: dict[str, WorkerProgress] = {}

    def __enter__(self) -> RunProgress:
        if not self._quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
            from rich.table import Column

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=10),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
                console=console(stderr=True),
                transient=True,
                expand=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_planning()
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """See `Tell`."""
        self.say(f"longeval: {text}")

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """See `Tell`. What is quick isn't told; a thread looks, since the work itself may say nothing for long."""
        now = time.monotonic()
        is_new = what != self._prepared
        if is_new:  # the time that came before it, with imports and downloads, isn't its own
            self._prepared, self._last_line = what, now
        if self._watch is None and not self._quiet:
            self._watch = threading.Thread(target=self._tell_planning, daemon=True)
            self._watch.start()
        if self._live is None:
            if now - self._last_line > PLAIN_EVERY_S:
                self.say(f"  {what}: {done:,}{f' of {total:,}' if total else ''}")
            return
        with self._shown:
            if self._task is None:  # not yet told
                return
            if is_new:
                self._live.remove_task(self._task)
                self._task = self._live.add_task(what, total=None, rate="")
            rate = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
            self._live.update(self._task, total=total or None, completed=done, rate=rate)

    def _tell_planning(self) -> None:
        """Tells what is being prepared once that has taken long: on a terminal in the live line, else in lines."""
        told = ""
        while not self._planned.wait(QUICK_S):
            if self._live is not None:
                with self._shown:
                    self._task = self._live.add_task(self._prepared, total=None, rate="")
                return
            if told != self._prepared:
                told = self._prepared
                self.say(f"  {told} …")

    def _end_planning(self) -> None:
        """Ends what `preparing` began."""
        self._planned.set()
        if self._watch is not None:
            self._watch.join()
        if self._task is not None:
            self._live.remove_task(self._task)
            self._task = None

    def begin(self, costs: Sequence[float]) -> None:
        """See `Progress`."""
        self._total, self._num_passes = sum(costs), len(costs)
        self._last_pass = time.monotonic()
        self._end_planning()
        if self._live is not None and costs:
            self._task = self._live.add_task("loading the model", total=self._total, rate="")

    def stage(self, what: str, num_passes: int, noun: str, *, details: bool = False) -> None:
        """See `Progress`."""
        self._noun, self._details = noun, details
        self._last_pass = time.monotonic()
        if self._live is not None:
            self._live.update(self._task, description=what)
        else:
            self.say(f"{what} ({count(num_passes, noun)})")

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """See `Progress`."""
        seconds = self.count_pass(tokens, cost, detail)
        self.tell_pass(f"  {self._noun} of {tokens} tokens, {detail}: {seconds:.1f} s")

    def tell_pass(self, line: str) -> None:
        """The line about a pass, with --verbose."""
        if self._verbose:
            self.say(line)

    def count_pass(self, tokens: int, cost: float, detail: str) -> float:
        """Counts a pass of this process or of a worker; returns the seconds since the last one."""
        now = time.monotonic()
        seconds, self._last_pass = now - self._last_pass, now
        self._busy_s += seconds
        # Passes that are repeated after out of memory were announced once.
        self._done = min(self._done + cost, self._total)
        self._tokens += tokens
        self._passes += 1
        self._num_passes = max(self._num_passes, self._passes)
        left = f"{self._left()} · {detail}" if self._details else self._left()
        speed = self._tokens / max(self._busy_s, 1e-9)
        rate = f"{self._noun} {self._passes}/{self._num_passes} · {speed:,.0f} tokens/s · {left}"
        if self._live is not None:
            short = f"{self._passes}/{self._num_passes} · {speed:,.0f} tok/s · {left}"
            self._live.update(self._task, completed=self._done, rate=short)
        elif now - self._last_line > PLAIN_EVERY_S:
            self.say(f"  {self._done / self._total:.0%} · {rate}")
        return seconds

    def of_worker(self, name: str) -> WorkerProgress:
        """See `Progress`."""
        if name not in self._workers:
            self._workers[name] = WorkerProgress(self, name)
            if self._live is not None:
                self._live.update(self._task, description=count(len(self._workers), "worker"))
        return self._workers[name]

    def end_worker(self, name: str) -> None:
        """See `Progress`."""
        ended = self._workers.pop(name, None)
        if ended is not None and self._live is not None:
            self._live.remove_task(ended.row)
            self._live.update(self._task, description=count(len(self._workers), "worker"))

    def seconds_left(self) -> float | None:
        """See `Progress`."""
        return self._busy_s * (self._total - self._done) / self._done if self._done else None

    def finished(self, record: Record) -> None:
        """See `Progress`."""
        self.num_finished += 1
        cell = f"{record.model} {record.pe} {format_length(record.length)}"
        if record.task or record.data:
            cell += f" on {record.task or record.data}"
        told_apart = [record.params[name] for name in ("regime", "augment") if record.params.get(name)]
        if told_apart:
            cell += f" ({told_apart[0]}, seed {record.params['seed']})"
        if record.status == "ok":
            assert record.value is not None
            self.say(f"  {cell}: {record.metric} {record.value:.4g}")
        else:
            self.say(f"  {cell}: {record.status}: {record.error}")

    def say(self, text: str) -> None:
        """One line on stderr, above the live line."""
        self._last_line = time.monotonic()
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f"{format_duration(seconds)} left"

    def set_noun(self, noun: str) -> None:
        """Sets what a pass of the workers serves."""
        self._noun = noun

    def row(self, text: str) -> Any:
        """A further row of the live line; None where there is none."""
        return None if self._live is None else self._live.add_task(text, total=None, rate="")

    def update_row(self, row: Any, **changes: Any) -> None:
        """Changes a row; fields as in rich's `Progress.update`."""
        self._live.update(row, **changes)


class WorkerProgress:
    """A `Progress` of one of several workers: a row of its own on a terminal; its passes count in those of the run.

    Args:
        whole: The progress of the run.
        name: The worker's name.
    """

    def __init__(self, whole: RunProgress, name: str) -> None:
        self._whole = whole
        self._name = name
        self.row = whole.row(name)
        self._passes = self._num_passes = 0
        self._noun = "window"
        self._details = False

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._whole.note(f"{self._name}: {text}")

    def begin(self, costs: Sequence[float]) -> None:
        """See `Progress`. The run has told all costs."""

    def stage(self, what: str, num_passes: int, noun: str, *, details: bool = False) -> None:
        """See `Progress`."""
        self._passes, self._num_passes, self._noun, self._details = 0, num_passes, noun, details
        self._whole.set_noun(noun)
        if self.row is None:
            self._whole.say(f"{self._name}: {what} ({count(num_passes, noun)})")
        else:
            self._whole.update_row(self.row, description=f"{self._name}: {what}", total=num_passes, completed=0)

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """See `Progress`."""
        self._passes += 1
        if self.row is not None:
            rate = f"{self._passes}/{self._num_passes}" + (f" · {detail}" if self._details else "")
            self._whole.update_row(self.row, completed=self._passes, rate=rate)
        self._whole.count_pass(tokens, cost, detail)
        # Without seconds: workers tell of several passes at a time.
        self._whole.tell_pass(f"  {self._name}: {self._noun} of {tokens} tokens, {detail}")

    def finished(self, record: Record) -> None:
        """See `Progress`. The run tells it."""

    def of_worker(self, name: str) -> WorkerProgress:
        """See `Progress`."""
        return self

    def end_worker(self, name: str) -> None:
        """See `Progress`."""

    def seconds_left(self) -> float | None:
        """See `Progress`."""
        return self._whole.seconds_left()

"""Jinja templates, which come with tasks and models: rendered in jinja's sandbox, bounded in time and memory.

lm-eval (0.4.13, utils.py) renders the templates of a task file without a sandbox: there a template reaches all of
Python, `os.system` included. transformers renders chat templates in a sandbox, but lets them compute without end.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

SECONDS = 10.0
"""Time of computing that a template may take. The longest texts take a tenth of a second."""

MEMORY_BYTES = 512 << 20
"""Memory that a template may take beyond what the process has."""

CHARACTERS = 1 << 24
"""Most characters of a text that a template makes: a window of a million tokens. A tokenizer needs a few hundred bytes
for each where they are all alike."""


class TemplateError(Exception):
    """A template of a task that can't be rendered."""

    def __init__(self, template: str, reason: str) -> None:
        super().__init__(reason)
        self.template = template
        self.sample: int | None = None
        """The sample that it was rendered for, where that is known."""


class _LimitError(Exception):
    """A template went beyond its bounds."""


class _Alarm(BaseException):
    """Raised by the timer. A BaseException, because jinja swallows exceptions while it folds constants."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends what is computed inside the block with an exception once it takes too long, or too much memory.

    The time is only bounded in the main thread, where signals arrive, not on Windows, and the memory on Linux.
    """
    with _bounded_memory(), _bounded_time():  # the alarm is off before the limit of memory is put back
        yield


def within_bounds(render: Callable[[], str]) -> str:
    """The text that `render` makes, bounded in time, memory and length; raises Exception where it is none."""
    with bounded():
        text = render()
        if len(text) > CHARACTERS:
            raise _LimitError(f"its text has more than {CHARACTERS:,} characters")
        text.encode()  # half of a surrogate pair is no text
    return text


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    started = time.thread_time()

    def end(number: int, frame: FrameType | None) -> None:
        if time.thread_time() - started >= SECONDS:  # the timer counts what other threads compute too
            raise _Alarm

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)  # again, should a destructor have swallowed it
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Alarm:
        raise _LimitError(f"it isn't done after {SECONDS:g} s") from None
    finally:
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = [held + MEMORY_BYTES, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(most), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def reason_of(error: Exception) -> str:
    """Why a template couldn't be rendered, in one line."""
    import jinja2

    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"
    text = " ".join(str(error).split())[:300]
    named = isinstance(error, _LimitError | jinja2.TemplateError) and text
    return text if named else f"{type(error).__name__}: {text}".removesuffix(": ")


def use_sandbox() -> None:
    """Has lm-eval render all templates of task files here, for the rest of the process."""
    from lm_eval import utils

    utils.env = _environment()
    utils.apply_template = apply_template


def apply_template(template: str, doc: Mapping[str, Any]) -> str:
    """The text that a template makes of a sample; stands in for lm-eval's function of this name.

    Raises:
        TemplateError: It can't be rendered, whatever the reason.
    """
    _environment()  # what it imports isn't the template's
    try:
        return within_bounds(lambda: _compiled(template).render(doc))
    except Exception as error:
        raise TemplateError(template, reason_of(error)) from error


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@functools.cache
def _environment() -> Any:
    """lm-eval's environment, in the sandbox."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(utils.env.filters)
    return environment

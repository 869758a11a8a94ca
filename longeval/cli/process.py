"""The edges of the process: Ctrl-C and SIGTERM at any moment, and standard streams that are closed or full.

Characters that a stream's encoding lacks are written as escapes.

`guard` is called once, before anything else is imported; commands then write to stdout and stderr as ever.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from longeval.errors import WriteError, reason

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_SHOW_CURSOR = b"\x1b[?25h"


class GuardedStream(io.TextIOWrapper):
    """Standard output or error, of which the reader may go away and the disk may fill up.

    Characters that its encoding lacks are written as escapes. After an error everything goes to the null device.
    """

    absent = False
    """Whether it was closed when the program started."""
    reader_gone = False
    """Whether it is a pipe that nobody reads any more, as after `| head`."""

    def write(self, text: str) -> int:
        """See `io.TextIOWrapper`; raises WriteError if standard output can't be written."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """See `io.TextIOWrapper`; raises WriteError if standard output can't be written."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Writes to the null device from now on; only a full or broken standard output is worth a message."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        super().flush()
        if error.errno == errno.EPIPE:
            self.reader_gone = True
        elif self.fileno() == 1:
            raise WriteError(
                f"standard output can't be written ({reason(error)})",
                "Make room and repeat the command; cells that were computed are stored.",
            ) from error


def guard() -> None:
    """Prepares the standard streams and the handling of Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    # A standard stream that is closed leaves its number to the next file that is opened, which libraries then write to.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stdout = _guarded(sys.stdout, 1)
    sys.stderr = _guarded(sys.stderr, 2)


def raise_on_interrupt() -> None:
    """Lets Ctrl-C or SIGTERM end the command in order, as KeyboardInterrupt; a second one ends the process at once."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def leave_on_interrupt() -> None:
    """Lets Ctrl-C or SIGTERM end the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, leave)


def interrupted_status() -> int:
    """The exit status of a command that was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _received[-1] if _received else INTERRUPTED


def leave(number: int | None = None, _frame: FrameType | None = None) -> NoReturn:
    """Ends an interrupted process at once; stored files are whole at any moment. Also a handler of signals."""
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os._exit(interrupted_status() if number is None else 128 + number)


_received: list[int] = []
"""Numbers of the signals that interrupted the command."""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(number)
    signal.signal(number, leave)
    raise KeyboardInterrupt


def _guarded(stream: object, descriptor: int) -> GuardedStream:
    """A guarded stream in place of a standard one; None is one that was closed."""
    if not isinstance(stream, io.TextIOWrapper):
        guarded = GuardedStream(os.fdopen(descriptor, "wb", closefd=False), encoding="utf-8")
        guarded.absent = True
        return guarded
    encoding, line_buffering, write_through = stream.encoding, stream.line_buffering, stream.write_through
    return GuardedStream(
        stream.detach(),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=line_buffering,
        write_through=write_through,
    )

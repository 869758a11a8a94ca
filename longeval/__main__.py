"""The program: `longeval`, and the same as `python -m longeval`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point of the console script. While the rest is imported, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a background job of a shell: it stays so
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from longeval.cli.process import guard

    guard()
    from longeval.cli.app import main as run

    run()


if __name__ == "__main__":
    main()

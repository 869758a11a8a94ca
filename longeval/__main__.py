"""Entry point of the program, for `longeval` and for `python -m longeval`."""

import os
import sys

# `python -m` searches the current folder for modules first; the console script doesn't. So the folder is removed,
# unless it is the checkout of longeval itself. PYTHONPATH stays.
if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

import signal  # imported after the current folder was removed from the path, as everything below


def main() -> None:
    """Runs the program. During the imports, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # in a shell's background job it stays ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    os.environ["PYTHONSAFEPATH"] = "1"  # child interpreters don't search the current folder either
    from longeval.cli.process import guard

    guard()
    from longeval.cli.app import main as run

    run()


if __name__ == "__main__":
    main()

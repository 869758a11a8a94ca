"""The program: `longeval`, and the same as `python -m longeval`."""

import os
import sys

# `python -m` looks for modules in the current folder first, where anything may lie; the console script doesn't. A
# checkout that the program itself comes from stays, and so does PYTHONPATH.
if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

import signal  # this and all else from where Python and its packages are installed


def main() -> None:
    """Entry point of the console script. While the rest is imported, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a background job of a shell: it stays so
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    os.environ["PYTHONSAFEPATH"] = "1"  # nor does any interpreter that is started from here on
    from longeval.cli.process import guard

    guard()
    from longeval.cli.app import main as run

    run()


if __name__ == "__main__":
    main()

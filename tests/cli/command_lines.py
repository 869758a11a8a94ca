"""Command lines made from options, and the program in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from longeval.cli.app import run_app


def command_line(*command, **options):
    """Words of a command line; an option that is True has no value, one that is None is left out."""
    words = [*command]
    for name, value in options.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, value]
    return words


def json_of(capsys, arguments):
    """What a command that ends well prints with `--json -`."""
    assert run_app([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def start_program(arguments, *python_options, **settings):
    """The program as a child that hears Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, *python_options, "-m", "longeval", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell that starts the tests in the background makes them, and so the child, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **settings,
    )

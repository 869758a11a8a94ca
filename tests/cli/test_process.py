"""The edges of the process: streams that are closed, full or narrow, and Ctrl-C; in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_lines import start_program

PROGRAM = f"{sys.executable} -m longeval"
ROPE = f"{PROGRAM} rope none,yarn --head-dim 64 --theta 10000 --native 4k --factor 2"


def shell(line, **environment):
    return subprocess.run(["bash", "-c", line], capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("line", [ROPE, f"{PROGRAM} rope --list --json -"])
def test_a_narrow_encoding_loses_no_output(encoding, line):
    done = shell(line, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    if "--json" in line:
        wide = shell(line, PYTHONUTF8="1")
        assert json.loads(text) == json.loads(wide.stdout)


@pytest.mark.parametrize("line", [ROPE, f"{ROPE} --json -"])
def test_a_full_disk_under_stdout_is_one_message(line):
    done = shell(f"{line} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"standard output" in done.stderr


def test_a_reader_who_leaves_is_no_error():
    done = shell(f"set -o pipefail; {ROPE} | true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(("line", "status"), [(ROPE, 0), (f"{ROPE} --json -", 2), (f"{PROGRAM} nonsense", 2)])
def test_closed_streams_are_no_crash(line, status):
    done = shell(f"{line} >&-")
    assert done.returncode == status
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") == (status == 2)
    assert shell(f"{line} 2>&-").stderr == b""
    assert shell(f"{line} >&- 2>&- <&-").returncode == status


def test_what_is_opened_under_a_closed_stream_gets_no_output(tmp_path):
    done = shell(f"cd {tmp_path}; {ROPE} --json table.json >&- 2>&-")
    assert done.returncode == 0
    assert len(json.loads((tmp_path / "table.json").read_text())) == 2


def test_arguments_that_are_no_text_and_a_folder_that_is_gone(tmp_path):
    done = shell(f"{PROGRAM} report $'\\xff\\xfe'")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; {sys.executable} -P -m longeval models")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"folder" in done.stderr


@pytest.mark.parametrize("again_s", [None, 0.02])
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_or_sigterm_once_or_twice_ends_with_their_status_and_no_traceback(sent, status, again_s):
    process = start_program(["posgen", "generate", "--task", "cot", "--json", "-", "--num-train", "60000"])
    assert process.stdout.readline().startswith(b"{")
    process.send_signal(sent)
    if again_s is not None:
        time.sleep(again_s)
        process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors in (b"longeval: interrupted\n", b"")


def test_ctrl_c_while_the_program_is_imported():
    """After its first modules, which Python tells of, and while those of the command line come."""
    process = start_program(["rope", "--list"], "-X", "importtime")
    for line in process.stderr:
        if b"longeval.cli.process" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors

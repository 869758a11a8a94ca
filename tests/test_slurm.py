"""The script for Slurm in docs/scale, with stand-ins for Slurm's commands that run everything on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tiny import make_text, save_tiny_llama

from longeval.store.folder import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[1] / "docs" / "scale" / "slurm.sh"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    echo "$1" >> srun.txt
    shift
done
exec "$@"
"""
"""Runs its command here, in place of all nodes that it is asked for."""
RAY = """#!/bin/bash
[[ $1 == start ]] && set -- "$@" --num-cpus=1
exec {python} -m ray.scripts.scripts "$@"
"""
"""Ray, on a node with one processor."""
PROGRAM = """#!/bin/bash
exec {python} -m {module} "$@"
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as the job of two nodes, with arguments of `longeval run`."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    own = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\nprintf 'node-1\\nnode-2\\n'\n",
        "ray": RAY.format(python=sys.executable),
        "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
        "longeval": PROGRAM.format(python=sys.executable, module="longeval"),
    }
    for name, text in own.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    save_tiny_llama(tmp_path / "tiny")
    (tmp_path / "documents.txt").write_text(make_text(4000))
    (tmp_path / "spec.yaml").write_text(
        "command: ppl\nmodel: tiny\npe: [none, yarn, pi]\nlengths: [64, 128]\ndata: documents.txt\ndtype: float32\n"
    )
    number = os.getpid() % 10000
    sockets = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # paths of sockets are at most 107 bytes long
    variables = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "RAY_TMPDIR": sockets,
    }
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    start.sockets = sockets
    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    shutil.rmtree(sockets, ignore_errors=True)


def ray_processes(folder):
    """Processes of Ray that were started in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(folder) in words and ("raylet" in words or "gcs_server" in words):
            found.append(process)
    return found


def test_a_job_of_two_nodes_carries_out_a_request_and_ends_ray(job, tmp_path):
    process = job("spec.yaml", "--out", "run")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "2 of 2 nodes are there" in said
    cells = list(Store(str(tmp_path / "run")).cells())
    assert sorted({(cell.records[0].pe, cell.records[0].length) for cell in cells}) == [
        (pe, length) for pe in ("none", "pi", "yarn") for length in (64, 128)
    ]
    workers = {cell.records[0].provenance.worker.split()[0] for cell in cells}
    assert workers == {"worker-1", "worker-2"}
    options = (tmp_path / "srun.txt").read_text().split()
    assert {"--nodelist=node-1", "--exclude=node-1"} <= {*options}
    assert not ray_processes(job.sockets)


def test_a_wrong_request_gives_its_exit_status(job, tmp_path):
    (tmp_path / "spec.yaml").write_text("command: ppl\nmodel: nowhere\nlengths: [64]\n")
    process = job("spec.yaml")
    said, _ = process.communicate()
    assert process.returncode == 2, said
    assert not ray_processes(job.sockets)


def test_slurms_signal_ends_the_run_and_ray(job, tmp_path):
    (tmp_path / "documents.txt").write_text(make_text(400000))
    process = job("spec.yaml", "--out", "run")
    until = time.monotonic() + 200
    while not list((tmp_path / "run").glob("leases/*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert not ray_processes(job.sockets)


def test_a_node_on_which_ray_does_not_start_ends_the_job(job, tmp_path):
    (tmp_path / "bin" / "ray").write_text("#!/bin/bash\nexit 1\n")
    process = job("spec.yaml")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Ray has not started on node-1" in said

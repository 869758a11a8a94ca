"""Work in several processes: the same records as in one, and nothing lost or done twice when some are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from longeval.store.folder import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

HERE = Path(__file__).parent
METHODS = "none,pi,ntk,yarn,dynamic_ntk,resonance,resonance_pi,resonance_ntk,resonance_yarn,abf"
LENGTHS = "16,17,18,19,20,21"
SIXTY = ("naps", "--pe", METHODS, "--lengths", LENGTHS)


class Program:
    """The program with the study of naps, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(HERE / "napping.py"), *arguments],
            cwd=self.folder, env=os.environ | {"PYTHONPATH": str(HERE), "RAY_ADDRESS": ""} | environment,
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, error = process.communicate()
        return process.returncode, out, error

    def starts(self, trace: str = "trace.txt") -> list[tuple[str, int]]:
        """Cell and process of each cell that was begun."""
        path = self.folder / trace
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(cell, int(process)) for cell, process, _ in map(str.split, lines)]

    def values(self, run: str) -> dict[tuple[str, int], float | None]:
        files = (self.folder / run / "cells").glob("*.json")
        records = [record for path in files for record in json.loads(path.read_text())["records"]]
        return {(record["pe"], record["length"]): record["value"] for record in records}


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


@pytest.fixture
def cluster():
    """Two nodes on this machine, with a processor each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def same_but_for_who_computed_it(records):
    for record in records:
        record["elapsed_s"] = record["peak_memory_bytes"] = None
        for name in ("date", "command", "worker"):
            record["provenance"].pop(name, None)
    return sorted(records, key=lambda record: record["cell"])


def is_running(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)
    return found


def test_several_workers_give_the_records_of_one_process(program):
    status, out, error = program.run(*SIXTY, "--out", "one", "--json", "-")
    assert status == 0, error
    status, several, error = program.run(*SIXTY, "--out", "two", "--workers", "2", "--json", "-")
    assert status == 0, error
    here, there = json.loads(out), json.loads(several)
    assert {record["provenance"]["worker"].split()[0] for record in there} == {"worker-1", "worker-2"}
    assert all("worker" not in record["provenance"] for record in here)
    assert same_but_for_who_computed_it(here) == same_but_for_who_computed_it(there)
    assert (program.folder / "two" / "logs" / "worker-1.log").read_text().strip()
    assert not (program.folder / "two" / "leases").exists() and not (program.folder / "two" / "runners").exists()
    status, _, error = program.run(*SIXTY, "--out", "two", "--workers", "2")
    assert (status, len(program.starts())) == (0, 120) and "60 stored already" in error


def test_two_nodes_with_kills_lose_nothing_and_do_nothing_twice(program, cluster):
    """Workers are killed at random, and then the raylet of the second node."""
    status, out, error = program.run(*SIXTY, "--out", "one", "--json", "-")
    assert status == 0, error
    (program.folder / "trace.txt").unlink()
    process = program.start(
        *SIXTY, "--seconds", "0.3", "--executor", "ray", "--out", "run", "--json", "-", RAY_ADDRESS=cluster.address
    )
    second = cluster.list_all_nodes()[1]
    rng = random.Random(0)
    for least in (4, 12, 20):
        wait_for(lambda least=least: len(program.starts()) >= least)
        time.sleep(rng.uniform(0, 0.3))
        _, victim = program.starts()[-1]
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(program.starts()) >= 30)
    cluster.remove_node(second, allow_graceful=False)
    several, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert same_but_for_who_computed_it(json.loads(out)) == same_but_for_who_computed_it(json.loads(several))
    # Each kill costs the cell that was being computed, and the node's end those of its workers.
    times = Counter(cell for cell, _ in program.starts())
    assert len(times) == 60 and sum(times.values()) - 60 <= 3 + 2


def test_a_unit_that_kills_its_workers_fails_with_the_reason(program):
    status, out, error = program.run(
        "naps", "--pe", "none,pi", "--lengths", "16,17,18", "--fatal", "17", "--workers", "2", "--out", "run",
        "--json", "-",
    )  # fmt: skip
    assert status == 3, error
    found = {(record["pe"], record["length"]): record["status"] for record in json.loads(out)}
    assert Counter(found.values()) == {"ok": 2, "failed": 4} and found["none", 16] == found["pi", 16] == "ok"
    reasons = {record["error"] for record in json.loads(out) if record["status"] == "failed"}
    assert all(reason.startswith("3 workers died") for reason in reasons)
    assert Counter(cell for cell, _ in program.starts()).most_common(1)[0][1] == 3


def test_a_driver_that_is_killed_leaves_no_process_and_the_same_command_goes_on(program):
    asked = ("naps", "--pe", "none,pi", "--lengths", LENGTHS, "--seconds", "0.5", "--workers", "2", "--out", "run")
    process = program.start(*asked)
    wait_for(lambda: len(program.starts()) >= 6)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    workers = [child for child in children if child.pid in {process for _, process in program.starts()}]
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_running, workers)), 10)
    stored = {path.stem for path in (program.folder / "run" / "cells").glob("*.json")}
    assert 0 < len(stored) < 12
    status, _, error = program.run(*asked)
    assert status == 0, error
    assert len(program.values("run")) == 12 and f"{len(stored)} stored already" in error
    times = Counter(cell for cell, _ in program.starts())
    assert all(times[cell] == 1 for cell in stored)
    wait_for(lambda: not any(map(is_running, children)), 100)  # Ray's agents look for their parent once a minute


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_workers_and_keeps_what_is_finished(program, number):
    asked = ("naps", "--pe", "none,pi", "--lengths", LENGTHS, "--seconds", "0.5", "--workers", "2", "--out", "run")
    process = program.start(*asked)
    wait_for(lambda: len(program.values("run")) > 1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in error
    assert "stored in run" in error
    wait_for(lambda: not any(map(is_running, children)), 20)
    assert not (program.folder / "run" / "leases").exists()
    assert 0 < len(program.values("run")) < 12


def test_results_go_into_object_storage(program, s3_bucket):
    status, _, error = program.run(*SIXTY, "--out", f"{s3_bucket}/run", "--workers", "2")
    assert status == 0, error
    store = Store(f"{s3_bucket}/run")
    assert len(store.names("cells")) == len(store.names("naps")) == 60
    assert store.names("leases") == store.names("runners") == []
    status, _, error = program.run(*SIXTY, "--out", f"{s3_bucket}/run", "--workers", "2")
    assert status == 0 and "60 stored already" in error


def test_a_failed_cell_is_a_record_and_the_others_go_on(program):
    status, out, _ = program.run("naps", "--pe", "none,pi", "--lengths", "12,13,14", "--workers", "2", "--json", "-")
    found = Counter((record["length"], record["status"]) for record in json.loads(out))
    assert status == 3
    assert found == {(12, "ok"): 2, (13, "failed"): 2, (14, "failed"): 2}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("--executor", "ray"), {"RAY_ADDRESS": "127.0.0.1:9"}),
        (("--executor", "ray"), {"RAY_ADDRESS": "ray://127.0.0.1:10001"}),
        (("--workers", "2", "--gpus-per-worker", "2"), {}),
        (("--workers", "0"), {}),
        (("--workers", "2", "--gpus-per-worker", "1.5"), {}),
        (("--gpus-per-worker", "1"), {}),
        (("--executor", "slurm"), {}),
        (("--executor", "ray"), {"WORLD_SIZE": "2"}),
    ],
)
def test_a_wrong_request_is_refused_and_writes_nothing(program, arguments, environment):
    status, out, error = program.run(
        "naps", "--pe", "none", "--lengths", "16", "--out", "run", *arguments, **environment
    )
    assert (status, out) == (2, ""), error
    assert "Traceback" not in error and len(error.strip().splitlines()) <= 2
    assert not (program.folder / "run").exists() and not program.starts()


def test_a_run_folder_that_a_node_does_not_reach_is_refused(program, cluster, tmp_path):
    """memory:// is the nearest thing on one machine: each process has its own."""
    status, _, error = program.run(*SIXTY, "--executor", "ray", "--out", "memory://run", RAY_ADDRESS=cluster.address)
    assert status == 2 and "memory://run" in error and not program.starts()


def test_a_machine_that_sees_another_request_is_refused(program):
    status, _, error = program.run(
        "naps", "--pe", "none,pi", "--lengths", "16", "--workers", "2", "--out", "run", NAPS_OF_WORKERS="1"
    )
    assert status == 2 and "other cells" in error, error
    assert not (program.folder / "run").exists()

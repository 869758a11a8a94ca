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
from posgen_requests import TINY
from tiny import make_text

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

    def starts(self) -> list[tuple[str, int]]:
        """Cell and process of each cell that was begun."""
        return [(cell, int(process)) for cell, process, _ in self._trace()]

    def gpus(self) -> dict[str, str]:
        """Process → the GPUs that it saw."""
        return {process: gpus for _, process, gpus in self._trace()}

    def _trace(self) -> list[list[str]]:
        path = self.folder / "trace.txt"
        return [line.split() for line in path.read_text().split("\n")[:-1]] if path.exists() else []

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


def wait_for(condition, seconds=150.0):
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


def test_a_worker_does_units_that_need_less_memory_than_its_first(program):
    status, out, error = program.run(
        "naps", "--pe", "none", "--lengths", LENGTHS, "--apart", "--workers", "2", "--out", "run", "--json", "-"
    )
    assert status == 0, error
    names = {record["provenance"]["worker"].split()[0] for record in json.loads(out)}
    assert len(json.loads(out)) == 6 and names <= {"worker-1", "worker-2"}


@pytest.mark.weekly  # on a busy machine, Ray may take longer to start on this cluster than the command waits for it
def test_a_cluster_without_room_is_told(program):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        process = program.start(
            "naps", "--pe", "none", "--lengths", "16", "--executor", "ray", "--out", "run",
            RAY_ADDRESS=cluster.address, NAPS_ROOM_S="1",
        )  # fmt: skip
        lines = [process.stderr.readline()]
        while lines[-1] and "no worker has started" not in lines[-1]:
            lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        cluster.shutdown()
    assert process.returncode == 130 and "Traceback" not in error
    assert not (program.folder / "run").exists()


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_random_kills_lose_nothing(program):
    """No unit is killed three times, since it would be given up. What was stored is never begun again."""
    lengths = ",".join(map(str, range(16, 26)))
    asked = (
        "naps",
        "--pe",
        METHODS,
        "--lengths",
        lengths,
        "--apart",
        "--seconds",
        "0.4",
        "--workers",
        "6",
        "--out",
        "run",
    )
    process = program.start(*asked)
    rng, kills = random.Random(0), Counter()
    begun_when_stored = {}
    while sum(kills.values()) < 100:
        assert process.poll() is None, process.communicate()[1]
        times = Counter(cell for cell, _ in program.starts())
        for path in (program.folder / "run" / "cells").glob("*.json"):
            begun_when_stored.setdefault(path.stem, times[path.stem])
        at_work = {victim: cell for cell, victim in program.starts() if psutil.pid_exists(victim)}
        victims = [one for one, cell in at_work.items() if kills[cell] < 2 and cell not in begun_when_stored]
        if victims:
            victim = rng.choice(victims)
            os.kill(victim, signal.SIGKILL)
            kills[at_work[victim]] += 1
        time.sleep(rng.uniform(0, 0.2))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert program.values("run") == {(pe, n): float(n * len(pe)) for pe in METHODS.split(",") for n in range(16, 26)}
    times = Counter(cell for cell, _ in program.starts())
    assert all(times[cell] == begun for cell, begun in begun_when_stored.items())


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


def test_perplexity_and_tasks_are_the_same_in_workers(tiny_llama, documents, tmp_path):
    """The real program and studies; two requests in one folder."""
    model = ("--model", str(tiny_llama), "--pe", "none,yarn,dynamic_ntk,resonance_yarn", "--dtype", "float32")
    tasks = ("tasks", *model, "--tasks", "passkey", "--lengths", "256,512", "--limit", "4")
    ppl = ("ppl", *model, "--lengths", "32,64,128", "--data", str(documents), "--protocol", "sliding", "--stride", "16")

    def run(*arguments):
        command = [sys.executable, "-m", "longeval", *arguments, "--json", "-", "--quiet"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return json.loads(done.stdout)

    for request in (ppl, tasks):
        here, there = run(*request, "--out", "one"), run(*request, "--out", "two", "--workers", "2")
        assert all(record["status"] == "ok" for record in here)
        assert same_but_for_who_computed_it(here) == same_but_for_who_computed_it(there)


def test_a_training_whose_worker_is_killed_goes_on_from_its_checkpoint(tiny_llama, tmp_path):
    (tmp_path / "tiny").symlink_to(tiny_llama)
    (tmp_path / "train.txt").write_text(make_text(2000, seed=0))
    asked = (
        "finetune", "--model", "tiny", "--pe", "yarn,pi", "--length", "256", "--window", "64", "--augment", "pose",
        "--steps", "60", "--batch-size", "2", "--lr", "1e-3", "--dtype", "float32", "--data", "train.txt", "--no-eval",
        "--checkpoint-every", "1", "--json", "-",
    )  # fmt: skip

    def start(*more):
        return subprocess.Popen(
            [sys.executable, "-m", "longeval", *asked, *more], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    here, error = start("--out", "one").communicate()
    process = start("--out", "two", "--workers", "2")
    wait_for(lambda: list((tmp_path / "two").glob("checkpoints/*/step-*")), 200)
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "Worker.carry_out" in " ".join(child.cmdline())).kill()
    there, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    digests = [
        {record["pe"]: record["params"]["trained_weights"] for record in json.loads(one)} for one in (here, there)
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 2
    # The killed worker stored nothing. Its training went to a new worker, or to the other one where that was free.
    workers = {record["provenance"]["worker"].split()[0] for record in json.loads(there)}
    assert len(workers & {"worker-1", "worker-2"}) < 2


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


@pytest.mark.parametrize(
    ("flags", "expected"), [((), ["0", "1", "2", "3"]), (("--gpus-per-worker", "2"), ["0,1", "2,3"])]
)
def test_each_worker_has_gpus_of_its_own(program, flags, expected):
    """Ray only counts GPUs here, it has none; what workers see is what it gives them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 4, "include_dashboard": False})
    try:
        status, _, error = program.run(
            *SIXTY, "--seconds", "0.3", "--executor", "ray", "--out", "run", *flags, RAY_ADDRESS=cluster.address
        )
    finally:
        cluster.shutdown()
    assert status == 0, error
    assert sorted(program.gpus().values()) == expected


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


def test_fresh_keeps_what_workers_have_trained_in_a_new_folder(tmp_path):
    numbers = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name not in ("tasks", "pe")]

    def trained(out, *more):
        command = [sys.executable, "-m", "longeval", "posgen", "train", "--task", "cot", "--pe", "none,yarn", *numbers]
        subprocess.run([*command, "--fresh", "--out", out, *more], cwd=tmp_path, capture_output=True, check=True)
        return {path.name for path in (tmp_path / out / "weights").iterdir()}

    assert trained("one") == trained("two", "--workers", "2")

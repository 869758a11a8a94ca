"""A Ray cluster that a command starts on this machine or joins: its nodes, and whether they reach the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import longeval
from longeval.errors import LongEvalError, reason
from longeval.run.worker import Home
from longeval.store.folder import Store

ANSWER_S = 5.0
"""Seconds that the address of a cluster has to answer."""
CHECK_S = 120.0
"""Seconds that each node has to read and write a file of the run folder; its first process starts within them."""
OBJECT_STORE_BYTES = 256 << 20
"""Ray's memory for objects where it starts here: outcomes on their way, which are small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    """Ray's id."""
    name: str
    cpus: float
    gpus: float
    memory: int
    """Bytes that Ray gives to its tasks."""
    gpu_memory: int | None = None
    """Bytes of the smallest of its GPUs; None where it has none that torch sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Ray's nodes, and how they are to be used."""

    nodes: tuple[Node, ...]
    workers: int | None
    """Most workers; None: as many as Ray finds room for."""
    gpus_per_worker: float | None
    """GPUs of each worker; None: what its work is estimated to need."""


def installed() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


@contextlib.contextmanager
def ray_cluster(
    store: Store, *, join: bool, workers: int | None = None, gpus_per_worker: float | None = None
) -> Iterator[Cluster]:
    """Starts Ray on this machine, or joins the cluster that RAY_ADDRESS names; ends what it began after the block.

    Every node must reach the run folder: it reads a file that this process wrote, and writes one that this process
    reads.

    Args:
        store: The run folder.
        join: Whether RAY_ADDRESS is heeded.
        workers: See `Cluster`.
        gpus_per_worker: See `Cluster`.

    Raises:
        LongEvalError: The address doesn't answer, no node has as many GPUs, or a node doesn't
            reach the run folder.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its warning about CUDA_VISIBLE_DEVICES
    import ray

    address = os.environ.get("RAY_ADDRESS") if join else None
    if address:
        _check_address(address)
    # It would print what happens to workers to stdout, which is for results. It has no public switch for that.
    ray._private.worker._worker_logs_enabled = False
    with _signals_kept():
        try:
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    num_cpus=max(workers or 1, _processors()),
                    object_store_memory=OBJECT_STORE_BYTES,
                )
        except Exception as error:  # Ray raises any kind: a plain Exception where its processes start too slowly
            if address:
                where = f"RAY_ADDRESS {address}: can't be joined"
                remedy = "See that the cluster runs: ray status. If it asks for a token, set RAY_AUTH_MODE=token."
            else:
                where, remedy = "Ray can't start on this machine", "Repeat the command when the machine is less busy."
            raise LongEvalError(f"{where} ({reason(error)})", remedy) from error
    try:
        nodes = tuple(_nodes())
        _check_gpus(nodes, gpus_per_worker)
        yield Cluster(nodes=tuple(_checked(nodes, store)), workers=workers, gpus_per_worker=gpus_per_worker)
    finally:
        ray.shutdown()


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Restores the handlers of Ctrl-C and SIGTERM, in whose place Ray puts its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _check_address(address: str) -> None:
    """Raises LongEvalError if nothing listens at the address of a cluster. Ray itself would try for many minutes."""
    if "://" in address:
        raise LongEvalError(
            f"RAY_ADDRESS {address}: Ray Client can't carry out a run",
            "Start the command on a machine of the cluster, or with `ray job submit`; there RAY_ADDRESS=HOST:PORT.",
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S):
            pass
    except (OSError, ValueError) as error:
        raise LongEvalError(
            f"RAY_ADDRESS {address}: no cluster answers there ({reason(error)})",
            "Give HOST:PORT as `ray start --head` prints it, or unset RAY_ADDRESS to start Ray on this machine.",
        ) from error


def _nodes() -> Iterator[Node]:
    """The nodes that are alive."""
    import ray

    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            yield Node(
                id=node["NodeID"],
                name=node["NodeManagerHostname"],
                cpus=have.get("CPU", 0.0),
                gpus=have.get("GPU", 0.0),
                memory=int(have.get("memory", 0)),
            )


def _check_gpus(nodes: tuple[Node, ...], gpus_per_worker: float | None) -> None:
    most = max((node.gpus for node in nodes), default=0.0)
    if gpus_per_worker is not None and gpus_per_worker > most:
        have = f"the most that one machine has is {most:g}" if most else "no machine has a GPU that Ray sees"
        raise LongEvalError(f"--gpus-per-worker {gpus_per_worker:g}: {have}", "Ask for fewer, or leave it out.")


def _checked(nodes: tuple[Node, ...], store: Store) -> Iterator[Node]:
    """The nodes with the memory of their GPUs, each of which has read and written a file of the run folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = uuid.uuid4().hex
    path = os.path.abspath(store.path) if store.is_local else store.path
    check = ray.remote(_check_node)
    try:
        store.write_text(f"{word}.txt", word)
        asked = {
            node: check.options(
                num_cpus=0,  # nor a part of a GPU: others may use all of them for hours
                max_retries=1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(path, word, node, Home(name="check"))
            for node in nodes
        }
        for node, answer in asked.items():
            try:
                problem, gpu_memory = ray.get(answer, timeout=CHECK_S)
                said = None if problem else store.read_text(f"{word}-{node.id}.txt")
                if not problem and said != word:
                    problem = "what it writes there doesn't arrive here"
            except ray.exceptions.GetTimeoutError:
                raise LongEvalError(
                    f"the machine {node.name} of the cluster did not start a first process within {CHECK_S:g} s",
                    "See what it does: ray status.",
                ) from None
            except ray.exceptions.RayError as error:
                problem, gpu_memory = reason(error).splitlines()[-1], None
            if problem:
                raise LongEvalError(
                    f"--out {store.path}: the machine {node.name} of the cluster can't use this run folder ({problem})",
                    "Choose a folder that all machines share, or object storage such as s3://BUCKET/RUN.",
                )
            yield dataclasses.replace(node, gpu_memory=gpu_memory)
    finally:
        for name in (f"{word}.txt", *(f"{word}-{node.id}.txt" for node in nodes)):
            with contextlib.suppress(Exception):
                store.remove(name)
        store.remove_empty()


def _check_node(path: str, word: str, node: Node, home: Home) -> tuple[str, int | None]:
    """Runs on a node: what is wrong there, or nothing; and the memory of its smallest GPU in bytes."""
    if longeval.__version__ != home.version:
        return f"it has longeval {longeval.__version__}, not {home.version}", None
    os.environ.update(home.environment)
    try:
        store = Store(path)
        if store.read_text(f"{word}.txt") != word:
            return "a file that was written here isn't there", None
        store.write_text(f"{word}-{node.id}.txt", word)
    except LongEvalError as error:
        return error.problem, None
    if not node.gpus:
        return "", None
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from processes that asked for none
    import torch

    if not torch.cuda.is_available():
        return "", None
    count = torch.cuda.device_count()
    return "", min(int(torch.cuda.get_device_properties(index).total_memory) for index in range(count))

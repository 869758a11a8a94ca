"""What a worker gets of its machine, for the work that it is to do."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from longeval.errors import LongEvalError
from longeval.run.cluster import Cluster, Node
from longeval.run.pool import Room, room_of
from longeval.studies.ppl.request import PplRequest

GIB = 2**30
CPU_NODE = Node(id="a", name="a", cpus=16, gpus=0, memory=64 * GIB)
GPU_NODE = Node(id="b", name="b", cpus=64, gpus=8, memory=500 * GIB, gpu_memory=80 * GIB)


def room(nodes, memory, *, workers=None, gpus_per_worker=None, units=1000, **request):
    asked = PplRequest(model=("m",), pe=("none",), lengths=(8,), **request)
    cluster = Cluster(nodes=tuple(nodes), workers=workers, gpus_per_worker=gpus_per_worker)
    return room_of(asked, cluster, SimpleNamespace(memory=lambda host: memory), host=None, units=units)


def test_without_gpus_a_worker_has_the_processors_of_a_machine_or_its_part_of_them():
    assert room([CPU_NODE], 2 * GIB) == Room(cpus=16, gpus=0, memory=2 * GIB)
    assert room([CPU_NODE], 2 * GIB, workers=4) == Room(cpus=4, gpus=0, memory=2 * GIB)
    assert room([CPU_NODE, CPU_NODE], None, workers=4) == Room(cpus=8, gpus=0, memory=0)
    assert room([CPU_NODE], None, workers=99).cpus == 1
    assert room([CPU_NODE], 900 * GIB).memory == 64 * GIB  # more than a machine has would wait for ever
    large = dataclasses.replace(CPU_NODE, id="c", cpus=32, memory=256 * GIB)
    assert room([CPU_NODE, large], 100 * GIB) == Room(cpus=16, gpus=0, memory=100 * GIB)
    head = Node(id="h", name="h", cpus=0, gpus=0, memory=GIB)
    assert room([head, CPU_NODE], 2 * GIB, workers=2) == Room(cpus=8, gpus=0, memory=2 * GIB)


def test_a_worker_does_other_work_that_needs_as_many_devices_and_no_more_memory():
    has = Room(cpus=4, gpus=0, memory=3 * GIB)
    assert has.holds(has) and has.holds(Room(cpus=4, gpus=0, memory=2 * GIB))
    assert not has.holds(Room(cpus=4, gpus=0, memory=4 * GIB))
    assert not has.holds(Room(cpus=2, gpus=0, memory=GIB)) and not has.holds(Room(cpus=4, gpus=1, memory=0))


@pytest.mark.parametrize(
    ("gib", "share"), [(71, 1.0), (37, 1.0), (36, 1 / 2), (20, 1 / 3), (17, 1 / 4), (2, 1 / 8), (200, 1.0)]
)
def test_cells_share_a_gpu_where_several_fit_into_nine_tenths_of_it(gib, share):
    found = room([GPU_NODE], gib * GIB)
    assert found.gpus == pytest.approx(share)
    at_once = int(1 / found.gpus + 1e-9) * GPU_NODE.gpus
    assert found.cpus * at_once <= GPU_NODE.cpus


@pytest.mark.parametrize(
    ("workers", "units", "share"),
    [(8, 1000, 1.0), (12, 1000, 1 / 2), (16, 1000, 1 / 2), (None, 5, 1.0), (None, 32, 1 / 4), (99, 99, 1 / 8)],
)
def test_workers_that_need_little_are_spread_over_all_gpus(workers, units, share):
    """Ray fills one GPU before it takes the next."""
    assert room([GPU_NODE], 2 * GIB, workers=workers, units=units).gpus == pytest.approx(share)


def test_gpus_as_asked_as_the_engine_splits_or_as_weights_need():
    assert room([GPU_NODE], 2 * GIB, gpus_per_worker=2) == Room(cpus=16, gpus=2, memory=0)
    assert room([GPU_NODE], 2 * GIB, gpus_per_worker=0.5).gpus == 0.5
    split = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}
    assert room([GPU_NODE], None, backend="vllm", vllm_args=split) == Room(cpus=64, gpus=8, memory=0)
    assert room([GPU_NODE], None, backend="vllm").gpus == 1  # an engine takes all of a GPU's memory
    assert room([GPU_NODE], 150 * GIB, device_map="auto").gpus == 3
    assert room([GPU_NODE], 9000 * GIB, device_map="auto").gpus == 8  # more than a machine has would wait for ever
    with pytest.raises(LongEvalError, match="8 GPUs"):
        room([dataclasses.replace(GPU_NODE, gpus=4)], None, backend="vllm", vllm_args=split)
    assert room([GPU_NODE], None, backend="vllm", vllm_args=split, gpus_per_worker=8).gpus == 8
    with pytest.raises(LongEvalError, match="--gpus-per-worker 4"):
        room([GPU_NODE], None, backend="vllm", vllm_args=split, gpus_per_worker=4)
    unknown = dataclasses.replace(GPU_NODE, gpu_memory=None)
    assert room([unknown], 2 * GIB).gpus == 1


def test_no_gpu_for_what_needs_none():
    assert room([GPU_NODE], 2 * GIB, device="cpu").gpus == 0
    assert room([CPU_NODE, GPU_NODE], 60 * GIB) == Room(cpus=8, gpus=1, memory=0)
    server = {"backend": "openai", "base_url": "http://localhost/v1", "served_model": "m"}
    assert room([GPU_NODE], None, **server).gpus == 0

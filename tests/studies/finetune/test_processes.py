"""Several processes train the weights that one trains: DDP and FSDP2 on this machine's CPU."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from studies.finetune.tiny_training import batches, program

from longeval.errors import LongEvalError
from longeval.studies.finetune.processes import Processes, check_shared

# `accelerate launch --cpu --num_processes 2` starts one process; torchrun is what it calls for several GPUs.
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP = CPU | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LONGCE = {"loss": "longce", "loss_args": {"longce": {"context": 8, "step": 4}}}


@pytest.mark.slow
@pytest.mark.parametrize("environment", [CPU, FSDP], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("changes", [{}, LONGCE, {"lora_plus": True}], ids=["full", "longce", "lora"])
def test_two_processes_train_as_one(tmp_path, environment, changes):
    paths = [str(tmp_path / name) for name in ("a", "a.safetensors", "b", "b.safetensors")]
    settings = (json.dumps({"steps": 3} | changes), "0")
    one = program(*paths[:2], "0", *settings)
    assert one.returncode == 0, one.stderr
    both = program(*paths[2:], "0", *settings, launcher=LAUNCHER, **environment)
    assert both.returncode == 0, both.stderr
    assert "processes: 2" in both.stdout
    expected, found = load_file(paths[1]), load_file(paths[3])
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.allclose(weight, found[name], atol=1e-5, rtol=0), (
            name
        )  # AdamW turns rounding into a part of a step, 1e-2
    if "lora_plus" in changes:
        one_adapter, adapter = (load_file(f"{paths[at]}-adapter/adapter_model.safetensors") for at in (1, 3))
        assert one_adapter.keys() == adapter.keys()
        assert all(torch.allclose(one_adapter[name], adapter[name], atol=1e-6, rtol=0) for name in adapter)
    # What FSDP2 gathered into a checkpoint is what one process goes on from, and the other way round.
    assert (
        load_file(tmp_path / "b/step-000002/weights.safetensors").keys()
        == load_file(tmp_path / "a/step-000002/weights.safetensors").keys()
    )
    (tmp_path / "b.safetensors").unlink()
    again = program(str(tmp_path / "a"), paths[3], "0", *settings, launcher=LAUNCHER, **environment)
    assert again.returncode == 0, again.stderr
    for name, weight in load_file(paths[3]).items():
        assert torch.allclose(expected[name], weight, atol=1e-5, rtol=0), (
            name
        )  # AdamW turns rounding into a part of a step, 1e-2


def test_one_process_needs_no_launcher():
    alone = Processes()
    assert (alone.number, alone.rank, alone.is_main, alone.is_sharded) == (1, 0, True, False)
    assert alone.device("cuda") == "cuda"
    assert [list(places) for places in alone.passes(batches(5)(0), 2)] == [[0, 1], [2, 3], [4]]
    weight = torch.zeros(3)
    assert alone.gather({"w": weight})["w"].data_ptr() == weight.data_ptr()


def test_a_batch_that_can_not_be_shared_equally_is_refused():
    check_shared(6, 3)
    with pytest.raises(LongEvalError):
        check_shared(7, 3)

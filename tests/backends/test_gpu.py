"""The `hf` backend and a whole run on a GPU, against the same on the CPU. `bench.gpu` has the measurements."""

from __future__ import annotations

import pytest
from contract import check_backend
from tiny import make_text
from transformers import AutoTokenizer

from longeval.backends.hf.backend import HFBackend
from longeval.cli.progress import RunProgress
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.run.engine import run
from longeval.store.folder import Store
from longeval.studies.ppl.plan import plan_ppl

pytestmark = pytest.mark.gpu

TABLE = build_table("resonance_yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=2.0))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_backend_keeps_its_contract(tiny_llama, attn):
    model = load.load_model(resolve(str(tiny_llama)), dtype="float32", device="cuda:0", attn=attn)
    backend = HFBackend(model)
    assert backend.device.startswith("cuda")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    check_backend(backend, tokenizer, TABLE, 128, ids=range(1, tokenizer.vocab_size))


def carry_out(spec, folder):
    with RunProgress(quiet=True) as progress:
        return run(plan_ppl(spec), Store(str(folder)), progress).records


def test_a_run_gives_the_records_of_the_cpu(request_spec, tmp_path):
    cpu, cuda = (
        {
            (record.pe, record.length, record.metric): record
            for record in carry_out(
                request_spec(device=device, pe=("none", "dynamic_ntk", "resonance_yarn")), tmp_path / device
            )
        }
        for device in ("cpu", "cuda")
    )
    assert cpu.keys() == cuda.keys() and len(cpu) == 18  # 3 methods, 3 lengths, 2 metrics
    for key, expected in cpu.items():
        assert (cuda[key].status, cuda[key].rope_digest) == ("ok", expected.rope_digest)
        assert cuda[key].value == pytest.approx(expected.value, rel=1e-5)
        assert cuda[key].peak_memory_bytes > 0


def test_memory_that_runs_out_costs_the_cells_that_need_it_only(request_spec, tmp_path):
    import torch

    document = tmp_path / "long.txt"
    document.write_text(make_text(20_000))
    spec = request_spec(
        device="cuda", pe=("dynamic_ntk",), lengths=(64, 16384), attn="eager", data=(str(document),), min_tokens=16384
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        # Attention over 16,384 tokens takes 4 heads × 16,384² × 4 bytes = 4 GiB, several times.
        torch.cuda.set_per_process_memory_fraction(2**31 / total)
        records = carry_out(spec, tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    status = {record.length: record.status for record in records}
    assert status == {64: "ok", 16384: "failed"}
    assert all("memory" in record.error for record in records if record.status == "failed")

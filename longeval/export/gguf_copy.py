"""Copies a GGUF with some fields set and one tensor added, and reads the copy back.

Everything else stays as it is: fields with their types, text as the bytes that it is, tensors quantised or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError

Progress = Callable[[int, int], None]
"""Gets the bytes copied so far, and the bytes in all."""

FREQUENCIES = "rope_freqs.weight"
"""The tensor of divisors, one a feature."""

_OTHER_FACTORS = (FREQUENCIES, "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Changes:
    """The differences of a copy from its original."""

    architecture: str
    numbers: Mapping[str, int | float]
    """Fields of type UINT32 (int) or FLOAT32 (float)."""
    texts: Mapping[str, str]
    divisor_F: npt.NDArray[np.float32]
    """`rope_freqs.weight`, shape (F,)."""

    @property
    def names(self) -> set[str]:
        """All fields that are set."""
        return {*self.numbers, *self.texts}


def open_gguf(path: str) -> Any:
    """A GGUFReader, its tensors mapped into memory; raises LongEvalError for a file that it can't read."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise LongEvalError(f"--model {path}: not a readable GGUF ({error})", "Fetch the file again.") from error


def field_value(reader: Any, key: str) -> Any:
    """A field's value, None where there is none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def write_copy(source: Any, changes: Changes, path: str, progress: Progress) -> None:
    """Writes the copy of an open GGUF to `path`."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    tensors = _copied_tensors(source)
    divisor_F = changes.divisor_F
    writer = GGUFWriter(path, changes.architecture, endianess=source.endianess)  # codespell:ignore endianess
    writer.data_alignment = source.alignment
    try:
        for name, field in _copied_fields(source, changes).items():
            kind = field.types[0]
            sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, _raw_value(field), kind, sub_type=sub_type)
        for name, number in changes.numbers.items():
            kind = GGUFValueType.UINT32 if isinstance(number, int) else GGUFValueType.FLOAT32
            writer.add_key_value(name, number, kind)
        for name, text in changes.texts.items():
            writer.add_key_value(name, text, GGUFValueType.STRING)
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
    """Asserts that the copy says what it should and everything else as before; returns its number of tensors."""
    copy = open_gguf(path)
    for name, number in changes.numbers.items():
        assert field_value(copy, name) == (number if isinstance(number, int) else np.float32(number)), name
    for name, text in changes.texts.items():
        assert field_value(copy, name) == text, name
    for name, field in _copied_fields(source, changes).items():
        assert _raw_value(copy.get_field(name)) == _raw_value(field), name
    tensors = {tensor.name: tensor for tensor in copy.tensors}
    assert np.array_equal(tensors.pop(FREQUENCIES).data, changes.divisor_F)
    for tensor in _copied_tensors(source):
        other = tensors.pop(tensor.name)
        assert other.tensor_type == tensor.tensor_type and list(other.shape) == list(tensor.shape), tensor.name
        assert np.array_equal(other.data.view(np.uint8), tensor.data.view(np.uint8)), tensor.name
    assert not tensors, "more tensors than there were"
    return len(copy.tensors)


def _copied_tensors(source: Any) -> list[Any]:
    """All tensors but divisors of another scaling."""
    return [tensor for tensor in source.tensors if tensor.name not in _OTHER_FACTORS]


def _copied_fields(source: Any, changes: Changes) -> dict[str, Any]:
    """All fields but those set anew, what is left of another scaling, and what the writer writes by itself.

    Empty arrays are left out as well: the writer has none, and to a reader they are the same as no field.
    """
    own = ("GGUF.", f"{changes.architecture}.rope.scaling.", f"{changes.architecture}.rope.scale_linear")
    return {
        name: field
        for name, field in source.fields.items()
        if not name.startswith(own)
        and name not in changes.names
        and name != "general.architecture"
        and _raw_value(field) != []
    }


def _raw_value(field: Any) -> Any:
    """A field's value as the writer takes it."""
    from gguf import GGUFValueType

    if field.types[-1] != GGUFValueType.STRING:
        return field.contents()
    texts = [field.parts[index].tobytes() for index in field.data]
    return texts if field.types[0] == GGUFValueType.ARRAY else texts[0]

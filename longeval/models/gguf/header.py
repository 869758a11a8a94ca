"""The metadata of a GGUF file and where its tensors lie, read in a moment.

The gguf package's own reader makes a numpy view of every token and takes 13 s for a vocabulary of 262k; here strings
in arrays are passed over, so that what a file can't be used for is known before anything long begins.

Source: ggml's file format (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError

_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of a fixed size, as `struct` calls them."""
_STRING, _ARRAY = 8, 9
_FLOATS = {0: "<f4", 1: "<f2"}
"""Tensor types that are plain numbers, as numpy calls them."""
_ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """Where a tensor lies."""

    path: str
    """The file; another one than the header's where that is the first of several."""
    shape: tuple[int, ...]
    """Outermost dimension first, as in numpy."""
    kind: int
    """ggml's number of the type: 0 is float32, 1 float16, others mostly quantised."""
    offset: int
    """From the start of the file, bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """Everything in a GGUF file but the weights and the vocabulary."""

    path: str
    fields: Mapping[str, Any]
    """Metadata by key: numbers, strings, booleans, lists of numbers; arrays of strings are left out."""
    tensors: Mapping[str, TensorPlace]

    @property
    def architecture(self) -> str:
        """llama.cpp's word for the family, which its keys begin with."""
        return str(self.fields.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def refused(self, what: str, why: str) -> LongEvalError:
        """The message for something in the file that can't be said in transformers' terms."""
        return LongEvalError(
            f"--model {self.path}: its {what} can't be taken over ({why})",
            "Give the original model instead, a hub id or a folder with config.json and safetensors.",
        )

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Reads a tensor that is stored as plain numbers.

        Raises:
            ValueError: If it is quantised, or the file ends before it does.
        """
        place = self.tensors[name]
        if place.kind not in _FLOATS:
            raise ValueError(f"{name} is stored in ggml type {place.kind}, not as plain numbers")
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            dtype = np.dtype(_FLOATS[place.kind])
            stored = file.read(prod(place.shape) * dtype.itemsize)
        return np.frombuffer(stored, dtype).reshape(place.shape).astype(np.float64)


def read_header(path: str, *others: str) -> GgufHeader:
    """Reads the header of a GGUF file; takes about 0.1 s for a vocabulary of 262k.

    Args:
        path: The file.
        others: Where it is the first of several, the others: their tensors count as its own.

    Raises:
        ValueError: If a file is no GGUF of a version that is read here, is cut off within its header, or has a tensor
            that another one has as well.
        OSError: If it can't be read.
    """
    header = _read(path)
    for other in others:
        tensors = _read(other).tensors
        if twice := header.tensors.keys() & tensors.keys():
            raise ValueError(f"{min(twice)} is there twice, also in {other}")
        header = replace(header, tensors={**header.tensors, **tensors})
    return header


def _read(path: str) -> GgufHeader:
    """The header of one file."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _parse(path, content)
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"its header is damaged or cut off ({error})") from error


def _parse(path: str, content: mmap.mmap) -> GgufHeader:
    magic, version, num_tensors, num_fields = struct.unpack_from("<4sIQQ", content, 0)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise ValueError(f"it starts with {magic!r}, version {version}; GGUF versions {_VERSIONS} are read")
    at = struct.calcsize("<4sIQQ")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        key, at = _string(content, at)
        (kind,) = struct.unpack_from("<I", content, at)
        value, at = _value(content, at + 4, kind)
        if value is not None:
            fields[key] = value
    places: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(num_tensors):
        name, at = _string(content, at)
        (num_dimensions,) = struct.unpack_from("<I", content, at)
        shape = struct.unpack_from(f"<{num_dimensions}Q", content, at + 4)
        at += 4 + 8 * num_dimensions
        kind, offset = struct.unpack_from("<IQ", content, at)
        at += 12
        places.append((name, shape[::-1], kind, offset))
    alignment = int(fields.get("general.alignment", _ALIGNMENT))
    if alignment < 1:
        raise ValueError(f"its general.alignment is {alignment}")
    start = -(-at // alignment) * alignment
    return GgufHeader(
        path=path,
        fields=fields,
        tensors={
            name: TensorPlace(path=path, shape=shape, kind=kind, offset=start + offset)
            for name, shape, kind, offset in places
        },
    )


def _value(content: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """A value and the place after it; None for an array of strings."""
    if kind in _NUMBERS:
        form = f"<{_NUMBERS[kind]}"
        return struct.unpack_from(form, content, at)[0], at + struct.calcsize(form)
    if kind == _STRING:
        return _string(content, at)
    if kind != _ARRAY:
        raise ValueError(f"its header holds a value of type {kind}")
    of, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if of in _NUMBERS:
        form = f"<{count}{_NUMBERS[of]}"
        return list(struct.unpack_from(form, content, at)), at + struct.calcsize(form)
    if of != _STRING:
        raise ValueError(f"its header holds an array of type {of}")
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, at)
        at += 8 + length
    return None, at


def _string(content: mmap.mmap, at: int) -> tuple[str, int]:
    """A string and the place after it."""
    (length,) = struct.unpack_from("<Q", content, at)
    at += 8
    return content[at : at + length].decode(), at + length

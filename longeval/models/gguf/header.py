"""Reads the metadata of a GGUF file and the locations of its tensors, and joins files that gguf-split divided.

The gguf package's reader takes 13 s for a vocabulary of 262k, because it makes a numpy view of every token. Here
strings in arrays are skipped, so that unusable files are refused quickly.

Source: ggml's file format (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.cache import file_digest
from longeval.errors import LongEvalError, reason

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of a fixed size, with their `struct` formats."""
_STRING, _ARRAY = 8, 9
_FLOATS = {0: "<f4", 1: "<f2"}
"""Tensor types that are not quantised, with their numpy dtypes."""
_ALIGNMENT = 32
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
"""File names of llama.cpp's gguf-split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """The location of a tensor."""

    path: str
    """The file that holds the tensor; in a split model it may differ from the header's file."""
    shape: tuple[int, ...]
    """Outermost dimension first, as in numpy."""
    kind: int
    """ggml's number of the type: 0 is float32, 1 is float16, most others are quantised."""
    offset: int
    """Bytes from the start of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """Everything in a GGUF file except the weights and the vocabulary."""

    path: str
    fields: Mapping[str, Any]
    """Metadata by key: numbers, strings, booleans, lists of numbers. Arrays of strings are left out."""
    tensors: Mapping[str, TensorPlace]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family, with which the family's keys begin."""
        return str(self.fields.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def refused(self, what: str, why: str) -> LongEvalError:
        """The error for a setting in the file that transformers can't express."""
        return LongEvalError(
            f"--model {self.path}: its {what} can't be converted ({why})",
            "Give the original model instead, a hub id or a folder with config.json and safetensors.",
        )

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Reads a float32 or float16 tensor; raises ValueError if it is quantised or cut off."""
        place = self.tensors[name]
        if place.kind not in _FLOATS:
            raise ValueError(f"{name} is stored in ggml type {place.kind}, not as plain numbers")
        dtype = np.dtype(_FLOATS[place.kind])
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            stored = file.read(prod(place.shape) * dtype.itemsize)
        return np.frombuffer(stored, dtype).reshape(place.shape).astype(np.float64)


def read_header(path: str) -> GgufHeader:
    """Reads the header of one GGUF file, in about 0.1 s for a vocabulary of 262k.

    Raises:
        ValueError: It is not a GGUF of a known version, or its header is cut off.
        OSError: It can't be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _parse(path, _Reader(content))
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"its header is damaged or cut off ({error})") from error


def model_header(path: str) -> GgufHeader:
    """Reads the header of a user's GGUF; of a split GGUF, with the tensors of all files.

    Raises:
        LongEvalError: See `gguf_shards`; or two files hold the same tensor.
    """
    first, *others = gguf_shards(path)
    header = _users_header(first)
    for other in others:
        tensors = _users_header(other).tensors
        if twice := header.tensors.keys() & tensors.keys():
            raise LongEvalError(
                f"--model {path}: {min(twice)} is in two files, one of them {other}", "Fetch the files again."
            )
        header = dataclasses.replace(header, tensors={**header.tensors, **tensors})
    return header


@dataclass(slots=True)
class _Reader:
    """Reads the values of a header one after another."""

    content: mmap.mmap
    at: int = 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next numbers, in a format of `struct`."""
        numbers = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return numbers

    def text(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def value(self) -> Any:
        """The next value, which is preceded by its type; None for an array of strings."""
        (kind,) = self.take("I")
        if kind in _NUMBERS:
            return self.take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"its header holds a value of type {kind}")
        of, count = self.take("IQ")
        if of in _NUMBERS:
            return list(self.take(f"{count}{_NUMBERS[of]}"))
        if of != _STRING:
            raise ValueError(f"its header holds an array of type {of}")
        length_at = struct.Struct("<Q").unpack_from  # faster than calling `take` for each token
        for _ in range(count):
            self.at += 8 + length_at(self.content, self.at)[0]
        return None


def _parse(path: str, reader: _Reader) -> GgufHeader:
    magic, version, num_tensors, num_fields = reader.take("4sIQQ")
    if magic != _MAGIC or version not in _VERSIONS:
        raise ValueError(f"it starts with {magic!r}, version {version}; GGUF versions {_VERSIONS} are read")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        key = reader.text()
        if (value := reader.value()) is not None:
            fields[key] = value
    places: dict[str, TensorPlace] = {}
    for _ in range(num_tensors):
        name = reader.text()
        (num_dimensions,) = reader.take("I")
        shape = reader.take(f"{num_dimensions}Q")
        kind, offset = reader.take("IQ")
        places[name] = TensorPlace(path=path, shape=shape[::-1], kind=kind, offset=offset)
    alignment = int(fields.get("general.alignment", _ALIGNMENT))
    if alignment < 1:
        raise ValueError(f"its general.alignment is {alignment}")
    start = -(-reader.at // alignment) * alignment
    tensors = {name: dataclasses.replace(place, offset=start + place.offset) for name, place in places.items()}
    return GgufHeader(path=path, fields=fields, tensors=tensors)


def gguf_shards(path: str) -> tuple[str, ...]:
    """Returns the paths of all files of a GGUF in order, given any of them. It is one unless gguf-split divided it.

    Raises:
        LongEvalError: It isn't a readable GGUF, or another file is missing or belongs to another model.
    """
    fields = _users_header(path).fields
    count = int(fields.get("split.count") or 1)
    if count == 1:
        return (path,)
    named = _SHARD.fullmatch(path)
    if named is None or int(named[3]) != count or int(named[2]) != fields.get("split.no", -1) + 1:
        raise LongEvalError(
            f"--model {path}: is one of {count} files of a split model, but its name doesn't say so",
            f"Name them NAME-00001-of-{count:05}.gguf and so on, as llama.cpp's gguf-split does.",
        )
    paths = tuple(f"{named[1]}-{number:05}-of-{named[3]}.gguf" for number in range(1, count + 1))
    num_tensors = 0
    for number, shard in enumerate(paths):
        if not os.path.isfile(shard):
            raise LongEvalError(
                f"--model {path}: is one of {count} files, but {os.path.basename(shard)} is missing",
                "Put all of them into one folder.",
            )
        header = _users_header(shard)
        num_tensors += len(header.tensors)
        if (header.fields.get("split.count"), header.fields.get("split.no")) != (count, number):
            raise LongEvalError(
                f"--model {path}: {os.path.basename(shard)} belongs to another model", "Fetch the files again."
            )
    if num_tensors != fields.get("split.tensors.count", num_tensors):
        raise LongEvalError(
            f"--model {path}: its {count} files hold {num_tensors} tensors, not {fields['split.tensors.count']}",
            "Fetch the files again.",
        )
    return paths


def _users_header(path: str) -> GgufHeader:
    """The header of a user's file; raises LongEvalError if it can't be read or is not a GGUF."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
        if head == _MAGIC:
            return read_header(path)
    except (OSError, ValueError) as error:
        raise LongEvalError(
            f"--model {path}: not a readable GGUF ({reason(error)})", "Fetch the file again."
        ) from error
    raise LongEvalError(
        f"--model {path}: not a GGUF file (it starts with {head!r})",
        "It may be a Git LFS pointer or a broken download. Fetch the file again.",
    )


def gguf_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a GGUF; for a split GGUF, that of the digests of its files in order."""
    digests = [file_digest(shard) for shard in gguf_shards(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def whole_gguf(path: str, folder: str) -> Iterator[str]:
    """Yields the path of a GGUF as one file: itself, or a temporary copy in `folder` that joins its shards."""
    shards = gguf_shards(path)
    if len(shards) == 1:
        yield path
        return
    model_header(path)  # refuses tensors that are in two files
    joined = os.path.join(folder, "joined.gguf")
    try:
        _join(shards, joined)
        yield joined
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(joined)


def copy_field(writer: Any, name: str, field: Any) -> None:
    """Writes a field of a GGUFReader with a GGUFWriter, unchanged."""
    from gguf import GGUFValueType

    kind = field.types[0]
    sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(name, raw_value(field), kind, sub_type=sub_type)


def raw_value(field: Any) -> Any:
    """A field's value in the form that GGUFWriter needs. Text is bytes, because tokens need not be valid UTF-8."""
    from gguf import GGUFValueType

    if field.types[-1] != GGUFValueType.STRING:
        return field.contents()
    texts = [field.parts[index].tobytes() for index in field.data]
    return texts if field.types[0] == GGUFValueType.ARRAY else texts[0]


def _join(shards: tuple[str, ...], path: str) -> None:
    """Writes the fields of the first shard and the tensors of all, unchanged, into one file."""
    from gguf import GGUFReader, GGUFWriter

    readers = [GGUFReader(shard) for shard in shards]
    fields = readers[0].fields
    writer = GGUFWriter(path, str(fields["general.architecture"].contents()))
    writer.data_alignment = readers[0].alignment
    try:
        for name, field in fields.items():
            if name == "general.architecture" or name.startswith(("GGUF.", "split.")) or not field.data:
                continue  # fields that the writer adds, fields about the split, and empty lists, which it can't write
            copy_field(writer, name, field)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        for tensor in tensors:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()

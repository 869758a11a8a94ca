"""The files of a GGUF: one, or the several that llama.cpp's gguf-split divided it into."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator

from longeval.cache import file_digest
from longeval.errors import LongEvalError, reason
from longeval.models.gguf.header import GgufHeader, read_header

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
"""What gguf-split calls its files."""
_MAGIC = b"GGUF"


def gguf_shards(path: str) -> tuple[str, ...]:
    """Returns all files of a model that llama.cpp's gguf-split divided, in order; a whole GGUF is the only one.

    Args:
        path: Any of them.

    Raises:
        LongEvalError: If it isn't a readable GGUF, or one of the others isn't there or not of the same model.
    """
    fields = _header(path).fields
    count = int(fields.get("split.count") or 1)
    if count == 1:
        return (path,)
    named = _SHARD.fullmatch(path)
    if named is None or int(named[3]) != count or int(named[2]) != fields.get("split.no", -1) + 1:
        raise LongEvalError(
            f"--model {path}: is one of {count} files that a model was split into, and isn't named as such",
            f"Name them NAME-00001-of-{count:05}.gguf and so on, as llama.cpp's gguf-split does.",
        )
    paths = tuple(f"{named[1]}-{number:05}-of-{named[3]}.gguf" for number in range(1, count + 1))
    tensors = 0
    for number, shard in enumerate(paths):
        if not os.path.isfile(shard):
            raise LongEvalError(
                f"--model {path}: is one of {count} files, and {os.path.basename(shard)} is missing",
                "Put all of them into one folder.",
            )
        header = _header(shard)
        tensors += len(header.tensors)
        if (header.fields.get("split.count"), header.fields.get("split.no")) != (count, number):
            raise LongEvalError(
                f"--model {path}: {os.path.basename(shard)} belongs to another model", "Fetch the files again."
            )
    if tensors != fields.get("split.tensors.count", tensors):
        raise LongEvalError(
            f"--model {path}: its {count} files hold {tensors} tensors, not {fields['split.tensors.count']}",
            "Fetch the files again.",
        )
    return paths


def gguf_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a GGUF; of one that was split, that of its files' digests in order."""
    digests = [file_digest(shard) for shard in gguf_shards(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _header(path: str) -> GgufHeader:
    """The header of a user's file; LongEvalError if it can't be read or is no GGUF."""
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
        "A Git LFS pointer or a broken download looks like this: fetch the file again.",
    )


@contextlib.contextmanager
def whole_gguf(path: str, folder: str) -> Iterator[str]:
    """Yields the path of the GGUF in one file: itself, or a copy in `folder`, joined from its shards, for the block."""
    shards = gguf_shards(path)
    if len(shards) == 1:
        yield path
        return
    joined = os.path.join(folder, "joined.gguf")
    try:
        _join(shards, joined)
        yield joined
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(joined)


def _join(shards: tuple[str, ...], path: str) -> None:
    """Writes the fields of the first shard and the tensors of all, unchanged, into one file."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    read_header(*shards)  # refuses tensors that are there twice
    readers = [GGUFReader(shard) for shard in shards]
    fields = readers[0].fields
    writer = GGUFWriter(path, str(fields["general.architecture"].contents()))
    writer.data_alignment = readers[0].alignment
    try:
        for name, field in fields.items():
            if name == "general.architecture" or name.startswith(("GGUF.", "split.")) or not field.data:
                continue  # the writer's own; what was true of the shards; empty lists, which it can't write
            kind, value = field.types[0], field.contents()
            if field.types[-1] == GGUFValueType.STRING:  # as bytes: vocabularies needn't be text
                texts = [field.parts[index].tobytes() for index in field.data]
                value = texts if kind == GGUFValueType.ARRAY else texts[0]
            sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, sub_type=sub_type)
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

"""Token-level negative log-likelihoods (NLLs), the artefact of a perplexity cell.

Perplexities, intervals, bits per byte and curves by position are computed from a `TokenNll` without the model. Each
cell has one `.npz` file with float32 values and a few integers per window, and no pickled objects.

Shapes: W windows in the order they ran, S scored tokens (those of window 0, then of window 1, …).
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import reason
from longeval.store.artefact import ARTEFACTS, Artefact, check_count, check_value
from longeval.store.records import Record

FORMS = {
    "nll": "<f4",
    "tokens": "<i4",
    "context": "<i4",
    "document": "<i4",
    "start": "<i8",
    "bytes": "<i8",
    "documents": "U",
    "windows": "<u8",
}
"""Arrays of the file and their dtypes (`U`: text of any width)."""

LATER = frozenset({"windows"})
"""Arrays that files of earlier versions lack."""

_LARGEST_FILE = 1 << 31
"""Most bytes that a file may unpack to, enough for half a billion tokens. It guards against zip bombs."""

LARGEST_EXPONENT = 709.0
"""Above it, exp overflows float64."""

_JOINED = "stream"
"""The protocol whose windows cross documents."""

_read_array: Callable[..., npt.NDArray[Any]] = np.lib.format.read_array
_read_header: Callable[..., Any] = np.lib.format.read_array_header_1_0

LEAST_NLL = -0.01
"""Smallest NLL accepted: 0, less the rounding of float32 arithmetic on large logits."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenNll:
    """The scored tokens of one cell."""

    nll_S: npt.NDArray[np.float32]
    """Negative log-likelihood of each scored token in nats, shape (S,)."""
    tokens_W: npt.NDArray[np.int32]
    """Number of scored tokens of each window, shape (W,); sums to S."""
    context_W: npt.NDArray[np.int32]
    """Position in the window (prefix included) of its first scored token, shape (W,): the context that token had."""
    document_W: npt.NDArray[np.int32]
    """Index into `documents` of each window's document, shape (W,); for a stream, of its first scored token."""
    start_W: npt.NDArray[np.int64]
    """Index in the document, or in the stream, of each window's first scored token, shape (W,). The prefix does not
    count."""
    bytes_W: npt.NDArray[np.int64]
    """UTF-8 bytes of each window's scored tokens, shape (W,); −1 if the tokenizer can't tell."""
    documents: tuple[str, ...]
    """Names of the documents."""
    windows_W: npt.NDArray[np.uint64] | None = None
    """`window_digest` of each window, shape (W,); None in files of earlier versions."""

    def __post_init__(self) -> None:
        by_window: list[npt.NDArray[Any]] = [self.context_W, self.document_W, self.start_W, self.bytes_W]
        by_window += [] if self.windows_W is None else [self.windows_W]
        if any(len(values_W) != len(self.tokens_W) for values_W in by_window):
            raise ValueError("its arrays by window differ in length")
        if int(self.tokens_W.sum()) != len(self.nll_S):
            raise ValueError("the tokens of its windows are not as many as its values")

    @property
    def offsets_W(self) -> npt.NDArray[np.int64]:
        """Index in `nll_S` of each window's first scored token, shape (W,)."""
        ends_W = np.cumsum(self.tokens_W, dtype=np.int64)
        return ends_W - self.tokens_W

    @property
    def window_sums_W(self) -> npt.NDArray[np.float64]:
        """Float64 sum of NLL over each window's scored tokens, shape (W,)."""
        if len(self.tokens_W) == 0:
            return np.zeros(0)
        return np.add.reduceat(self.nll_S.astype(np.float64), self.offsets_W)

    def of_window(self, document: int, start: int) -> npt.NDArray[np.float32]:
        """The values of one window, shape (S,), in nats.

        Args:
            document: As in `document_W`.
            start: As in `start_W`.

        Raises:
            ValueError: There is no such window.
        """
        (found_W,) = np.nonzero((self.document_W == document) & (self.start_W == start))
        if len(found_W) != 1:
            raise ValueError(f"document {document} has no window whose first scored token is {start}")
        begin = int(self.offsets_W[found_W[0]])
        return self.nll_S[begin : begin + int(self.tokens_W[found_W[0]])]

    def mean(self, protocol: str | None) -> float:
        """Mean NLL in nats, float64; perplexity is its exp.

        Args:
            protocol: `sliding_window_mean` takes the unweighted mean over windows of each window's mean, as YaRN's
                published GovReport numbers do. Every other protocol weighs each scored token equally.

        Raises:
            ValueError: No token was scored.
        """
        self._require_tokens()
        if protocol == "sliding_window_mean":
            return float((self.window_sums_W / self.tokens_W).mean())
        return float(self.nll_S.mean(dtype=np.float64))

    def bits_per_byte(self) -> float | None:
        """Total NLL in bits divided by the UTF-8 bytes of the scored tokens; None if those could not be counted.

        Each scored token weighs the same under every protocol, because bytes belong to tokens and not to windows.

        Raises:
            ValueError: No token was scored.
        """
        self._require_tokens()
        num_bytes = int(self.bytes_W.sum())
        if bool((self.bytes_W < 0).any()) or num_bytes == 0:
            return None
        return float(self.nll_S.sum(dtype=np.float64)) / math.log(2) / num_bytes

    def _require_tokens(self) -> None:
        if len(self.nll_S) == 0:
            raise ValueError("no token was scored")

    def positions_S(self) -> npt.NDArray[np.int64]:
        """Position in its window of every scored token, shape (S,): the number of tokens it was predicted from."""
        within_S = np.arange(len(self.nll_S), dtype=np.int64) - np.repeat(self.offsets_W, self.tokens_W)
        return within_S + np.repeat(self.context_W.astype(np.int64), self.tokens_W)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the `.npz` file by name."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "nll": self.nll_S.astype("<f4"),
            "tokens": self.tokens_W.astype("<i4"),
            "context": self.context_W.astype("<i4"),
            "document": self.document_W.astype("<i4"),
            "start": self.start_W.astype("<i8"),
            "bytes": self.bytes_W.astype("<i8"),
            "documents": np.array(self.documents, dtype=np.str_),
        }
        return arrays if self.windows_W is None else {**arrays, "windows": self.windows_W.astype("<u8")}

    def to_bytes(self) -> bytes:
        """The content of the `.npz` file."""
        return npz_bytes(self.arrays())

    def parts(self) -> dict[str, npt.NDArray[np.float32]]:
        """`window_digest` as text → values of the window's scored tokens; empty where the digests aren't stored."""
        if self.windows_W is None:
            return {}
        values_W = np.split(self.nll_S, self.offsets_W[1:])
        return {str(digest): nll_S for digest, nll_S in zip(self.windows_W.tolist(), values_W, strict=True)}


def window_digest(tokens_T: npt.NDArray[np.int32], first_scored: int) -> int:
    """The first 64 bits of the SHA-256 of a window's token ids, prefix included, and of where scoring begins."""
    whole = hashlib.sha256(f"{first_scored}\0".encode() + np.ascontiguousarray(tokens_T, dtype="<i4").tobytes())
    return int.from_bytes(whole.digest()[:8], "little")


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The content of a compressed `.npz` file without pickled objects."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def arrays_from_npz(
    content: bytes, forms: Mapping[str, str], what: str, later: frozenset[str] = frozenset()
) -> dict[str, npt.NDArray[Any]]:
    """Inverse of `npz_bytes` for arrays of one dimension. Never unpickles.

    Args:
        content: The content of the file.
        forms: Names of the arrays and their dtypes (`U`: text of any width).
        what: What such a file is, for the message.
        later: Arrays that may be missing.

    Raises:
        ValueError: The content is something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(item.file_size for item in file.infolist()) > _LARGEST_FILE:
                raise ValueError(f"it unpacks to more than {_LARGEST_FILE >> 30} GiB")
            there = set(forms) - (later - {name.removesuffix(".npy") for name in file.namelist()})
            arrays = {name: _array(file.read(f"{name}.npy")) for name in there}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds of errors for a damaged file
        raise ValueError(f"not a {what} file: {reason(error)}") from error
    for name, array in arrays.items():
        form = array.dtype.kind if array.dtype.kind == "U" else array.dtype.str
        if array.ndim != 1 or form != forms[name]:
            raise ValueError(f"not a {what} file: {name} has another shape or dtype")
    return arrays


def token_nll_from_bytes(content: bytes) -> TokenNll:
    """Inverse of `TokenNll.to_bytes`; raises ValueError for any other content. Never unpickles."""
    return token_nll_of(arrays_from_npz(content, FORMS, "token NLL", LATER))


def token_nll_of(arrays: Mapping[str, npt.NDArray[Any]]) -> TokenNll:
    """Inverse of `TokenNll.arrays`; raises ValueError with the reason for values that scored tokens can't have."""
    nll = TokenNll(
        nll_S=arrays["nll"],
        tokens_W=arrays["tokens"],
        context_W=arrays["context"],
        document_W=arrays["document"],
        start_W=arrays["start"],
        bytes_W=arrays["bytes"],
        documents=document_names(arrays["documents"]),
        windows_W=arrays.get("windows"),
    )
    _check_windows(nll)
    return nll


def _array(content: bytes) -> npt.NDArray[Any]:
    """The array of a `.npy` file; raises ValueError for any other content. Never unpickles."""
    if content[:8] != b"\x93NUMPY\x01\x00":  # of another version of the format, which longeval does not write
        return _read_array(io.BytesIO(content), allow_pickle=False)
    begin = 10 + int.from_bytes(content[8:10], "little")
    shape, is_fortran, dtype = _header(content[8:begin])
    if is_fortran or len(shape) != 1 or len(content) - begin != shape[0] * dtype.itemsize:
        raise ValueError("an array has another shape than its header says")
    return np.frombuffer(content, dtype, offset=begin)


@functools.lru_cache(maxsize=256)
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and dtype in the header of a `.npy` file.

    Parsing takes longer than all else about a small array, and files of one run have few different headers.
    """
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = _read_header(io.BytesIO(content))
    return found


def document_names(array: npt.NDArray[Any]) -> tuple[str, ...]:
    """The strings of an array. Code points that don't exist raise ValueError (numpy raises SystemError for them)."""
    try:
        return tuple(array.tolist())
    except (SystemError, ValueError):
        raise ValueError("a document's name is not valid text") from None


def _check_windows(nll: TokenNll) -> None:
    """Raises ValueError with the reason for values that scored tokens can't have."""
    if (nll.tokens_W < 1).any():
        raise ValueError("a window has no token")
    if not np.isfinite(nll.nll_S).all():
        raise ValueError("a token's value is not finite")
    if len(nll.nll_S) and nll.nll_S.min() < LEAST_NLL:
        raise ValueError("a token's NLL is negative")
    if (nll.document_W < 0).any() or (nll.document_W >= len(nll.documents)).any():
        raise ValueError("a window's document is not in its list of documents")
    if (nll.context_W < 0).any() or (nll.start_W < 0).any() or (nll.bytes_W < -1).any():
        raise ValueError("a window begins before its document")


def _check(nll: TokenNll, records: Sequence[Record]) -> None:
    """Raises ValueError with the reason if records count other windows, tokens or documents than there are."""
    if not len(nll.nll_S):
        raise ValueError("no token is scored")
    num_documents = len(set(nll.document_W.tolist()))
    for record in records:
        if record.protocol is None:
            raise ValueError("its record has no protocol")
        check_count(record.n, len(nll.tokens_W), "windows")
        check_count(record.tokens, len(nll.nll_S), "tokens")
        check_value(record.nll_sum, float(nll.nll_S.sum(dtype="f8")), "nll_sum")
        if record.protocol != _JOINED:
            check_count(record.documents, num_documents, "documents")
        if (record.documents or 0) > len(nll.documents):
            raise ValueError("its record has more documents than there are")
        check_context(nll, record)


def check_context(nll: TokenNll, record: Record) -> None:
    """Raises ValueError if a window is longer than the length that a record states."""
    if int((nll.context_W + nll.tokens_W).max()) > record.length:
        raise ValueError("a window is longer than the cell's length")


NLL = ARTEFACTS.register(
    "nll",
    Artefact(
        folder="nll",
        suffix="npz",
        encode=TokenNll.to_bytes,
        decode=token_nll_from_bytes,
        check=_check,
        parts=TokenNll.parts,
        values={
            "perplexity": lambda nll, record: math.exp(min(nll.mean(record.protocol), LARGEST_EXPONENT)),
            "bits_per_byte": lambda nll, _: nll.bits_per_byte(),
        },
    ),
)

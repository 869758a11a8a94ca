"""What the report's page shows token by token: the text of documents, and each token's NLL under every method.

The data is plain JSON. Arrays are base64 text of little-endian numbers, since a page may hold a million of them:

    {"model", "data", "protocol", "notes": [sentence, …], "step": nats of one unit of `nll`,
     "methods": [name, …], "keys": {"model", "alpha", "beta"} or null,
     "documents": [{"name", "text", "tokens": T, "of": tokens of the whole document,
                    "ends": uint16, UTF-16 units of each token's text (0: a further token of the same character),
                    "keys": bits, lowest first, of the key tokens, or null,
                    "series": [{"method": place in `methods`, "length",
                                "windows": [[first scored token, scored tokens, context of the first], …],
                                "nll": uint16 for each scored token, window after window}, …]}, …]}

In place of `nll` a series may have `same`, the place of another one of the document whose values begin with its own:
under `prefix` one pass serves several lengths. `longeval/report/page/tokens.js` reads all this.

Shapes: T tokens of one document, S scored tokens of one document.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.report.collect import Collection
from longeval.report.numbers import counted
from longeval.report.tables import Grid, row_name
from longeval.store.keys import KEY_NLL
from longeval.store.nll import TokenNll
from longeval.store.texts import DocumentTexts
from longeval.values import format_length

MOST_BYTES = 8_000_000
"""About how many bytes the token data of a whole page has."""

STEP = 0.001
"""Nats of one unit of the stored numbers, which are off by half of it at most."""

_LARGEST = 2**16 - 1
_PER_NUMBER = 2 * 4 / 3
"""Bytes of a uint16 in base64."""

_WITHOUT = (
    "No text is stored with these cells, so there is nothing to show token by token. Repeat the command with "
    "--keep-text: it adds the text to the run folder, and computes no stored cell again."
)
_JOINED = (
    "Under the protocol stream, windows cross documents and a token can have several values. Tokens are shown for "
    "--protocol prefix, sliding and sliding_window_mean."
)
_PREFIX = (
    "Under the protocol prefix a token has the same context at every length, so lengths differ only where a method's "
    "table depends on the length. --protocol sliding compares a long with a short context."
)


@dataclass(kw_only=True, slots=True)
class _Series:
    """The scored tokens of one document in one cell."""

    method: int
    length: int
    windows: list[list[int]]
    """First scored token, number of them, and context of the first, of each window."""
    nll_S: npt.NDArray[np.uint16]
    """In units of `STEP`."""

    def cut(self, tokens: int) -> None:
        """Leaves out what lies behind the first tokens."""
        self.windows = [[start, min(count, tokens - start), at] for start, count, at in self.windows if start < tokens]
        self.nll_S = self.nll_S[: sum(count for _, count, _ in self.windows)]

    @property
    def stop(self) -> int:
        """One more than the last scored token."""
        return max((start + count for start, count, _ in self.windows), default=0)


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the cells of a table hold of the first documents."""

    series: dict[int, list[_Series]] = field(default_factory=dict)
    """By document; longest lengths first."""
    keys: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """By document, whether each of its first tokens is a key token."""
    key: dict[str, Any] | None = None
    """The evaluator and its thresholds."""
    notes: list[str] = field(default_factory=list)


def token_data(grid: Grid, long: Sequence[Grid], collection: Collection, most: int = MOST_BYTES) -> dict[str, Any]:
    """The data of the view (see above) for the cells of one table.

    Args:
        grid: The table of perplexities.
        long: All tables of LongPPL, whose cells have the key tokens.
        collection: The cells of the report.
        most: About how many bytes the data may have. The first documents are taken, and of each the longest lengths.
    """
    data: dict[str, Any] = {
        "model": grid.model,
        "data": grid.data,
        "protocol": grid.protocol,
        "step": STEP,
        "methods": [row_name(row, grid.rows) for row in grid.rows],
        "keys": None,
        "documents": [],
        "notes": [],
    }
    if grid.protocol == "stream":
        return data | {"notes": [_JOINED]}
    try:
        texts = _texts(grid, collection)
    except LongEvalError as error:
        return data | {"notes": [f"The stored text can't be shown: {error.problem}. {error.remedy}"]}
    if texts is None:
        return data | {"notes": [_WITHOUT]}
    found = _read(grid, long, collection, texts, most)
    documents, notes = _documents(texts, found, most)
    if grid.protocol == "prefix" and len(grid.lengths) > 1 and documents:
        notes.append(_PREFIX)
    return data | {"documents": documents, "keys": found.key, "notes": [*found.notes, *notes]}


def _texts(grid: Grid, collection: Collection) -> DocumentTexts | None:
    """The texts of a table's documents, from whichever of its run folders has them."""
    for record in grid.records:
        found = collection.stores[record.cell].texts(record.params.get("data_digest"))
        if found is not None:
            return found
    return None


def _read(grid: Grid, long: Sequence[Grid], collection: Collection, texts: DocumentTexts, most: int) -> _Found:
    """Reads the token values of all cells, of as many documents as could be shown at the most."""
    found = _Found()
    reach = grid.lengths[-1] if grid.protocol == "prefix" else None
    before = np.cumsum([0, *(min(len(ends_T), reach or len(ends_T)) for ends_T in texts.ends)])
    candidates = range(int(np.searchsorted(before[:-1], most / _PER_NUMBER)))
    masks = {record.params.get("perplexity_cell"): record for other in long for record in other.records}
    for length in reversed(grid.lengths):
        for method, row in enumerate(grid.rows):
            record = row.cells.get(length)
            nll = None if record is None or record.status != "ok" else collection.nll(record.cell)
            if record is None or nll is None:
                continue
            try:
                texts.check(nll)
            except ValueError as error:
                found.notes.append(f"{row.label} at {format_length(length)} is left out: {error}.")
                continue
            for document in candidates:
                one = _series(nll, document, method, length)
                if one.windows:
                    found.series.setdefault(document, []).append(one)
            if record.cell in masks:
                _add_keys(found, masks[record.cell].cell, masks[record.cell].params["key"], collection, candidates)
    return found


def _series(nll: TokenNll, document: int, method: int, length: int) -> _Series:
    """What a cell says of one document."""
    (own_W,) = np.nonzero(nll.document_W == document)
    parts = [
        nll.nll_S[first : first + count] for first, count in zip(nll.offsets_W[own_W], nll.tokens_W[own_W], strict=True)
    ]
    values_S = np.concatenate([np.zeros(0, dtype=np.float32), *parts])
    units_S = np.rint(values_S.astype(np.float64) / STEP).clip(0, _LARGEST).astype("<u2")
    columns = (nll.start_W[own_W].tolist(), nll.tokens_W[own_W].tolist(), nll.context_W[own_W].tolist())
    return _Series(
        method=method, length=length, windows=[list(one) for one in zip(*columns, strict=True)], nll_S=units_S
    )


def _add_keys(found: _Found, cell: str, key: dict[str, Any], collection: Collection, candidates: range) -> None:
    """Adds the key tokens that a LongPPL cell has; those of one evaluator and its thresholds only."""
    key = {name: key.get(name) for name in ("model", "alpha", "beta", "context", "step")}
    if found.key not in (None, key):
        return
    keys = collection.stores[cell].artefact(KEY_NLL, cell)
    if keys is None:
        return
    found.key = key
    offsets_W = keys.nll.offsets_W
    for document in candidates:
        (own_W,) = np.nonzero(keys.nll.document_W == document)
        stop = max((int(keys.nll.start_W[w] + keys.nll.tokens_W[w]) for w in own_W), default=0)
        is_key_T = found.keys.get(document, np.zeros(0, dtype=np.bool_))
        is_key_T = np.concatenate([is_key_T, np.zeros(max(0, stop - len(is_key_T)), dtype=np.bool_)])
        for w in own_W:
            start, count, first = int(keys.nll.start_W[w]), int(keys.nll.tokens_W[w]), int(offsets_W[w])
            is_key_T[start : start + count] |= keys.key_S[first : first + count]
        found.keys[document] = is_key_T


def _documents(texts: DocumentTexts, found: _Found, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The documents that there is room for, and what is left out."""
    documents: list[dict[str, Any]] = []
    notes: list[str] = []
    room = float(most)
    without = 0
    for number, series in sorted(found.series.items()):
        longest = sum(one.length == series[0].length for one in series)
        tokens = scored = max(one.stop for one in series)
        per_token = len(texts.texts[number].encode()) / max(1, len(texts.ends[number])) + _PER_NUMBER * (1 + longest)
        if not documents:
            tokens = min(tokens, int(room / per_token))
        if tokens * per_token > room or not tokens:
            break
        document, left_out = _document(texts, number, series, found.keys.get(number), tokens, room)
        without += left_out
        room -= _size(document)
        documents.append(document)
        if document["tokens"] < scored:
            shown = f"the first {document['tokens']:,} tokens are shown"
            notes.append(f"Of {texts.names[number]} {shown}, since it or the next token is very long.")
    if len(documents) < len(found.series):
        of = counted(len(found.series), "document")
        notes.append(f"The first {len(documents)} of {of} with stored text are in this page.")
    if len(texts.texts) < len(texts.names):
        notes.append(f"The run folder has the text of {len(texts.texts)} of {counted(len(texts.names), 'document')}.")
    if without:
        notes.append(f"{counted(without, 'curve')} of shorter lengths are left out to keep this page small.")
    return documents, notes


def _size(document: dict[str, Any]) -> float:
    """About how many bytes a document's data has."""
    arrays = [document["ends"], document["keys"] or "", *(one.get("nll", "") for one in document["series"])]
    return len(document["text"].encode()) + sum(map(len, arrays))


def _document(
    texts: DocumentTexts,
    number: int,
    series: Sequence[_Series],
    keys: npt.NDArray[np.bool_] | None,
    tokens: int,
    room: float,
) -> tuple[dict[str, Any], int]:
    """The data of the first tokens of a document, and how many series of shorter lengths are left out of it."""
    text, widths_T = _utf16(texts.texts[number], texts.ends[number][:tokens])
    if (too_wide := np.flatnonzero(widths_T > _LARGEST)).size:
        tokens = int(too_wide[0])
        widths_T = widths_T[:tokens]
        text = texts.texts[number].encode()[: int(texts.ends[number][tokens - 1]) if tokens else 0].decode()
    document: dict[str, Any] = {
        "name": texts.names[number],
        "text": text,
        "tokens": tokens,
        "of": len(texts.ends[number]),
        "ends": _base64(widths_T.astype("<u2")),
        "keys": None if keys is None else _base64(np.packbits(keys[:tokens], bitorder="little")),
        "series": [],
    }
    kept: list[_Series] = []
    for one in series:
        one.cut(tokens)
        same = next((place for place, other in enumerate(kept) if _begins_with(other, one)), None)
        if same is None and one.length != series[0].length and _size(document) + len(one.nll_S) * _PER_NUMBER > room:
            continue
        values = {"nll": _base64(one.nll_S)} if same is None else {"same": same}
        kept.append(one)
        document["series"].append({"method": one.method, "length": one.length, "windows": one.windows, **values})
    return document, len(series) - len(kept)


def _begins_with(longer: _Series, one: _Series) -> bool:
    """Whether a series of one window holds another one at its beginning."""
    if not len(longer.windows) == len(one.windows) == 1 or len(longer.nll_S) < len(one.nll_S):
        return False
    (start, _, at), (own_start, count, own_at) = longer.windows[0], one.windows[0]
    return (start, at) == (own_start, own_at) and bool((longer.nll_S[:count] == one.nll_S).all())


def _utf16(text: str, ends_T: npt.NDArray[np.int64]) -> tuple[str, npt.NDArray[np.int64]]:
    """The text up to the last of some tokens, and the UTF-16 units that each of them covers, shape (T,).

    Args:
        text: The document's text.
        ends_T: UTF-8 bytes up to the end of each token.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    units_before = np.concatenate([[0], np.cumsum(1 + (points >= 0x10000).astype(np.int64))])
    place_T = np.searchsorted(bytes_before, ends_T)  # tokens end between characters, never inside one
    widths_T: npt.NDArray[np.int64] = np.diff(units_before[place_T], prepend=0)
    return text[: int(place_T[-1])], widths_T


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()

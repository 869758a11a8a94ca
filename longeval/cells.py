"""Cells, their stable ids, and groups of cells that share forward passes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longeval.backends.vllm_options import check_installed
from longeval.data.selection import Selection
from longeval.data.sources import Source
from longeval.errors import LongEvalError
from longeval.evals.perplexity import Protocol, Window
from longeval.records import SCHEMA_VERSION, canonical_json
from longeval.rope.base import METHODS, RopeTable
from longeval.rope.build import MethodName, parse_method_name
from longeval.spec import ModelRequest, PplSpec, format_length
from longeval.spec.engine import DECIDE_NOTHING

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

DEFAULT_STRIDE = 256
"""Tokens between windows where nothing else is asked for, as in YaRN's and LongLoRA's runs."""

ID_DIGITS = 16
"""Hex digits of a cell id: 64 bits, no collision to fear among a study's cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One (model, method, length, data, protocol): the unit of work, storage and resume."""

    id: str
    model: str
    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    data: str
    protocol: str
    backend: str
    """What runs it."""
    params: dict[str, Any]
    """Everything else that decides the value, as the record shows it."""
    windows: tuple[Window, ...]
    """What is scored, in order; empty where no document is long enough."""
    skipped: int
    """Documents that were looked at and left out because they are too short."""
    truncated: int
    """Documents of which tokens after the last scored one are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells of one model and data set that the same forward passes serve: equal tables, and nested or equal windows."""

    cells: tuple[Cell, ...]
    """Ascending in length (all of one length unless the protocol's windows are nested)."""
    table: Callable[[int], RopeTable]
    """Window length → table."""
    static: bool
    """Whether that is the same table for every window of the group."""

    def passes(self) -> list[Window]:
        """The windows to run: for each, every cell's window of the same document and start is a beginning of it."""
        longest: dict[tuple[int, int], Window] = {}
        for cell in self.cells:
            for window in cell.windows:
                key = (window.document, window.start)
                if key not in longest or window.stop > longest[key].stop:
                    longest[key] = window
        return list(longest.values())


def check_backend(spec: ModelRequest) -> None:
    """Raises LongEvalError for a backend that isn't installed."""
    if spec.backend == "vllm":
        check_installed()


def check_pin(spec: ModelRequest, names: Sequence[MethodName], models: Sequence[PreparedModel]) -> None:
    """Raises LongEvalError for `--pin-length` where no method has more than one table."""
    if spec.pin_length is not None and not any(m.rope.length_dependent(name) for m in models for name in names):
        raise LongEvalError(
            f"--pin-length {format_length(spec.pin_length)}: would be ignored, "
            f"{', '.join(name.canonical for name in names)} have one table for all lengths",
            "Leave it out.",
        )


def method_names(spec: ModelRequest) -> list[MethodName]:
    """The methods of a request; parameters of one that isn't asked for would be ignored: an error."""
    names = [parse_method_name(name) for name in spec.pe]
    asked = {name.base for name in names}
    for base in spec.pe_args:
        METHODS.lookup(base)
        if base not in asked:
            raise LongEvalError(f"--pe-arg {base}.…: {base} is not among --pe {','.join(spec.pe)}", "Remove one.")
    return names


def setting_notes(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> list[str]:
    """What a user should know of the settings before anything starts."""
    notes = _stretch_note(spec, names, model)
    if spec.backend == "openai":
        notes.append(
            f"--backend openai: the server rotates as it was started; {','.join(spec.pe)} only labels the results"
        )
    return notes


def _stretch_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> list[str]:
    """A note where methods that stretch have nothing to stretch."""
    stretched = [name.canonical for name in names if name.method.uses_factor]
    if not stretched or set(factors(spec, model.native_length).values()) != {1.0}:
        return []
    return [
        f"{', '.join(stretched)}: s = 1 at these lengths, nothing is stretched (the native length is "
        f"{format_length(model.native_length)}; --factor or longer --lengths would)"
    ]


def stride_of(spec: PplSpec) -> int:
    """Tokens between windows, as asked or 256."""
    return DEFAULT_STRIDE if spec.stride is None else spec.stride


def factors(spec: ModelRequest, native_length: int) -> dict[int, float]:
    """The factor s of every length."""
    if spec.factor == "each":
        return {length: max(1.0, length / native_length) for length in spec.lengths}
    one = max(1.0, spec.lengths[-1] / native_length) if spec.factor is None else spec.factor
    return dict.fromkeys(spec.lengths, one)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One method on one model, set up for one length."""

    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    """Window length in tokens."""
    table: Callable[[int], RopeTable]
    """Sequence length → table."""
    static: bool
    """Whether that is the same table for every sequence up to the window's length."""
    params: dict[str, Any]
    """Model and method, as far as they decide a value."""


def setups(spec: ModelRequest, model: PreparedModel, names: Sequence[MethodName]) -> Iterator[Setup]:
    """Every method at every length, in this order; LongEvalError where a method can't have its parameters."""
    factor_of = factors(spec, model.native_length)
    for name in names:
        for length in spec.lengths:
            arguments = spec.pe_args.get(name.base, {})
            geometry = dataclasses.replace(model.geometry, factor=factor_of[length])
            table = model.rope.tables(name, geometry, arguments)
            dependent = model.rope.length_dependent(name)
            # Their tables change with n in one direction only: equal at both ends is equal in between.
            static = not dependent or table(length).same_as(table(2))
            # A pin holds at every length, also where the method alone would still be what it is at short ones.
            if spec.backend == "vllm" and dependent and (spec.pin_length is not None or not static):
                table, static = _pinned(spec, name, length, table), True
            yield Setup(
                pe=name,
                factor=geometry.factor if model.rope.uses_factor(name) else None,
                length=length,
                table=table,
                static=static,
                params=_model_params(spec, model, dataclasses.asdict(model.rope.parameters(name, arguments)))
                | _backend_params(spec, dependent),
            )


def _pinned(
    spec: ModelRequest, name: MethodName, length: int, table: Callable[[int], RopeTable]
) -> Callable[[int], RopeTable]:
    """The one table that an engine can hold of a method that has another one at every length."""
    if spec.pin_length is None:
        raise LongEvalError(
            f"--pe {name.canonical}: has another table at every length, and a vLLM engine holds one "
            f"(asked for up to {format_length(length)})",
            "Pin it to one length, --pin-length 16k (recorded; other windows then get that table too), or use "
            "--backend hf.",
        )
    pin = spec.pin_length
    return lambda _: table(pin)


def _backend_params(spec: ModelRequest, length_dependent: bool) -> dict[str, Any]:
    """What the backend adds to the parameters of a cell; nothing for `hf`."""
    if spec.backend == "vllm":
        deciding = {name: value for name, value in spec.vllm_args.items() if name not in DECIDE_NOTHING}
        return {"pin_length": spec.pin_length if length_dependent else None, "vllm_args": deciding}
    if spec.backend == "openai":
        return {"base_url": spec.base_url, "served_model": spec.served_model}
    return {}


def _model_params(spec: ModelRequest, model: PreparedModel, method: dict[str, Any]) -> dict[str, Any]:
    rope = model.rope
    return {
        "native_length": model.native_length,
        "own_native_length": rope.own_native_length,
        "theta": model.geometry.theta,
        "head_dim": model.geometry.head_dim,
        "method": method,
        "shipped_rope": None if rope.shipped.base == "none" else rope.shipped.rope_type,
        "scale_from": None if rope.shipped.base == "none" else rope.scale_from,
        "layers": rope.layers if rope.config.by_layer_type else None,
        "bos": model.bos,
        "seed": spec.seed,
        "attn": model.attn,
        "weights": model.weights_digest,
        "tokenizer": model.tokenizer_digest,
    }


FOR_READERS = ("data_origin", "own_native_length", "source", "limit", "same_samples", "overlong")
"""Parameters that decide nothing by themselves: where texts and tasks were found, the native length that --native
replaced, and what led to a task's samples, which are in its cell's id themselves."""


def cell_id(kind: str, fields: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """A digest of everything that decides a cell's result."""
    decides = {"kind": kind, "schema": SCHEMA_VERSION, **fields}
    decides |= {key: value for key, value in params.items() if key not in FOR_READERS}
    return hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]


def build_groups(
    spec: PplSpec, protocol: Protocol, model: PreparedModel, corpus: Corpus, names: Sequence[MethodName]
) -> tuple[Group, ...]:
    """All cells of one model and data set, cells with the same passes together."""
    groups: list[Group] = []
    for setup in setups(spec, model, names):
        cell = _cell(spec, protocol, model, corpus, setup)
        _add(groups, Group(cells=(cell,), table=setup.table, static=setup.static), protocol)
    return tuple(groups)


def _add(groups: list[Group], new: Group, protocol: Protocol) -> None:
    """Puts a one-cell group into the first group that can serve it, or at the end."""
    length = new.cells[0].length
    for index, group in enumerate(groups):
        same_lengths = group.cells[0].length == length
        if not (new.static and group.static and (protocol.nested or same_lengths)):
            continue
        if group.table(length).same_as(new.table(length)):
            cells = sorted((*group.cells, *new.cells), key=lambda cell: cell.length)
            groups[index] = dataclasses.replace(group, cells=tuple(cells))
            return
    groups.append(new)


def _cell(spec: PplSpec, protocol: Protocol, model: PreparedModel, corpus: Corpus, setup: Setup) -> Cell:
    lengths = corpus.selection.lengths
    windows = tuple(protocol.windows(lengths, setup.length, stride_of(spec), model.bos))
    scored = len({window.document for window in windows})
    too_short = 0 if protocol.joined or not windows else len(lengths) - scored
    skipped = corpus.selection.skipped + (too_short if windows else len(lengths))
    params = setup.params | {
        "stride": stride_of(spec) if protocol.strided else None,
        "min_tokens": corpus.min_tokens,
        "data_digest": corpus.selection.digest,
        "data_origin": corpus.source.origin,
    }
    decides = {
        "model": model.name,
        "pe": setup.pe.canonical,
        "factor": setup.factor,
        "length": setup.length,
        "data": corpus.source.name,
        "protocol": protocol.name,
        "backend": spec.backend,
        "dtype": model.dtype,
        "skipped": skipped,
    }
    return Cell(
        id=cell_id("ppl", decides, params),
        model=model.name,
        pe=setup.pe,
        factor=setup.factor,
        length=setup.length,
        data=corpus.source.name,
        protocol=protocol.name,
        backend=spec.backend,
        params=params,
        windows=windows,
        skipped=skipped,
        truncated=_truncated(protocol, lengths, windows),
    )


def _truncated(protocol: Protocol, lengths: Sequence[int], windows: Sequence[Window]) -> int:
    """Documents of which tokens after the last scored one are left out."""
    if not windows:
        return 0
    if protocol.joined:
        last = max(window.stop for window in windows)
        return int(np.sum(np.cumsum(lengths) > last))
    ends: dict[int, int] = {}
    for window in windows:
        ends[window.document] = max(window.stop, ends.get(window.document, 0))
    return sum(end < lengths[document] for document, end in ends.items())

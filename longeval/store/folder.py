"""Records on disk: one run folder, on a local path or any fsspec URL.

    RUN/spec.yaml          the requests of this folder, one YAML document each
    RUN/plan.json          the cells of each request, in order (folders of earlier versions have no such file)
    RUN/cells/<id>.json    {"cell", "status", "records": [one record per metric]}
    RUN/nll/<id>.npz       a perplexity cell's token-level negative log-likelihoods
    RUN/samples/<id>.jsonl a task cell's samples: prompt digest, answer, scores
    RUN/keys/<id>.npz      what the evaluator of LongPPL says of each token, of which its key tokens follow
    RUN/key_nll/<id>.npz   a LongPPL cell's token-level negative log-likelihoods, with a mask of its key tokens
    RUN/texts/<digest>.npz the texts of a data set's documents, where they are kept (`store.texts`)
    RUN/curves/<id>.json   a PosGen cell's accuracies by position and losses by epoch
    RUN/losses/<id>.json   the losses of a training of `longeval finetune` by step
    RUN/weights/<training>.npz       the final weights of a PosGen training; cells of several methods may share them
    RUN/checkpoints/<training>.npz   the state from which an interrupted training resumes
    RUN/runners, RUN/leases  while commands compute: which ones, and which cells (`run.leases`)
    RUN/logs/<worker>.log    what workers printed, where several computed (`run.worker`)

A cell's artefact is written before its JSON file, and each file gets its name only when it is complete. So a killed
run leaves each cell either finished or absent.

Reading is strict: a cell whose records or artefact are damaged or contradict each other counts as absent and is listed
in `Store.damaged`. A cell's JSON file also holds a digest of records and artefact, if they agreed when they were
stored. If this digest matches, a reader need not compare them value by value. Folders of earlier versions have no
digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import longeval.store.keys  # noqa: F401  (registers its artefacts)
from longeval.errors import LongEvalError, reason
from longeval.files import sweep
from longeval.plain import made_from, read_json
from longeval.store.artefact import ARTEFACTS, Artefact, artefact_of, check_artefact, check_records, digest
from longeval.store.curves import CURVES, Curves
from longeval.store.files import RunFiles
from longeval.store.losses import LOSSES, Losses
from longeval.store.nll import NLL, TokenNll
from longeval.store.plan import PlannedRequest, StoredPlan, plan_from_json
from longeval.store.records import SCHEMA_VERSION, Record, Status, record_from_json
from longeval.store.samples import SAMPLES, Sample
from longeval.store.texts import DocumentTexts, path_of, texts_from_bytes

logger = logging.getLogger(__name__)

TrainingFile = Literal["weights", "checkpoints"]
"""The two kinds of files that belong to a training; each has a folder of this name."""

T = TypeVar("T")

MAX_NAMED = 5
"""Number of damaged cells that are named on stderr; further ones are only counted as damaged."""

_LARGEST_CELL = 64 << 20
"""Most bytes read of a cell's JSON or plan.json: thousands of times what longeval writes."""

_AT_ONCE = 32
"""Cells whose files are read together. More of them would be quicker in object storage, and take more memory."""

_MOST_KEPT = 512 << 20
"""Most bytes of artefacts that `Store.cells` keeps in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCell:
    """The content of a cell's file: one record per metric, all with the same status."""

    cell: str
    status: str
    records: tuple[Record, ...]
    artefact: Artefact[Any] | None = None
    """The kind of artefact of this cell, even if the cell failed; None if such cells have none."""
    with_artefact: bool = True
    """Whether this artefact is stored; true if such cells have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _CellFile:
    """The JSON object in a cell's file."""

    schema_version: int
    cell: str
    status: Status
    digest: str | None = None
    """Digest of records and artefact, if they agreed when they were stored."""
    artefact: str | None = None
    """The kind of artefact, if it is not the one that `artefact_of` gives for the records."""
    records: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _OpenedCell:
    """A cell whose file is whole, and whose artefact has not been looked at."""

    file: _CellFile
    records: tuple[Record, ...]
    artefact: Artefact[Any] | None
    """The kind of artefact of such cells."""


class Store(RunFiles):
    """A run folder. Arguments and errors are those of `RunFiles`."""

    def __init__(self, path: str, *, create: bool = True, read_only: bool = False) -> None:
        super().__init__(path, create=create, read_only=read_only)
        self.damaged: dict[str, str] = {}
        """Ids of the cells that were found damaged and not stored again since, with the reason."""
        self._warned: set[str] = set()
        """Those of which `load` has warned."""
        self._kept: dict[str, bytes] = {}
        """Path → content of artefacts that `cells` has kept."""

    def load(self, cell: str) -> StoredCell | None:
        """Returns a stored cell, or None if it is absent or damaged; the first time a warning names a damaged one.

        The cell's artefact may be missing (`StoredCell.with_artefact`).

        Raises:
            LongEvalError: The path of a file is taken by something else, such as a folder, so the cell can't be stored.
        """
        return self._loaded([cell])[cell]

    def finished(self, cell: str) -> tuple[Record, ...] | None:
        """The records of a cell that is finished: status ok, and its artefact is stored. Otherwise None."""
        return self.finished_among([cell]).get(cell)

    def finished_among(self, cells: Sequence[str]) -> dict[str, tuple[Record, ...]]:
        """The records of those cells that are finished, by id; object storage is asked for many of them at once."""
        return {
            cell: found.records
            for cell, found in self._loaded(cells).items()
            if found is not None and found.status == "ok" and found.with_artefact
        }

    def cells(self, *, keep_artefacts: bool = False) -> Iterator[StoredCell]:
        """All stored cells that are not damaged, in the order of their ids; damaged ones are put into `damaged`.

        Args:
            keep_artefacts: Whether `artefact` is to return what is read now to check the cells, as far as `_MOST_KEPT`
                allows. In object storage, reports then needn't ask for one artefact after another.
        """
        names = [name.removesuffix(".json") for name in self.names("cells") if name.endswith(".json")]
        for _, found in self._read_cells(names, keep=keep_artefacts and not self._is_local):
            if isinstance(found, StoredCell):
                yield found

    def save(self, records: Sequence[Record], found: Any = None, artefact: Artefact[Any] | None = None) -> None:
        """Stores a cell: first its artefact, then its records.

        Args:
            records: The records of one cell, one per metric.
            found: Its artefact (token NLLs, samples, curves), or None.
            artefact: The kind of artefact; None: the one that `artefact_of` gives for the records.
        """
        (cell,) = {record.cell for record in records}
        (status,) = {record.status for record in records}
        own = artefact_of(records[0])
        artefact = artefact or own
        plain_records = [record.to_json() for record in records]
        agreed = None
        if found is not None and artefact is not None:
            content = artefact.encode(found)
            self._write(self._at(artefact.path(cell)), content)
            self._kept.pop(self._at(artefact.path(cell)), None)
            with contextlib.suppress(
                ValueError
            ):  # without a digest, readers compare value by value and say what is wrong
                check_artefact(artefact, content, records)
                agreed = digest(plain_records, content)
        plain = {
            "cell": cell,
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "digest": agreed,
            "records": plain_records,
        }
        if artefact is not None and artefact is not own:
            plain["artefact"] = artefact.folder
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._write(self._at("cells", f"{cell}.json"), text.encode())
        if not self._read_only:
            self.damaged.pop(cell, None)
            self._warned.discard(cell)

    def artefact(self, artefact: Artefact[T], cell: str) -> T | None:
        """A cell's artefact; None if the cell has none of this kind. Raises LongEvalError if it is damaged."""
        path = self._at(artefact.path(cell))
        content = self._kept[path] if path in self._kept else self._read(path)
        if content is None:
            return None
        try:
            return artefact.decode(content)
        except ValueError as error:
            raise LongEvalError(f"{path}: {error}", "Run the request again with --fresh.") from error

    def nll(self, cell: str) -> TokenNll | None:
        """A perplexity cell's token NLLs, or None."""
        return self.artefact(NLL, cell)

    def samples(self, cell: str) -> tuple[Sample, ...] | None:
        """A task cell's samples, or None."""
        return self.artefact(SAMPLES, cell)

    def curves(self, cell: str) -> Curves | None:
        """A PosGen cell's curves, or None."""
        return self.artefact(CURVES, cell)

    def losses(self, cell: str) -> Losses | None:
        """The losses of a training's cell, or None."""
        return self.artefact(LOSSES, cell)

    def texts(self, digest: object) -> DocumentTexts | None:
        """The texts of the documents with this `data_digest`, or None where none are kept.

        Raises:
            LongEvalError: They are damaged, or are other ones.
        """
        name = path_of(digest)
        if name is None:
            return None
        path = self._at(name)
        try:
            content = self._read(path)
            return None if content is None else texts_from_bytes(content, str(digest))
        except (OSError, ValueError) as error:
            raise LongEvalError(f"{path}: {reason(error)}", "Repeat the command with --keep-text.") from error

    def save_texts(self, texts: DocumentTexts) -> None:
        """Writes the texts of a data set, unless the same ones, or more of them, are there."""
        with contextlib.suppress(LongEvalError):  # damaged ones are written again
            there = self.texts(texts.digest)
            if there is not None and len(there.texts) >= len(texts.texts):
                return
        self._write(self._at(str(path_of(texts.digest))), texts.to_bytes())

    def training(self, kind: TrainingFile, training: str) -> bytes | None:
        """The content of a training's file, or None if there is none."""
        return self._read(self._at(kind, f"{training}.npz"))

    def has_training(self, kind: TrainingFile, training: str) -> bool:
        """Whether the training has a file of this kind."""
        return self.has(f"{kind}/{training}.npz")

    def has_checkpoints(self) -> bool:
        """Whether the checkpoint of an unfinished training is stored."""
        return bool(self.names("checkpoints"))

    def save_training(self, kind: TrainingFile, training: str, content: bytes) -> None:
        """Writes or replaces a training's file atomically."""
        self._write(self._at(kind, f"{training}.npz"), content)

    def remove_training(self, kind: TrainingFile, training: str) -> None:
        """Removes a training's file, and its folder if it is then empty."""
        self.remove(f"{kind}/{training}.npz")
        if self._is_local:
            sweep(self._at(kind))
        self.remove_empty(kind)

    def plan(self) -> StoredPlan | None:
        """The folder's plan; None if it has no plan.json or, with a warning, a damaged one."""
        try:
            content = self._read(self._at("plan.json"), _LARGEST_CELL)
            return None if content is None else plan_from_json(content.decode())
        except (OSError, ValueError) as error:
            logger.warning("%s: damaged, not used (%s)", self._at("plan.json"), reason(error))
            return None

    def remember_plan(self, planned: PlannedRequest) -> None:
        """Writes a request's cells into plan.json; they replace those of an earlier equal request."""
        there = self.plan()
        plan = (there or StoredPlan()).with_request(planned)
        if plan != there:
            self.write_text("plan.json", plan.to_json())

    def _loaded(self, cells: Sequence[str]) -> dict[str, StoredCell | None]:
        """See `load`."""
        loaded: dict[str, StoredCell | None] = {}
        for cell, found in self._read_cells(cells):
            if isinstance(found, IsADirectoryError):
                raise LongEvalError(
                    f"{found.filename}: is not a file", "Remove it; the cell's file can't be written there."
                )
            if isinstance(found, Exception) and cell not in self._warned:
                self._warned.add(cell)
                if len(self._warned) <= MAX_NAMED:
                    logger.warning("%s: damaged, not used (%s)", self._at("cells", f"{cell}.json"), self.damaged[cell])
                elif len(self._warned) == MAX_NAMED + 1:
                    logger.warning("%s: more cells are damaged; they are not listed here", self.path)
            loaded[cell] = found if isinstance(found, StoredCell) else None
        return loaded

    def _read_cells(
        self, cells: Sequence[str], *, keep: bool = False
    ) -> Iterator[tuple[str, StoredCell | Exception | None]]:
        """Cells with their ids; None for one that is absent, an error for one that is damaged or is not a file."""
        room = _MOST_KEPT
        for first in range(0, len(cells), _AT_ONCE):
            names = cells[first : first + _AT_ONCE]
            contents = self._read_many([self._at("cells", f"{cell}.json") for cell in names], _LARGEST_CELL)
            opened = [_opened(cell, content) for cell, content in zip(names, contents, strict=True)]
            paths = {
                cell: self._at(one.artefact.path(cell))
                for cell, one in zip(names, opened, strict=True)
                if isinstance(one, _OpenedCell) and one.artefact is not None and one.file.status == "ok"
            }
            held = dict(zip(paths, self._read_many([*paths.values()]), strict=True))
            for cell, one in zip(names, opened, strict=True):
                found = _checked(one, held) if isinstance(one, _OpenedCell) else one
                if isinstance(found, Exception):
                    self.damaged[cell] = reason(found)
                elif keep and isinstance(content := held.get(cell), bytes) and len(content) <= room:
                    self._kept[paths[cell]] = content
                    room -= len(content)
                yield cell, found


def _opened(cell: str, content: bytes | Exception | None) -> _OpenedCell | Exception | None:
    """A cell from the content of its file, or what is wrong with it."""
    if content is None or isinstance(content, Exception):
        return content
    try:
        file = _cell_file(read_json(content))
        if file.schema_version != SCHEMA_VERSION:
            raise ValueError(f"it is not of schema {SCHEMA_VERSION}")
        if file.cell != cell:
            raise ValueError("it holds another cell than its name says")
        records = tuple(map(record_from_json, file.records))
        check_records(records, cell, file.status)
        kind = artefact_of(records[0]) if file.artefact is None else ARTEFACTS.get(file.artefact)
        if file.artefact is not None and kind is None:
            raise ValueError(f"it names an unknown kind of artefact, {file.artefact[:40]!r}")
    except ValueError as error:
        return error
    return _OpenedCell(file=file, records=records, artefact=kind)


def _cell_file(plain: object) -> _CellFile:
    """The JSON object of a cell's file; its records are checked afterwards, one by one."""
    if not isinstance(plain, dict) or not isinstance(records := plain.get("records"), list):
        raise ValueError("it has no list of records")
    file = made_from(_CellFile, plain | {"records": []})
    return dataclasses.replace(file, records=records)


def _checked(opened: _OpenedCell, held: Mapping[str, bytes | Exception | None]) -> StoredCell | Exception:
    """A cell whose records follow from its artefact, or what is wrong with it.

    Args:
        opened: The cell.
        held: Cell id → the content of its artefact's file, for cells that are to have one.
    """
    file, records, kind = opened.file, opened.records, opened.artefact
    content = held.get(file.cell)
    if isinstance(content, Exception):
        return content
    if kind is not None and content is not None and file.digest != digest(file.records, content):
        try:
            check_artefact(kind, content, records)
        except ValueError as error:
            return ValueError(f"{kind.path(file.cell)}: {error}")
    is_there = file.cell not in held or content is not None
    return StoredCell(cell=file.cell, status=file.status, records=records, artefact=kind, with_artefact=is_there)

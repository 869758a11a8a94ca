"""Records on disk: one run folder, on a local path or any fsspec URL.

    RUN/spec.yaml          the requests that were made of this folder, one YAML document each
    RUN/plan.json          the cells that each of them asked for, in their order (folders of earlier versions have none)
    RUN/cells/<id>.json    {"cell", "status", "records": [one record per metric]}
    RUN/nll/<id>.npz       a perplexity cell's token-level negative log-likelihoods
    RUN/samples/<id>.jsonl a task cell's samples: prompt digest, answer, scores
    RUN/curves/<id>.json   a PosGen cell's accuracies by position and losses by epoch
    RUN/weights/<training>.npz       what a PosGen training ended with; cells of several methods may be made from it
    RUN/checkpoints/<training>.npz   where a training that is under way can go on

A cell's NLL, sample or curves file is written before its JSON, and each file appears under its name only when it is
whole: a killed run leaves a cell either finished or absent.

Reading is strict: a cell whose file, records or artefact are damaged or contradict each other counts as absent, and is
named in `Store.damaged`, once. A cell's JSON holds a digest of its records and its artefact if they agreed
when stored: where it is right, they needn't be compared value by value. Folders of earlier versions have none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from longeval.errors import LongEvalError, WriteError, reason
from longeval.files import sweep, why_unwritable, write_whole
from longeval.plain import made_from, read_json
from longeval.store.artefact import ARTEFACTS, Artefact, artefact_of, check_artefact, check_records, digest
from longeval.store.curves import CURVES, Curves
from longeval.store.nll import NLL, TokenNll
from longeval.store.plan import PlannedRequest, StoredPlan, plan_from_json
from longeval.store.records import SCHEMA_VERSION, Record, Status, record_from_json
from longeval.store.samples import SAMPLES, Sample

logger = logging.getLogger(__name__)

TrainingFile = Literal["weights", "checkpoints"]
"""Folders of files by training."""

T = TypeVar("T")

MAX_NAMED = 5
"""More damaged cells than this are not named one by one on stderr."""

_LARGEST_CELL, _LARGEST_SPEC = 64 << 20, 4 << 20
"""Bytes of a cell's JSON or a plan.json, and of a spec.yaml, thousands of times what any has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCell:
    """A cell's file: its records, one per metric (all with the same status)."""

    cell: str
    status: str
    records: tuple[Record, ...]
    artefact: Artefact[Any] | None = None
    """The kind of artefact that its records are made from, also where it failed; None where they are made from none."""
    with_artefact: bool = True
    """Whether this artefact is stored; true where there is none to store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _CellFile:
    """The JSON of a cell."""

    schema_version: int
    cell: str
    status: Status
    digest: str | None = None
    """Of records and artefact, where they agreed when they were stored."""
    artefact: str | None = None
    """The kind of artefact, where it is another one than the records tell."""
    records: list[dict[str, Any]]


class Store:
    """A run folder.

    Args:
        path: Local folder or fsspec URL (`s3://bucket/run`, `memory://run`). Nothing is created until the first write.
        create: False to open for reading: raises LongEvalError unless `path` is a run folder already.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        bare = path.rstrip("/")
        self.path = path if not bare or bare.endswith(":") else bare
        self._read_only = False
        self.damaged: dict[str, str] = {}
        """Cells that were found damaged so far: id to the reason."""
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.path)
            found = create or self.is_run_folder()
        except Exception as error:  # a file system may raise anything: no package, no connection
            raise LongEvalError(
                f"run folder {path}: no file system for this address ({reason(error)})",
                "Install its fsspec package or use a local folder.",
            ) from error
        if not found:
            raise LongEvalError(
                f"{path}: not a run folder (it has no cells/ and no spec.yaml)",
                "Give a folder that `longeval ppl`, `longeval tasks` or `longeval posgen train` wrote (--out).",
            )

    def is_run_folder(self) -> bool:
        """Whether the folder holds what a run writes."""
        return bool(self._fs.exists(self._at("cells")) and self._fs.exists(self._at("spec.yaml")))

    def check_usable(self) -> None:
        """Raises LongEvalError if the run folder can't be written, leaving nothing behind (for local paths).

        One that is there and can't be written is good for reading: from then on nothing is written into it, and
        `check_writable` is for who has something to compute.
        """
        self._read_only = False
        try:
            self.check_writable()
        except LongEvalError:
            if not self.is_run_folder():
                raise
            self._read_only = True

    def check_writable(self) -> None:
        """Raises LongEvalError if the run folder can't be written, leaving nothing behind (for local paths)."""
        if isinstance(self._fs, LocalFileSystem):
            _check_local(self.path, self._root)
            return
        probe = self._at(f".longeval-{uuid.uuid4().hex}")
        try:
            self._fs.pipe_file(probe, b"?")
            self._fs.rm_file(probe)
        except Exception as error:  # a file system's package may raise anything
            raise _unwritable(self.path, reason(error)) from error

    def sweep(self) -> None:
        """Removes what killed runs left in the folder half-written (for local paths)."""
        if isinstance(self._fs, LocalFileSystem) and not self._read_only:
            sweep(self._root, *map(self._at, _folders()))

    def load(self, cell: str) -> StoredCell | None:
        """Returns a stored cell, or None; a damaged one counts as absent, and a warning names it.

        Its artefact may be missing.

        Raises:
            LongEvalError: Something else than a file is in the place of one, which could not be written then.
        """
        known = len(self.damaged)
        try:
            found = self._whole(cell)
        except IsADirectoryError as error:
            raise LongEvalError(
                f"{error.filename}: is no file", "Remove it: the cell's file belongs there, and can't be written."
            ) from None
        if known < len(self.damaged) <= MAX_NAMED:
            logger.warning("%s: damaged, not used (%s)", self._at("cells", f"{cell}.json"), self.damaged[cell])
        elif known < len(self.damaged) == MAX_NAMED + 1:
            logger.warning("%s: more cells are damaged, which are not named here", self.path)
        return found

    def finished(self, cell: str) -> tuple[Record, ...] | None:
        """Records of a cell that is done: with status ok, and with the artefact that they are made from."""
        found = self.load(cell)
        if found is None or found.status != "ok" or not found.with_artefact:
            return None
        return found.records

    def cells(self) -> Iterator[StoredCell]:
        """All stored cells that are whole, in the order of their ids."""
        if not self._fs.exists(self._at("cells")):
            return
        for path in sorted(self._fs.ls(self._at("cells"), detail=False)):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".json") and not name.startswith("."):
                try:
                    found = self._whole(name.removesuffix(".json"))
                except IsADirectoryError:
                    continue
                if found is not None:
                    yield found

    def save(self, records: Sequence[Record], found: Any = None, artefact: Artefact[Any] | None = None) -> None:
        """Stores a cell's records (all of one cell), with its artefact first.

        Args:
            records: One record per metric.
            found: What they are made from: token NLLs, samples, curves; None where there is nothing.
            artefact: Its kind, where it is another one than the records tell (`artefact_of`).
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
            with contextlib.suppress(ValueError):  # then a reader compares them value by value, and says what is wrong
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

    def artefact(self, artefact: Artefact[T], cell: str) -> T | None:
        """A cell's artefact, or None where it has none: it failed, or is of another study."""
        content = self._read(self._at(artefact.path(cell)))
        if content is None:
            return None
        try:
            return artefact.decode(content)
        except ValueError as error:
            raise LongEvalError(
                f"{self._at(artefact.path(cell))}: {error}", "Run the request again with --fresh."
            ) from error

    def nll(self, cell: str) -> TokenNll | None:
        """A cell's token NLLs, or None where it has none."""
        return self.artefact(NLL, cell)

    def samples(self, cell: str) -> tuple[Sample, ...] | None:
        """A task cell's samples, or None where it has none."""
        return self.artefact(SAMPLES, cell)

    def curves(self, cell: str) -> Curves | None:
        """A PosGen cell's curves, or None where it has none."""
        return self.artefact(CURVES, cell)

    def training(self, kind: TrainingFile, training: str) -> bytes | None:
        """Content of a training's file, or None."""
        return self._read(self._at(kind, f"{training}.npz"))

    def has_training(self, kind: TrainingFile, training: str) -> bool:
        """Whether a training has this file."""
        return bool(self._fs.exists(self._at(kind, f"{training}.npz")))

    def has_checkpoints(self) -> bool:
        """Whether a training was left under way."""
        folder = self._at("checkpoints")
        names = self._fs.ls(folder, detail=False) if self._fs.exists(folder) else []
        return any(not path.rsplit("/", 1)[-1].startswith(".") for path in names)

    def save_training(self, kind: TrainingFile, training: str, content: bytes) -> None:
        """Writes a training's file, whole or not at all; the one before it is replaced."""
        self._write(self._at(kind, f"{training}.npz"), content)

    def remove_training(self, kind: TrainingFile, training: str) -> None:
        """Removes a training's file, and the folder once it is empty."""
        path, folder = self._at(kind, f"{training}.npz"), self._at(kind)
        if self._fs.exists(path):
            self._fs.rm_file(path)
        if isinstance(self._fs, LocalFileSystem) and os.path.isdir(folder):
            sweep(folder)
            if not os.listdir(folder):
                os.rmdir(folder)

    def read_text(self, name: str) -> str | None:
        """A text file of the run folder (`spec.yaml`), or None; LongEvalError if it can't be read or is no text."""
        path = self._at(name)
        try:
            content = self._read(path, _LARGEST_SPEC)
            return None if content is None else content.decode()
        except (OSError, ValueError) as error:
            why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
            raise LongEvalError(f"{path}: can't be read ({why})", "Mend or remove it; cells stay.") from None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the run folder, whole or not at all."""
        self._write(self._at(name), text.encode())

    def plan(self) -> StoredPlan | None:
        """The cells that were asked of this folder; None for a folder of an earlier version.

        A damaged file counts as none, and a warning says so.
        """
        try:
            content = self._read(self._at("plan.json"), _LARGEST_CELL)
            return None if content is None else plan_from_json(content.decode())
        except (OSError, ValueError) as error:
            logger.warning("%s: damaged, not used (%s)", self._at("plan.json"), reason(error))
            return None

    def remember_plan(self, planned: PlannedRequest) -> None:
        """Writes a request's cells into plan.json, in place of those of the same request before."""
        there = self.plan()
        plan = (there or StoredPlan()).with_request(planned)
        if plan != there:
            self.write_text("plan.json", plan.to_json())

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _whole(self, cell: str) -> StoredCell | None:
        """A cell, None where it is absent or damaged; IsADirectoryError where no file can take its place."""
        if cell in self.damaged:
            return None
        path = self._at("cells", f"{cell}.json")
        try:
            content = self._read(path, _LARGEST_CELL)
            return None if content is None else self._checked(cell, content)
        except (OSError, ValueError) as error:
            self.damaged[cell] = reason(error)
            if isinstance(error, IsADirectoryError):
                raise
            return None

    def _checked(self, cell: str, content: bytes) -> StoredCell:
        """A cell from its file, compared with its artefact; ValueError says what is wrong."""
        file = made_from(_CellFile, read_json(content))
        if file.schema_version != SCHEMA_VERSION:
            raise ValueError(f"it is not of schema {SCHEMA_VERSION}")
        if file.cell != cell:
            raise ValueError("it is of another cell than its name says")
        records = tuple(map(record_from_json, file.records))
        check_records(records, cell, file.status)
        kind = artefact_of(records[0]) if file.artefact is None else ARTEFACTS.get(file.artefact)
        if file.artefact is not None and kind is None:
            raise ValueError("its artefact is of no kind that there is")
        if kind is None or file.status != "ok":
            return StoredCell(cell=cell, status=file.status, records=records, artefact=kind)
        held = self._read(self._at(kind.path(cell)))
        if held is not None and file.digest != digest(file.records, held):
            try:
                check_artefact(kind, held, records)
            except ValueError as error:
                raise ValueError(f"{kind.path(cell)}: {error}") from error
        with_artefact = held is not None
        return StoredCell(cell=cell, status=file.status, records=records, artefact=kind, with_artefact=with_artefact)

    def _read(self, path: str, largest: int | None = None) -> bytes | None:
        """Content of a file, None where there is none.

        IsADirectoryError where something else than a file is there, ValueError for more bytes than `largest`.
        """
        if isinstance(self._fs, LocalFileSystem) and not os.path.isfile(
            path
        ):  # also what would block or never end: pipes, devices
            if not os.path.exists(path):
                return None
            raise IsADirectoryError(21, "it is no file", path)
        try:
            content: bytes = self._fs.cat_file(path, end=None if largest is None else largest + 1)
        except FileNotFoundError:
            return None
        if largest is not None and len(content) > largest:
            raise ValueError(f"it has more than {largest >> 20} MiB")
        return content

    def _write(self, path: str, content: bytes) -> None:
        """Local files: write beside, sync, rename. Object stores put a whole object or nothing."""
        if self._read_only:
            return
        try:
            if isinstance(self._fs, LocalFileSystem):
                write_whole(path, content)
            else:
                self._fs.pipe_file(path, content)
        except OSError as error:
            raise WriteError(
                f"run folder {self.path}: can't be written ({reason(error)})",
                "Finished cells are stored; mend that, and the same command goes on from there.",
            ) from error


def _folders() -> tuple[str, ...]:
    """All folders of a run folder."""
    return ("cells", *ARTEFACTS, "weights", "checkpoints")


def _check_local(path: str, root: str) -> None:
    """Raises LongEvalError if a local run folder can't be written; leaves nothing. `path` is what the user named it."""
    _check_name(path, root)
    folder = os.path.abspath(root)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    inside = (f"{root}/{name}" for name in _folders())
    for part in (folder, *filter(os.path.lexists, inside)):
        if not os.path.isdir(part):
            what = "a file" if os.path.exists(part) else "a link to what isn't there"
            raise LongEvalError(f"--out {path}: {part} is {what}", "Choose another folder.")
        if (why := why_unwritable(part)) is not None:
            raise _unwritable(path, why)
    for part in (f"{root}/spec.yaml", f"{root}/plan.json"):
        if os.path.lexists(part) and not os.path.isfile(part):
            raise LongEvalError(f"--out {path}: {part} is no file", "Remove it, or choose another folder.")
    try:
        os.lstat(os.path.join(os.path.abspath(root), "cells", ".a-name-as-long-as-those-of-temporary-files"))
    except FileNotFoundError:
        pass
    except OSError as error:  # a part of it is too long, or all of it
        raise LongEvalError(f"--out {path}: {reason(error)}", "Choose another folder.") from error


def _check_name(path: str, root: str) -> None:
    """Raises LongEvalError for a local folder that can't be meant."""
    name = path.split("://", 1)[-1]
    if name.startswith("~") and os.path.expanduser(name) == name:
        raise LongEvalError(
            f"--out {path}: there is no user {name[1:].split('/')[0]}",
            f"Name another folder; ./{name} is one whose name begins with ~.",
        )
    if name != path and not name.startswith(("/", "~")):
        raise LongEvalError(f"--out {path}: not an absolute path", f"Give file://{os.path.abspath(name)}.")
    if os.path.realpath(root) == os.sep:
        raise LongEvalError(f"--out {path}: the root of the file system", "Name a folder in it.")


def _unwritable(path: str, why: str) -> LongEvalError:
    return LongEvalError(f"--out {path}: can't write there ({why})", "Choose a folder you may write to.")

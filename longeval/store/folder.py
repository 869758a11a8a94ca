"""Records on disk: one run folder, on a local path or any fsspec URL.

    RUN/spec.yaml          the requests of this folder, one YAML document each
    RUN/plan.json          the cells of each request, in order (folders of earlier versions have no such file)
    RUN/cells/<id>.json    {"cell", "status", "records": [one record per metric]}
    RUN/nll/<id>.npz       a perplexity cell's token-level negative log-likelihoods
    RUN/samples/<id>.jsonl a task cell's samples: prompt digest, answer, scores
    RUN/curves/<id>.json   a PosGen cell's accuracies by position and losses by epoch
    RUN/losses/<id>.json   the losses of a training of `longeval finetune` by step
    RUN/weights/<training>.npz       the final weights of a PosGen training; cells of several methods may share them
    RUN/checkpoints/<training>.npz   the state from which an interrupted training resumes

A cell's artefact is written before its JSON file, and each file gets its name only when it is complete. So a killed
run leaves each cell either finished or absent.

Reading is strict: a cell whose records or artefact are damaged or contradict each other counts as absent and is listed
in `Store.damaged`. A cell's JSON file also holds a digest of records and artefact, if they agreed when they were
stored. If this digest matches, a reader need not compare them value by value. Folders of earlier versions have no
digest.
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
from longeval.store.losses import LOSSES, Losses
from longeval.store.nll import NLL, TokenNll
from longeval.store.plan import PlannedRequest, StoredPlan, plan_from_json
from longeval.store.records import SCHEMA_VERSION, Record, Status, record_from_json
from longeval.store.samples import SAMPLES, Sample

logger = logging.getLogger(__name__)

TrainingFile = Literal["weights", "checkpoints"]
"""The two kinds of files that belong to a training; each has a folder of this name."""

T = TypeVar("T")

MAX_NAMED = 5
"""Number of damaged cells that are named on stderr; further ones are only counted as damaged."""

_LARGEST_CELL, _LARGEST_SPEC = 64 << 20, 4 << 20
"""Most bytes read of a cell's JSON or plan.json, and of spec.yaml: thousands of times what longeval writes."""


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


class Store:
    """A run folder.

    Args:
        path: Local folder or fsspec URL (`s3://bucket/run`, `memory://run`). Nothing is created until the first write.
        create: Whether the folder may be new. If False, `path` must be a run folder already.
        read_only: Whether everything that is to be written is ignored, since another process writes the same.

    Raises:
        LongEvalError: The file system can't be reached, or `path` is not a run folder and `create` is False.
    """

    def __init__(self, path: str, *, create: bool = True, read_only: bool = False) -> None:
        bare = path.rstrip("/")
        self.path = path if not bare or bare.endswith(":") else bare
        self._follows = self._read_only = read_only
        self.damaged: dict[str, str] = {}
        """Ids of the cells that were found damaged and not stored again since, with the reason."""
        self._warned: set[str] = set()
        """Those of which `load` has warned."""
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.path)
            found = create or self.is_run_folder()
        except Exception as error:  # fsspec and its packages raise any kind of error (no package, no connection)
            raise LongEvalError(
                f"run folder {path}: no file system for this address ({reason(error)})",
                "Install its fsspec package or use a local folder.",
            ) from error
        if not found:
            raise LongEvalError(
                f"{path}: not a run folder (it has no cells/ and no spec.yaml)",
                "Give a folder that `longeval ppl`, `longeval tasks` or `longeval posgen train` wrote (--out).",
            )

    def local_path(self, *parts: str) -> str:
        """The path of a file or folder inside a run folder on this machine.

        Raises:
            LongEvalError: The run folder is elsewhere.
        """
        if not isinstance(self._fs, LocalFileSystem):
            raise LongEvalError(
                f"--out {self.path}: is not on this machine, and models can only be saved here",
                "Give a local folder, and copy it afterwards.",
            )
        return self._at(*parts)

    def is_run_folder(self) -> bool:
        """Whether the folder holds `cells/` and `spec.yaml`."""
        return bool(self._fs.exists(self._at("cells")) and self._fs.exists(self._at("spec.yaml")))

    def check_usable(self) -> None:
        """Checks that the run folder can be written, or is a run folder that can at least be read.

        A run folder that can't be written is treated as read-only from then on: writes into it are ignored. A caller
        that has cells to compute uses `check_writable` instead.

        Raises:
            LongEvalError: The folder can't be written, and it is not a run folder.
        """
        self._read_only = self._follows
        try:
            self.check_writable()
        except LongEvalError:
            if not self.is_run_folder():
                raise
            self._read_only = True

    def check_writable(self) -> None:
        """Raises LongEvalError if the run folder can't be written. The check leaves no files behind."""
        if isinstance(self._fs, LocalFileSystem):
            _check_local(self.path, self._root)
            return
        probe = self._at(f".longeval-{uuid.uuid4().hex}")
        try:
            self._fs.pipe_file(probe, b"?")
            self._fs.rm_file(probe)
        except Exception as error:  # a file system's package raises any kind of error
            raise _unwritable(self.path, reason(error)) from error

    def sweep(self) -> None:
        """Removes the unfinished files that killed runs left in a local folder."""
        if isinstance(self._fs, LocalFileSystem) and not self._read_only:
            sweep(self._root, *map(self._at, _folders()))

    def load(self, cell: str) -> StoredCell | None:
        """Returns a stored cell, or None if it is absent or damaged; the first time a warning names a damaged one.

        The cell's artefact may be missing (`StoredCell.with_artefact`).

        Raises:
            LongEvalError: The path of a file is taken by something else, such as a folder, so the cell can't be stored.
        """
        try:
            found = self._read_cell(cell)
        except IsADirectoryError as error:
            raise LongEvalError(
                f"{error.filename}: is not a file", "Remove it; the cell's file can't be written there."
            ) from None
        if found is None and cell in self.damaged and cell not in self._warned:
            self._warned.add(cell)
            if len(self._warned) <= MAX_NAMED:
                logger.warning("%s: damaged, not used (%s)", self._at("cells", f"{cell}.json"), self.damaged[cell])
            elif len(self._warned) == MAX_NAMED + 1:
                logger.warning("%s: more cells are damaged; they are not listed here", self.path)
        return found

    def finished(self, cell: str) -> tuple[Record, ...] | None:
        """The records of a cell that is finished: status ok, and its artefact is stored. Otherwise None."""
        found = self.load(cell)
        if found is None or found.status != "ok" or not found.with_artefact:
            return None
        return found.records

    def cells(self) -> Iterator[StoredCell]:
        """All stored cells that are not damaged, in the order of their ids; damaged ones are put into `damaged`."""
        if not self._fs.exists(self._at("cells")):
            return
        for path in sorted(self._fs.ls(self._at("cells"), detail=False)):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".json") and not name.startswith("."):
                try:
                    found = self._read_cell(name.removesuffix(".json"))
                except IsADirectoryError:
                    continue
                if found is not None:
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

    def training(self, kind: TrainingFile, training: str) -> bytes | None:
        """The content of a training's file, or None if there is none."""
        return self._read(self._at(kind, f"{training}.npz"))

    def has_training(self, kind: TrainingFile, training: str) -> bool:
        """Whether the training has a file of this kind."""
        return bool(self._fs.exists(self._at(kind, f"{training}.npz")))

    def has_checkpoints(self) -> bool:
        """Whether the checkpoint of an unfinished training is stored."""
        folder = self._at("checkpoints")
        names = self._fs.ls(folder, detail=False) if self._fs.exists(folder) else []
        return any(not path.rsplit("/", 1)[-1].startswith(".") for path in names)

    def save_training(self, kind: TrainingFile, training: str, content: bytes) -> None:
        """Writes or replaces a training's file atomically."""
        self._write(self._at(kind, f"{training}.npz"), content)

    def remove_training(self, kind: TrainingFile, training: str) -> None:
        """Removes a training's file, and its folder if it is then empty."""
        path, folder = self._at(kind, f"{training}.npz"), self._at(kind)
        if self._fs.exists(path):
            self._fs.rm_file(path)
        if isinstance(self._fs, LocalFileSystem) and os.path.isdir(folder):
            sweep(folder)
            if not os.listdir(folder):
                os.rmdir(folder)

    def read_text(self, name: str) -> str | None:
        """A text file of the run folder, or None if it is absent. Raises LongEvalError if it can't be read as UTF-8."""
        path = self._at(name)
        try:
            content = self._read(path, _LARGEST_SPEC)
            return None if content is None else content.decode()
        except (OSError, ValueError) as error:
            why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
            raise LongEvalError(
                f"{path}: can't be read ({why})", "Correct or remove the file; finished cells stay."
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the run folder atomically."""
        self._write(self._at(name), text.encode())

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

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _read_cell(self, cell: str) -> StoredCell | None:
        """A cell; None if it is absent or damaged. Raises IsADirectoryError if its path is taken by a non-file."""
        path = self._at("cells", f"{cell}.json")
        try:
            content = self._read(path, _LARGEST_CELL)
            return None if content is None else self._parse_cell(cell, content)
        except (OSError, ValueError) as error:
            self.damaged[cell] = reason(error)
            if isinstance(error, IsADirectoryError):
                raise
            return None

    def _parse_cell(self, cell: str, content: bytes) -> StoredCell:
        """A cell from the content of its file, checked against its artefact; raises ValueError with the reason."""
        file = made_from(_CellFile, read_json(content))
        if file.schema_version != SCHEMA_VERSION:
            raise ValueError(f"it is not of schema {SCHEMA_VERSION}")
        if file.cell != cell:
            raise ValueError("it holds another cell than its name says")
        records = tuple(map(record_from_json, file.records))
        check_records(records, cell, file.status)
        kind = artefact_of(records[0]) if file.artefact is None else ARTEFACTS.get(file.artefact)
        if file.artefact is not None and kind is None:
            raise ValueError(f"it names an unknown kind of artefact, {file.artefact[:40]!r}")
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
        """The content of a file; None if it does not exist.

        Raises:
            IsADirectoryError: The path is not a regular file. Pipes and devices are refused too: reading may never end.
            ValueError: The file has more bytes than `largest`.
        """
        if isinstance(self._fs, LocalFileSystem) and not os.path.isfile(path):
            if not os.path.exists(path):
                return None
            raise IsADirectoryError(21, "it is not a file", path)
        try:
            content: bytes = self._fs.cat_file(path, end=None if largest is None else largest + 1)
        except FileNotFoundError:
            return None
        if largest is not None and len(content) > largest:
            raise ValueError(f"it has more than {largest >> 20} MiB")
        return content

    def _write(self, path: str, content: bytes) -> None:
        """Writes a file atomically: locally by rename; object stores put a whole object or nothing."""
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
                "Finished cells are stored. Solve the problem and repeat the command; it computes the rest.",
            ) from error


def _folders() -> tuple[str, ...]:
    """Names of the folders inside a run folder."""
    return ("cells", *ARTEFACTS, "weights", "checkpoints")


def _check_local(path: str, root: str) -> None:
    """Raises LongEvalError if the local folder `root` can't be written. `path` is its name as the user gave it."""
    _check_name(path, root)
    folder = os.path.abspath(root)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    inside = (f"{root}/{name}" for name in _folders())
    for part in (folder, *filter(os.path.lexists, inside)):
        if not os.path.isdir(part):
            what = "a file" if os.path.exists(part) else "a broken link"
            raise LongEvalError(f"--out {path}: {part} is {what}", "Choose another folder.")
        if (why := why_unwritable(part)) is not None:
            raise _unwritable(path, why)
    for part in (f"{root}/spec.yaml", f"{root}/plan.json"):
        if os.path.lexists(part) and not os.path.isfile(part):
            raise LongEvalError(f"--out {path}: {part} is not a file", "Remove it, or choose another folder.")
    try:
        os.lstat(os.path.join(os.path.abspath(root), "cells", ".a-name-as-long-as-those-of-temporary-files"))
    except FileNotFoundError:
        pass
    except OSError as error:  # the path or a part of it is too long
        raise LongEvalError(f"--out {path}: {reason(error)}", "Choose another folder.") from error


def _check_name(path: str, root: str) -> None:
    """Refuses a local folder that must be a mistake: an unknown ~user, a relative path after file://, and /."""
    name = path.split("://", 1)[-1]
    if name.startswith("~") and os.path.expanduser(name) == name:
        raise LongEvalError(
            f"--out {path}: there is no user {name[1:].split('/')[0]}",
            f"Choose another folder, or write ./{name} for a folder whose name begins with ~.",
        )
    if name != path and not name.startswith(("/", "~")):
        raise LongEvalError(f"--out {path}: not an absolute path", f"Give file://{os.path.abspath(name)}.")
    if os.path.realpath(root) == os.sep:
        raise LongEvalError(f"--out {path}: is the root of the file system", "Name a folder inside it.")


def _unwritable(path: str, why: str) -> LongEvalError:
    return LongEvalError(f"--out {path}: can't write there ({why})", "Choose a folder you may write to.")

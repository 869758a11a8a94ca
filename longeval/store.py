"""Records on disk: one run folder, on a local path or any fsspec URL.

    RUN/spec.yaml          the requests that were made of this folder, one YAML document each
    RUN/cells/<id>.json    {"cell", "status", "records": [one record per metric]}
    RUN/nll/<id>.npz       a perplexity cell's token-level negative log-likelihoods
    RUN/samples/<id>.jsonl a task cell's samples: prompt digest, answer, scores
    RUN/curves/<id>.json   a PosGen cell's accuracies by position and losses by epoch
    RUN/weights/<training>.npz       what a PosGen training ended with; cells of several methods may be made from it
    RUN/checkpoints/<training>.npz   where a training that is under way can go on

A cell's NLL, sample or curves file is written before its JSON, and each file appears under its name only when it is
whole: a killed run leaves a cell either finished or absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

from longeval.curves import Curves, curves_from_json
from longeval.errors import LongEvalError, WriteError
from longeval.files import sweep, why_unwritable, write_whole
from longeval.nll import TokenNll, token_nll_from_bytes
from longeval.records import SCHEMA_VERSION, Record, record_from_json
from longeval.samples import Sample, samples_from_jsonl, samples_to_jsonl

TrainingFile = Literal["weights", "checkpoints"]
"""Folders of files by training."""

_FOLDERS = ("cells", "nll", "samples", "curves", "weights", "checkpoints")
"""All folders of a run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCell:
    """A cell's file: its records, one per metric (all with the same status)."""

    cell: str
    status: str
    records: tuple[Record, ...]


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
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.path)
        except (ImportError, ValueError) as error:
            raise LongEvalError(
                f"run folder {path}: no file system for this address ({error})",
                "Install its fsspec package or use a local folder.",
            ) from error
        if not create and not self.is_run_folder():
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
        if not isinstance(self._fs, LocalFileSystem):
            return
        self._check_name()
        folder = os.path.abspath(self._root)
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        for part in (folder, *(path for name in _FOLDERS if os.path.lexists(path := self._at(name)))):
            if not os.path.isdir(part):
                what = "a file" if os.path.exists(part) else "a link to what isn't there"
                raise LongEvalError(f"--out {self.path}: {part} is {what}", "Choose another folder.")
            if (reason := why_unwritable(part)) is not None:
                raise LongEvalError(
                    f"--out {self.path}: can't write there ({reason})", "Choose a folder you may write to."
                )
        try:
            os.lstat(os.path.join(os.path.abspath(self._root), "cells", ".a-name-as-long-as-those-of-temporary-files"))
        except FileNotFoundError:
            pass
        except OSError as error:  # a part of it is too long, or all of it
            raise LongEvalError(f"--out {self.path}: {error.strerror}", "Choose another folder.") from error

    def _check_name(self) -> None:
        """Raises LongEvalError for a local folder that can't be meant."""
        name = self.path.split("://", 1)[-1]
        if name.startswith("~") and os.path.expanduser(name) == name:
            raise LongEvalError(
                f"--out {self.path}: there is no user {name[1:].split('/')[0]}",
                f"Name another folder; ./{name} is one whose name begins with ~.",
            )
        if name != self.path and not name.startswith(("/", "~")):
            raise LongEvalError(f"--out {self.path}: not an absolute path", f"Give file://{os.path.abspath(name)}.")
        if os.path.realpath(self._root) == os.sep:
            raise LongEvalError(f"--out {self.path}: the root of the file system", "Name a folder in it.")

    def sweep(self) -> None:
        """Removes what killed runs left in the folder half-written (for local paths)."""
        if isinstance(self._fs, LocalFileSystem) and not self._read_only:
            sweep(self._root, *map(self._at, _FOLDERS))

    def has_nll(self, cell: str) -> bool:
        """Whether a cell's token values are stored."""
        path = self._at("nll", f"{cell}.npz")
        return bool(self._fs.exists(path)) and bool(self._fs.size(path))

    def has_samples(self, cell: str) -> bool:
        """Whether a cell's samples are stored."""
        path = self._at("samples", f"{cell}.jsonl")
        return bool(self._fs.exists(path)) and bool(self._fs.size(path))

    def has_curves(self, cell: str) -> bool:
        """Whether a PosGen cell's curves are stored."""
        path = self._at("curves", f"{cell}.json")
        return bool(self._fs.exists(path)) and bool(self._fs.size(path))

    def load(self, cell: str) -> StoredCell | None:
        """Returns a stored cell, or None. A file that is no record raises LongEvalError naming it."""
        path = self._at("cells", f"{cell}.json")
        if not self._fs.exists(path):
            return None
        return self._parse(path)

    def cells(self) -> Iterator[StoredCell]:
        """All stored cells, in the order of their ids."""
        if not self._fs.exists(self._at("cells")):
            return
        for path in sorted(self._fs.ls(self._at("cells"), detail=False)):
            if path.endswith(".json") and not path.rsplit("/", 1)[-1].startswith("."):
                yield self._parse(path)

    def save(
        self,
        records: Sequence[Record],
        nll: TokenNll | None = None,
        samples: Sequence[Sample] | None = None,
        curves: Curves | None = None,
    ) -> None:
        """Stores a cell's records (all of one cell), with its NLLs, samples or curves first."""
        (cell,) = {record.cell for record in records}
        (status,) = {record.status for record in records}
        if nll is not None:
            self._write(self._at("nll", f"{cell}.npz"), nll.to_bytes())
        if samples is not None:
            self._write(self._at("samples", f"{cell}.jsonl"), samples_to_jsonl(samples).encode())
        if curves is not None:
            self._write(self._at("curves", f"{cell}.json"), curves.to_json().encode())
        plain = {
            "cell": cell,
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "records": [record.to_json() for record in records],
        }
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._write(self._at("cells", f"{cell}.json"), text.encode())

    def nll(self, cell: str) -> TokenNll | None:
        """Returns a cell's token NLLs, or None where it has none (failed, or a task)."""
        path = self._at("nll", f"{cell}.npz")
        if not self._fs.exists(path):
            return None
        try:
            return token_nll_from_bytes(self._fs.cat_file(path))
        except ValueError as error:
            raise LongEvalError(f"{path}: {error}", "Run the request again with --fresh.") from error

    def samples(self, cell: str) -> tuple[Sample, ...] | None:
        """Returns a task cell's samples, or None where it has none (failed, a group, or perplexity)."""
        path = self._at("samples", f"{cell}.jsonl")
        if not self._fs.exists(path):
            return None
        try:
            return samples_from_jsonl(self._fs.cat_file(path).decode())
        except (ValueError, TypeError) as error:
            raise LongEvalError(
                f"{path}: not the samples of a cell ({error})", "Run the request with --fresh."
            ) from error

    def curves(self, cell: str) -> Curves | None:
        """Returns a PosGen cell's curves, or None where it has none (failed, or of another command)."""
        path = self._at("curves", f"{cell}.json")
        if not self._fs.exists(path):
            return None
        try:
            return curves_from_json(self._fs.cat_file(path).decode())
        except ValueError as error:
            raise LongEvalError(f"{path}: {error}", "Remove the file and run the request again.") from error

    def training(self, kind: TrainingFile, training: str) -> bytes | None:
        """Content of a training's file, or None."""
        path = self._at(kind, f"{training}.npz")
        if not self._fs.exists(path):
            return None
        content: bytes = self._fs.cat_file(path)
        return content

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
        """A text file of the run folder (`spec.yaml`), or None."""
        path = self._at(name)
        return self._fs.cat_file(path).decode() if self._fs.exists(path) else None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the run folder, whole or not at all."""
        self._write(self._at(name), text.encode())

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _parse(self, path: str) -> StoredCell:
        try:
            plain: dict[str, Any] = json.loads(self._fs.cat_file(path))
            records = tuple(record_from_json(record) for record in plain["records"])
            return StoredCell(cell=plain["cell"], status=plain["status"], records=records)
        except (ValueError, KeyError, TypeError) as error:
            raise LongEvalError(
                f"{path}: not a cell of schema {SCHEMA_VERSION} ({type(error).__name__}: {error})",
                "Remove the file and run the request again.",
            ) from error

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
                f"run folder {self.path}: can't be written ({error.strerror or error})",
                "Finished cells are stored; mend that, and the same command goes on from there.",
            ) from error

"""The files of a run folder, on a local path or any fsspec URL: reading, atomic writing, listing and removing.

`store.folder` says which files there are. Several processes may write into one folder, so what is there is always read
from the file system: fsspec's caches of listings are never used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from longeval.errors import LongEvalError, WriteError, reason
from longeval.files import create_whole, sweep, why_unwritable, write_whole
from longeval.store.artefact import ARTEFACTS
from longeval.store.texts import FOLDER

T = TypeVar("T")

_LARGEST_TEXT = 4 << 20
"""Most bytes read of a text file such as spec.yaml: thousands of times what longeval writes."""

_PATIENCE_S = 60.0
"""How long object storage may take for its first answer. A connection that is refused takes 15 s."""


class RunFiles:
    """The files of a run folder.

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
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.path)
        except Exception as error:  # fsspec and its packages raise any kind of error
            raise LongEvalError(
                f"run folder {path}: no file system for this address ({reason(error)})",
                "Install its fsspec package (for s3:// `pip install 'longeval-rope[s3]'`) or use a local folder.",
            ) from error
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._made = _missing(self._root) if self._is_local else []
        if not self._is_local:
            with self._reaching():
                _answered(lambda: self._fs.exists(self._root))
        if not create and not self.is_run_folder():
            raise LongEvalError(
                f"{path}: not a run folder (it has no cells/ and no spec.yaml)",
                "Give a folder that `longeval ppl`, `longeval tasks` or `longeval posgen train` wrote (--out).",
            )

    @property
    def read_only(self) -> bool:
        """Whether everything that is to be written is ignored."""
        return self._read_only

    @property
    def is_local(self) -> bool:
        """Whether it is a folder that this machine reaches by its path."""
        return self._is_local

    def local_path(self, *parts: str) -> str:
        """The path of a file or folder inside a run folder on this machine.

        Raises:
            LongEvalError: The run folder is elsewhere.
        """
        if not self._is_local:
            raise LongEvalError(
                f"--out {self.path}: is not on this machine, and models can only be saved here",
                "Give a local folder, and copy it afterwards.",
            )
        return self._at(*parts)

    def is_run_folder(self) -> bool:
        """Whether the folder holds `cells/` and `spec.yaml`."""
        return self.has("cells") and self.has("spec.yaml")

    def is_empty(self) -> bool:
        """Whether there is nothing at its address yet, or an empty folder."""
        with self._reaching():
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return True
            return self._fs.isdir(self._root) and not self._fs.ls(self._root, detail=False)

    def has(self, name: str) -> bool:
        """Whether there is a file or sub-folder of this name."""
        with self._reaching():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(name)))

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
        if self._is_local:
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
        if self._is_local and not self._read_only:
            sweep(self._root, *map(self._at, _folders()))

    def read_text(self, name: str) -> str | None:
        """A text file of the run folder, or None if it is absent. Raises LongEvalError if it can't be read as UTF-8."""
        path = self._at(name)
        try:
            content = self._read(path, _LARGEST_TEXT)
            return None if content is None else content.decode()
        except (OSError, ValueError) as error:
            why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
            raise LongEvalError(
                f"{path}: can't be read ({why})", "Correct or remove the file; finished cells stay."
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the run folder atomically."""
        self._write(self._at(name), text.encode())

    def create_text(self, name: str, text: str) -> bool:
        """Makes a text file of the run folder if there is none of this name. Of several processes, one succeeds.

        Args:
            name: Its path inside the run folder, such as `leases/ab12.json`.
            text: Its content.

        Returns:
            Whether this call made the file. False where the run folder is read-only.
        """
        if self._read_only:
            return False
        path, content = self._at(name), text.encode()
        with self._writing():
            if self._is_local:
                return create_whole(path, content)
            for wait_s in (0.1, 0.5, 2.0, None):
                try:
                    self._fs.pipe_file(path, content, mode="create")
                except FileExistsError:
                    return False
                except OSError as error:  # S3 answers 409 while another process is making the same object
                    if error.errno != errno.EBUSY or wait_s is None:
                        raise
                    time.sleep(wait_s)
                else:
                    break
        return True

    def names(self, folder: str) -> list[str]:
        """The names of the files directly in a sub-folder, sorted, without hidden ones; none if it is absent."""
        with self._reaching():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._at(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Removes a file of the run folder if it is there."""
        if not self._read_only:
            with self._writing(), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

    def remove_empty(self, *folders: str) -> None:
        """Removes those of these sub-folders that are empty, and then the run folder itself if it is.

        Of the folders above it, those are removed too that are empty and were not there when this object was made.

        Object storage has no folders, so nothing happens there.
        """
        if self._is_local and not self._read_only:
            for path in (*map(self._at, folders), self._root, *self._made):
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _read(self, path: str, largest: int | None = None) -> bytes | None:
        """The content of a file; None if it does not exist.

        Raises:
            IsADirectoryError: The path is not a regular file. Pipes and devices are refused too: reading may never end.
            OSError: It can't be read.
            ValueError: The file has more bytes than `largest`.
            LongEvalError: Object storage doesn't answer, or refuses access.
        """
        (found,) = self._read_many([path], largest)
        if isinstance(found, Exception):
            raise found
        return found

    def _read_many(self, paths: Sequence[str], largest: int | None = None) -> list[bytes | Exception | None]:
        """What `_read` returns or raises for each of several files. Object storage is asked for all of them at once.

        Raises:
            LongEvalError: Object storage doesn't answer, or refuses access. No file counts as damaged then.
        """
        if self._is_local:
            return [_or_error(_read_local, path, largest) for path in paths]
        ends = None if largest is None else largest + 1
        with self._reaching():
            # Ranges even for whole files, since s3fs asks for the size of each file otherwise.
            found = self._fs.cat_ranges([*paths], [0] * len(paths), [ends] * len(paths), on_error="return")
            for error in found:
                if isinstance(error, Exception) and not _is_of_file(error):
                    raise error
        return [_or_error(_sized, one, largest) for one in found]

    def _write(self, path: str, content: bytes) -> None:
        """Writes a file atomically: locally by rename; object stores put a whole object or nothing."""
        if self._read_only:
            return
        with self._writing():
            if self._is_local:
                write_whole(path, content)
            else:
                self._fs.pipe_file(path, content)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Makes a `WriteError` of an error of the file system."""
        try:
            yield
        except Exception as error:  # packages of object storage raise any kind of error
            if self._is_local and not isinstance(error, OSError):
                raise
            raise WriteError(
                f"run folder {self.path}: can't be written ({reason(error)})",
                "Finished cells are stored. Solve the problem and repeat the command; it computes the rest.",
            ) from error

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Makes a `LongEvalError` of an error of object storage: no connection, no credentials, no permission."""
        try:
            yield
        except Exception as error:  # its packages raise any kind of error
            if self._is_local:
                raise
            raise LongEvalError(
                f"run folder {self.path}: can't be read ({reason(error)})",
                "Check the address, the credentials and the connection.",
            ) from error


def _answered(ask: Callable[[], object]) -> None:
    """Asks object storage something. Its packages try again for many minutes where a server never answers.

    Raises:
        TimeoutError: There is no answer within `_PATIENCE_S`.
        Exception: What asking raises.
    """
    errors: list[Exception] = []

    def wait() -> None:
        try:
            ask()
        except Exception as error:  # raised again below
            errors.append(error)

    asking = threading.Thread(target=wait, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    if asking.is_alive():
        raise TimeoutError(f"no answer within {_PATIENCE_S:g} s")
    if errors:
        raise errors[0]


def _read_local(path: str, largest: int | None) -> bytes | None:
    try:
        mode = os.stat(path).st_mode  # one look, since another process may make or remove the file between two
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(21, "it is not a file", path)
    try:
        with open(path, "rb") as file:
            return _sized(file.read(-1 if largest is None else largest + 1), largest)
    except FileNotFoundError:  # removed since
        return None


def _sized(found: bytes | Exception, largest: int | None) -> bytes | None:
    """The content that was read, None if the file does not exist; raises another error, and ValueError if too large."""
    if isinstance(found, FileNotFoundError):
        return None
    if isinstance(found, Exception):
        raise found
    if largest is not None and len(found) > largest:
        raise ValueError(f"it has more than {largest >> 20} MiB")
    return found


def _or_error(read: Callable[[T, int | None], bytes | None], of: T, largest: int | None) -> bytes | Exception | None:
    """What a function returns, or the error that says that one file can't be read."""
    try:
        return read(of, largest)
    except (OSError, ValueError) as error:
        return error


def _is_of_file(error: Exception) -> bool:
    """Whether an error of object storage says something of one file: absent, a folder, or empty (no valid range)."""
    absent = isinstance(error, FileNotFoundError | IsADirectoryError)
    return absent or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def _missing(root: str) -> list[str]:
    """The folders above a local run folder that don't exist, from the inside out."""
    missing = []
    above = os.path.dirname(os.path.abspath(root))
    while not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above)
    return missing


def _folders() -> tuple[str, ...]:
    """Names of the folders inside a run folder."""
    return ("cells", *ARTEFACTS, FOLDER, "weights", "checkpoints", "leases", "runners", "logs")


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

"""From what the user typed after `--data` to documents: a corpus by name, `stdlib`, or a path.

A named corpus is read from its local copy under $LONGEVAL_DATA if there is one, and from the hub otherwise. A name wins
over a file of the same name in the current folder; `./name` is that file.

`stdlib` is the longest modules of Python's own standard library, long text that every machine has. It belongs to the
Python version, which the source's origin names: numbers of two versions don't compare.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longeval.bounded_yaml import why_unreadable
from longeval.data.documents import Growth, Text, TextField
from longeval.data.files import format_of
from longeval.data.readers import check_path, json_line_texts, read_documents
from longeval.errors import LongEvalError, did_you_mean, reason

# Corpora by name: each is a YAML file in tasks/perplexity/, read here; adding one adds no Python.
#
#     description, source, license    one line each
#     docs                            documents taken by default; left out: all
#     local                           candidates under $LONGEVAL_DATA, tried in this order: path, and field if it has
# any
#     hub                             id, field, revision (optional), and split with config (optional), or file
#     members, aliases                make it a family, `leval:NAME`: {name}, and each member's own keys, are filled
# into
#                                     the paths of local and hub
#
# A corpus is called after its file: pg19.yaml is `pg19`. The files lie in the checkout, or in the installed package.


class _Part(BaseModel):
    """What stands in a YAML file: keys that aren't known are refused, because a typing error would pass unseen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalCandidate(_Part):
    """A place under $LONGEVAL_DATA where a copy of the corpus may lie."""

    path: str
    """File or folder, relative to $LONGEVAL_DATA."""
    field: str | None = None
    """Field that holds the text; plain text files have none, and none is needed for them."""


class HubDataset(_Part):
    """A data set on the Hugging Face hub: a split of plain data files (never a loading script), or one file."""

    id: str
    """Owner and name."""
    field: str
    """Field that holds the text."""
    split: str | None = None
    """Split, for data sets that `datasets` reads itself."""
    config: str | None = None
    """Configuration, where there are several."""
    file: str | None = None
    """A .jsonl file of the repository, instead of a split."""
    revision: str | None = None
    """Commit, tag or branch; default: main. What it stood for is in the source's origin."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> HubDataset:
        if (self.split is None) == (self.file is None):
            raise ValueError("needs either a split or a file")
        return self


class Corpus(_Part):
    """A named set of long documents."""

    name: str
    """What the user types: `pg19`, `leval:sci_fi`."""
    description: str
    """One line for listings."""
    source: str
    """Who made it: paper or project."""
    license: str
    """Licence of the texts, as far as their source states one."""
    docs: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Documents taken by default; null: all."""
    local: tuple[LocalCandidate, ...] = ()
    """Where a copy may lie; the first that exists is read."""
    hub: HubDataset | None = None
    """Where it is read from otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All corpora that have a YAML file."""

    corpora: Mapping[str, Corpus]
    """By name, in alphabetical order of their files."""
    aliases: Mapping[str, str]
    """Other names, `leval:toefl`, to the names in `corpora`."""


def corpora_dir() -> str:
    """The folder of the YAML files: inside the package where it is installed, tasks/perplexity in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = os.path.join(package, "_tasks", "perplexity")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "tasks", "perplexity")


def load_catalogue(folder: str | None = None) -> Catalogue:
    """Reads all YAML files of `folder` (default: `corpora_dir()`).

    Raises:
        LongEvalError: If one is no YAML or isn't as this module's docstring says; names file and key.
    """
    folder = corpora_dir() if folder is None else folder
    if not os.path.isdir(folder):
        raise LongEvalError(f"{folder}: the folder of the corpora is missing", "Install longeval again.")
    corpora: dict[str, Corpus] = {}
    aliases: dict[str, str] = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".yaml"):
            try:
                _load_file(os.path.join(folder, file), corpora, aliases)
            except (yaml.YAMLError, ValueError, OSError) as error:
                raise LongEvalError(
                    f"{os.path.join(folder, file)}: {_why(error)}",
                    "Another file of that folder shows how it is written.",
                ) from error
    return Catalogue(corpora=corpora, aliases=aliases)


def _load_file(path: str, corpora: dict[str, Corpus], aliases: dict[str, str]) -> None:
    """Adds a file's corpora and aliases: one corpus, or a family's members.

    Raises:
        yaml.YAMLError, ValueError, OSError: See `_why`.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    with open(path, encoding="utf-8") as file:
        plain = yaml.safe_load(file)
    if not isinstance(plain, dict):
        raise ValueError("must be a mapping")
    if "members" not in plain:
        corpora[name] = Corpus.model_validate(plain | {"name": name})
        return
    members, other_names = plain.pop("members"), plain.pop("aliases", {})
    if not isinstance(members, dict) or not isinstance(other_names, dict):
        raise ValueError("members and aliases must be mappings")
    for member, own in members.items():
        full = f"{name}:{member}"
        filled = _filled(plain, {"name": member} | (own or {}))
        corpora[full] = Corpus.model_validate(filled | {"name": full})
    for alias, target in other_names.items():
        if target not in members or alias in members:
            raise ValueError(f"aliases.{alias} must be a new name for one of {', '.join(members)}")
        aliases[f"{name}:{alias}"] = f"{name}:{target}"


def _filled(value: Any, keys: Mapping[str, str]) -> Any:
    """A value of a family's file, with a member's keys filled into its texts."""
    if isinstance(value, dict):
        return {key: _filled(item, keys) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, keys) for item in value]
    if isinstance(value, str):
        for key, text in keys.items():
            value = value.replace("{" + key + "}", str(text))
    return value


def _why(error: Exception) -> str:
    """What is wrong with a corpus's file, with the line or the key."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"line {line}: not valid YAML ({why_unreadable(error)})"
    return reason(error)


# Documents from the Hugging Face hub: text only, streamed, from plain data files (a loading script is never run).
#
# A source's revision is settled before the first document is read, so that its origin says exactly what was read, and
# an unreachable hub is noticed at once. Splits are read by `datasets` (streaming), single JSON-lines files by our
# reader.

_TIMEOUT_S = 10.0
_CLIENTS = {"aiohttp", "datasets", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}


class HubUnavailableError(Exception):
    """The hub can't serve a data set; `str()` is the reason, `remedy` what may help."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(reason)


def resolve_revision(hub: HubDataset) -> str:
    """Returns the commit that `hub.revision` (default: main) stands for; asks the hub.

    Raises:
        HubUnavailableError: If the hub can't be reached, or doesn't give this data set to this user.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(hub.id, revision=hub.revision, timeout=_TIMEOUT_S).sha
    except Exception as error:
        raise _explain(hub, error) from error
    assert commit is not None
    return str(commit)


def read_hub_documents(hub: HubDataset, commit: str) -> Iterator[Text]:
    """Yields a data set's documents in its order, at `commit` (see `resolve_revision`).

    Raises:
        LongEvalError: While iterating, if the connection breaks or a record has no text in `hub.field`.
    """
    try:
        yield from (_read_split(hub, commit) if hub.file is None else _read_file(hub, commit))
    except LongEvalError:
        raise
    except Exception as error:
        unavailable = _explain(hub, error)
        raise LongEvalError(f"hub data set {hub.id}: {unavailable}", f"Run it again. {unavailable.remedy}") from error


def _read_split(hub: HubDataset, commit: str) -> Iterator[Text]:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(hub.id, name=hub.config, split=hub.split, revision=commit, streaming=True)
    field = TextField(f"hub data set {hub.id}", hub.field)
    for number, row in enumerate(rows, start=1):
        yield Text(name=f"{hub.split}#{number}", text=field.text_of(row, f"row {number}"))


def _read_file(hub: HubDataset, commit: str) -> Iterator[Text]:
    from huggingface_hub import HfFileSystem

    assert hub.file is not None
    with HfFileSystem().open(f"datasets/{hub.id}/{hub.file}", "rb", revision=commit) as lines:
        path, name = f"hub data set {hub.id}, {hub.file}", hub.file.rsplit("/", 1)[-1]
        for number, text in json_line_texts(lines, path, TextField(path, hub.field), Growth(path, None)):
            yield Text(name=f"{name}#{number}", text=text)


def _explain(hub: HubDataset, error: Exception) -> HubUnavailableError:
    """Says what an error of the hub's clients means; any other error is a bug and is raised again."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{hub.id}"
    if isinstance(error, errors.GatedRepoError):
        return HubUnavailableError("it is gated", f"Accept its licence at {page}, then run hf auth login.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailableError("the hub is switched off", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)):
        return HubUnavailableError("the hub doesn't have it (any more), or not for you", f"Look at {page}.")
    from_client = any(base.__module__.partition(".")[0] in _CLIENTS for base in type(error).__mro__)
    if not (from_client or isinstance(error, OSError)):
        raise error
    return HubUnavailableError(f"the hub can't be reached ({reason(error)})", "Check the network.")


STDLIB = "stdlib"
_STDLIB_DOCS = 4

NUM_MODULES = 64
"""Modules of the standard library that are documents."""
_TABLES = {"html/entities.py"}
"""Modules that a program wrote, beside the folders pydoc_data and encodings."""
_NOT_READ = (
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data",
    "encodings"
)  # fmt: skip
"""Folders in the library that are tests, installed beside it, or written by a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Documents that are there to be read, checked as far as that goes without reading them all."""

    name: str
    """As the user named it, aliases resolved: `leval:tpo` for `leval:toefl`."""
    origin: str
    """Where it is really read from: `local leval/tpo.jsonl` (under $LONGEVAL_DATA), `hub ID@COMMIT`, `path P`, …"""
    default_docs: int | None
    """Documents to take where the user doesn't say; null: all."""
    note: str | None = None
    """What is read of a folder and what isn't, where that may surprise."""
    documents: Callable[[], Iterator[Text]]
    """Yields the documents, lazily, in an order that is always the same. Raises LongEvalError at a document that can't
    be read (see `readers`, `hub`)."""


def open_source(name: str, *, text_field: str | None = None) -> Source:
    """Finds a source and checks that it can be read, its first document included (on the hub: that the hub has it).

    Args:
        name: A corpus (`gov_report`, `leval:sci_fi`), `stdlib`, or the path of a file or folder.
        text_field: Field that holds the text, for files of records (JSON, tables, parquet, Arrow) given by path.

    Raises:
        LongEvalError: If the name is unknown, no copy is to be had, the file can't be read, or `text_field` would be
            ignored.
    """
    catalogue = load_catalogue()
    canonical = catalogue.aliases.get(name, name)
    if canonical == STDLIB or canonical in catalogue.corpora:
        if text_field is not None:
            raise LongEvalError(
                f"--text-field {text_field}: {name} has no field to choose",
                "It is for JSON, tables and parquet files given by their path; leave it out.",
            )
        if canonical == STDLIB:
            list_modules()
            origin = f"Python {platform.python_version()} standard library"
            return Source(name=STDLIB, origin=origin, default_docs=_STDLIB_DOCS, documents=read_stdlib)
        return _open_corpus(catalogue.corpora[canonical])
    if _looks_like_path(name):
        return _open_path(name, text_field)
    raise LongEvalError(f"--data {name}: unknown", f"{did_you_mean(name, _names(catalogue))} Or give a file or folder.")


def local_sources() -> list[str]:
    """Returns the names of sources that are on this machine; nothing is opened and no network used.

    Raises:
        LongEvalError: If LONGEVAL_DATA is set but is no folder, or a corpus file is broken.
    """
    return [STDLIB, *(corpus.name for corpus in load_catalogue().corpora.values() if _local_copy(corpus) is not None)]


def _open_corpus(corpus: Corpus) -> Source:
    """A named corpus: its local copy if there is one, else the hub."""
    copy = _local_copy(corpus)
    if copy is not None:
        path = os.path.join(str(_data_root()), copy.path)
        return _files(path, copy.field, name=corpus.name, origin=f"local {copy.path}", default_docs=corpus.docs)
    hub = corpus.hub
    if hub is None:
        raise LongEvalError(f"--data {corpus.name}: {_no_copy(corpus)}", _other_ways(corpus))
    try:
        commit = resolve_revision(hub)
    except HubUnavailableError as error:
        raise LongEvalError(
            f"--data {corpus.name}: {_no_copy(corpus)}, and hub data set {hub.id}: {error}",
            f"{error.remedy} {_other_ways(corpus)}",
        ) from error
    return Source(
        name=corpus.name,
        origin=f"hub {hub.id}@{commit}",
        default_docs=corpus.docs,
        documents=partial(read_hub_documents, hub, commit),
    )


def _open_path(path: str, text_field: str | None) -> Source:
    """A file or folder of the user's."""
    expanded = os.path.expanduser(path)
    if text_field is not None and not any(format_of(file).kind == "records" for file in check_path(expanded).files):
        raise LongEvalError(
            f"--text-field {text_field}: {path} is plain text and has no fields",
            "It is for JSON, .csv, .tsv, .parquet and .arrow; leave it out.",
        )
    return _files(expanded, text_field, name=path, origin=f"path {path}", default_docs=None)


def _files(path: str, text_field: str | None, *, name: str, origin: str, default_docs: int | None) -> Source:
    """The source of local files; the first document is read at once, so that errors in it are told early."""
    note = check_path(path).note
    read = partial(read_documents, path, text_field=text_field)
    next(read(), None)
    return Source(name=name, origin=origin, default_docs=default_docs, note=note, documents=read)


def _local_copy(corpus: Corpus) -> LocalCandidate | None:
    """The first place under $LONGEVAL_DATA where a copy of the corpus lies."""
    root = _data_root()
    places = corpus.local if root is not None else ()
    return next((place for place in places if os.path.exists(os.path.join(str(root), place.path))), None)


def _data_root() -> str | None:
    """$LONGEVAL_DATA; set to something that is no folder, it would be ignored, which is an error."""
    root = os.environ.get("LONGEVAL_DATA")
    if not root:
        return None
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise LongEvalError(f"LONGEVAL_DATA={root}: not a folder", "Set it to a folder with local copies, or unset it.")
    return root


def _no_copy(corpus: Corpus) -> str:
    """Says that there is no local copy, and where one was looked for."""
    root = _data_root()
    if root is None:
        return "no local copy (LONGEVAL_DATA is not set)"
    return f"no local copy in LONGEVAL_DATA={root} (looked for {_places(corpus)})"


def _places(corpus: Corpus) -> str:
    return " or ".join(candidate.path for candidate in corpus.local) or "none: it has no place there"


def _other_ways(corpus: Corpus) -> str:
    """How to get the same text, or another, without the hub."""
    ways = "Give a file or folder with --data PATH, or use --data stdlib, which every machine has."
    if not corpus.local:
        return ways
    if _data_root() is not None:
        return f"Or put a copy there. {ways}"
    return f"Or put a copy into a folder as {_places(corpus)} and set LONGEVAL_DATA to that folder. {ways}"


def _names(catalogue: Catalogue) -> list[str]:
    return [STDLIB, *catalogue.corpora, *catalogue.aliases]


def _looks_like_path(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name)) or os.sep in name or name.startswith("~") or "." in name


def list_modules(folder: str | None = None) -> list[str]:
    """Relative paths of the NUM_MODULES longest modules of the standard library, the longest (in bytes) first.

    Ties go by name. Left out: tests, what is installed beside the library, and tables that a program wrote.

    Args:
        folder: The library; default: that of the running Python.

    Raises:
        LongEvalError: If there are no sources there (a Python that ships only compiled or zipped modules).
    """
    folder = folder or sysconfig.get_path("stdlib")
    found: list[tuple[int, str]] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if _is_library(name)]
        for name in names:
            path = os.path.join(parent, name)
            module = os.path.relpath(path, folder).replace(os.sep, "/")
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and module not in _TABLES:
                found.append((-os.path.getsize(path), module))
    if not found:
        raise LongEvalError(
            f"--data stdlib: no sources in {folder}",
            "This Python ships none: give a text file or folder with --data PATH.",
        )
    return [name for _, name in sorted(found)[:NUM_MODULES]]


def read_stdlib(folder: str | None = None) -> Iterator[Text]:
    """Yields the modules of `list_modules` in its order."""
    folder = folder or sysconfig.get_path("stdlib")
    for name in list_modules(folder):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            yield Text(name=name, text=file.read())


def _is_library(folder: str) -> bool:
    """Whether a folder holds modules of the library itself."""
    return (
        folder not in _NOT_READ
        and not folder.startswith((".", "config-"))
        and not folder.endswith(("_test", "-packages"))
    )

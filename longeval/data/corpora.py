"""Reads named corpora. Each is a YAML file in tasks/perplexity/, so adding one needs no Python.

The keys of a file:

    description, source, license    one line each
    docs                            number of documents by default; if missing, all
    local                           candidates under $LONGEVAL_DATA in order of preference: path, and field if any
    hub                             id, field, revision (optional), and either split with config (optional), or file
    members, aliases                for a family such as `leval:NAME`: {name} and each member's own keys are filled into
                                    the paths of local and hub

A corpus has the name of its file: pg19.yaml is `pg19`. The files are in the checkout or in the installed package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from longeval.bounded_yaml import why_unreadable
from longeval.errors import LongEvalError, reason
from longeval.plain import first_problem


class _Part(BaseModel):
    """A part of a YAML file. Unknown keys are refused, so that typing errors are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalCandidate(_Part):
    """A place under $LONGEVAL_DATA where a copy of the corpus may be."""

    path: str
    """File or folder, relative to $LONGEVAL_DATA."""
    field: str | None = None
    """Field that holds the text; None for plain text files."""


class HubDataset(_Part):
    """A data set on the Hugging Face hub: a split of plain data files (never a loading script), or one file."""

    id: str
    """Owner and name."""
    field: str | None = None
    """Field that holds the text; null: the first of the usual ones that its records have."""
    split: str | None = None
    """Split, for data sets that `datasets` reads itself; null without a file: its only one."""
    config: str | None = None
    """Configuration, if there are several."""
    file: str | None = None
    """A .jsonl file of the repository, instead of a split."""
    revision: str | None = None
    """Commit, tag or branch; default: main. The source's origin states the commit."""


class Corpus(_Part):
    """A named set of long documents."""

    name: str
    """The name that users type, such as `pg19` or `leval:sci_fi`."""
    description: str
    """One line for listings."""
    source: str
    """Paper or project that made it."""
    license: str
    """Licence of the texts, if their source states one."""
    docs: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Number of documents by default; None: all."""
    local: tuple[LocalCandidate, ...] = ()
    """Places of a local copy; the first that exists is read."""
    hub: HubDataset | None = None
    """The data set on the hub, which is read if there is no local copy."""

    @field_validator("hub")
    @classmethod
    def _says_what_is_read(cls, hub: HubDataset | None) -> HubDataset | None:
        if hub is not None and (hub.field is None or (hub.split is None) == (hub.file is None)):
            raise ValueError("needs a field, and either a split or a file")
        return hub


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All named corpora."""

    corpora: Mapping[str, Corpus]
    """Corpora by name, in alphabetical order of their files."""
    aliases: Mapping[str, str]
    """Other names, such as `leval:toefl` → names in `corpora`."""


def corpora_dir() -> str:
    """The folder of the YAML files: inside an installed package, or tasks/perplexity in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = os.path.join(package, "_tasks", "perplexity")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "tasks", "perplexity")


def load_catalogue(folder: str | None = None) -> Catalogue:
    """Reads all YAML files of `folder` (default: `corpora_dir()`).

    Raises:
        LongEvalError: A file is wrong; the message names the file and the key.
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
    """Adds the corpora and aliases of a file, which is one corpus or a family. Raises errors that `_why` explains."""
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
    """Fills a member's keys into the texts of a family's file."""
    if isinstance(value, dict):
        return {key: _filled(item, keys) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, keys) for item in value]
    if isinstance(value, str):
        for key, text in keys.items():
            value = value.replace("{" + key + "}", str(text))
    return value


def _why(error: Exception) -> str:
    """What is wrong with a corpus file, with the line or the key."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"line {line}: not valid YAML ({why_unreadable(error)})"
    return reason(error)

"""Corpora by name: each is a YAML file in tasks/perplexity/, read here; adding one adds no Python.

    description, source, license    one line each
    docs                            documents taken by default; left out: all
    local                           candidates under $LONGEVAL_DATA, tried in this order: path, and field if it has any
    hub                             id, field, revision (optional), and split with config (optional), or file
    members, aliases                make it a family, `leval:NAME`: {name}, and each member's own keys, are filled into
                                    the paths of local and hub

A corpus is called after its file: pg19.yaml is `pg19`. The files lie in the checkout, or in the installed package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from longeval.errors import LongEvalError


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCandidate:
    """A place under $LONGEVAL_DATA where a copy of the corpus may lie."""

    path: str
    """File or folder, relative to $LONGEVAL_DATA."""
    field: str | None = None
    """Field that holds the text; plain text files have none, and none is needed for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A named set of long documents."""

    name: str
    """What the user types: `pg19`, `leval:sci_fi`."""
    description: str
    """One line for listings."""
    source: str
    """Who made it: paper or project."""
    license: str
    """Licence of the texts, as far as their source states one."""
    docs: int | None
    """Documents taken by default; null: all."""
    local: tuple[LocalCandidate, ...]
    """Where a copy may lie; the first that exists is read."""
    hub: HubDataset | None
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
        LongEvalError: If one is no YAML or isn't as this module's docstring says; names file, line and key.
    """
    folder = corpora_dir() if folder is None else folder
    if not os.path.isdir(folder):
        raise LongEvalError(f"{folder}: the folder of the corpora is missing", "Install longeval again.")
    corpora: dict[str, Corpus] = {}
    aliases: dict[str, str] = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".yaml"):
            _load_file(os.path.join(folder, file), corpora, aliases)
    return Catalogue(corpora=corpora, aliases=aliases)


def _load_file(path: str, corpora: dict[str, Corpus], aliases: dict[str, str]) -> None:
    """Adds a file's corpora and aliases: one corpus, or a family's members."""
    name = os.path.splitext(os.path.basename(path))[0]
    top = _open_yaml(path)
    texts = {key: top.text(key) for key in ("description", "source", "license")}
    docs = top.count("docs")
    members = top.mapping("members")
    locals_ = top.items("local")
    hub = top.mapping("hub")
    family_aliases = top.mapping("aliases")
    top.refuse_others()
    if members is None:
        corpora[name] = Corpus(name=name, docs=docs, local=_local(locals_, {}), hub=_hub(hub, {}), **texts)
        return
    for member in members.keys:
        own = members.mapping(member)
        values = {"name": member} | ({} if own is None else {key: own.text(key) for key in own.keys})
        full = f"{name}:{member}"
        corpora[full] = Corpus(name=full, docs=docs, local=_local(locals_, values), hub=_hub(hub, values), **texts)
    if family_aliases is not None:
        for alias in family_aliases.keys:
            target = family_aliases.text(alias)
            if target not in members.keys or alias in members.keys:
                raise family_aliases.wrong(alias, f"must be a new name for one of {', '.join(members.keys)}")
            aliases[f"{name}:{alias}"] = f"{name}:{target}"


def _local(candidates: list[_Mapping], values: Mapping[str, str]) -> tuple[LocalCandidate, ...]:
    local = []
    for candidate in candidates:
        local.append(
            LocalCandidate(path=_fill(candidate.text("path"), values), field=candidate.text("field", optional=True))
        )
        candidate.refuse_others()
    return tuple(local)


def _hub(hub: _Mapping | None, values: Mapping[str, str]) -> HubDataset | None:
    if hub is None:
        return None
    optional = {key: hub.text(key, optional=True) for key in ("split", "config", "file", "revision")}
    dataset = HubDataset(
        id=hub.text("id"),
        field=hub.text("field"),
        **{key: None if text is None else _fill(text, values) for key, text in optional.items()},
    )
    hub.refuse_others()
    if (dataset.split is None) == (dataset.file is None):
        raise hub.wrong("id", "needs either a split or a file beside it")
    return dataset


def _fill(text: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text


class _Mapping:
    """A mapping of a YAML file whose values are taken out with a check; knows the line of each key."""

    def __init__(self, path: str, plain: dict[Any, Any], node: yaml.MappingNode, at: str = "") -> None:
        self._path = path
        self._plain = plain
        self._nodes = {key.value: (key, value) for key, value in node.value}
        self._line = node.start_mark.line + 1
        self._at = at
        self._taken: set[str] = set()

    @property
    def keys(self) -> list[str]:
        return [str(key) for key in self._plain]

    def wrong(self, key: str, what: str) -> LongEvalError:
        line = self._nodes[key][0].start_mark.line + 1 if key in self._nodes else self._line
        return LongEvalError(
            f"{self._path}, line {line}: {self._at}{key} {what}", "Another file of that folder shows how it is written."
        )

    def text(self, key: str, *, optional: bool = False) -> Any:
        """A string; null or left out only if optional."""
        value = self._take(key)
        if not (isinstance(value, str) and value.strip()) and not (optional and value is None):
            raise self.wrong(key, "must be a text")
        return value

    def count(self, key: str) -> int | None:
        """A whole number of at least 1; null if left out."""
        value = self._take(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.wrong(key, "must be a whole number of at least 1")
        return value

    def mapping(self, key: str) -> _Mapping | None:
        """A mapping inside this one; null if left out."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "must be a mapping")
        return _Mapping(self._path, value, self._nodes[key][1], f"{self._at}{key}.")

    def items(self, key: str) -> list[_Mapping]:
        """A list of mappings; empty if left out."""
        values = self._take(key)
        if values is None:
            return []
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.wrong(key, "must be a list of mappings")
        nodes = self._nodes[key][1].value
        return [_Mapping(self._path, v, node, f"{self._at}{key}.") for v, node in zip(values, nodes, strict=True)]

    def refuse_others(self) -> None:
        """Raises for a key that nothing has asked for: a typing error would pass unseen otherwise."""
        for key in self.keys:
            if key not in self._taken:
                raise self.wrong(key, f"is unknown; known: {', '.join(sorted(self._taken))}")

    def _take(self, key: str) -> Any:
        self._taken.add(key)
        return self._plain.get(key)


def _open_yaml(path: str) -> _Mapping:
    """Reads a YAML file twice, for its values and for its lines."""
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read()
        plain = yaml.safe_load(content)
        node = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise LongEvalError(f"{path}, line {line}: not valid YAML ({error.problem})", "Repair the file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LongEvalError(f"{path}: can't be read ({error})", "Repair the file.") from error
    if not isinstance(plain, dict) or not isinstance(node, yaml.MappingNode):
        raise LongEvalError(
            f"{path}, line 1: must be a mapping", "Another file of that folder shows how it is written."
        )
    return _Mapping(path, plain, node)

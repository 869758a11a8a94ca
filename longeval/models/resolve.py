"""What the user means by `--model NAME`: a short name, a hub id, a local folder, a GGUF file, or an embedded model.

Only names and local files are looked at here; `files` fetches and converts, `load` reads the weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from longeval.errors import LongEvalError, did_you_mean
from longeval.models.folder import check_folder
from longeval.models.gguf.header import gguf_shards

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A short name of a model, from `catalog.yaml`."""

    name: str
    hub_id: str | None = None
    """`organisation/name` on the hub; None for an embedded model."""
    licence: str
    gated: bool = False
    """Whether the hub asks for an accepted licence and a token before it hands out the files."""
    parameters: int
    """Number of weights, embeddings included, rounded to three digits."""
    native_length: int
    """L in tokens."""
    note: str = ""
    """One line: what is special about it here."""


def _load_catalog() -> dict[str, CatalogEntry]:
    """Reads `catalog.yaml`, which lies beside this file; adding a model there adds no Python."""
    with open(os.path.join(os.path.dirname(__file__), "catalog.yaml"), encoding="utf-8") as file:
        plain: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return {
        name: CatalogEntry(name=name, parameters=entry.pop("millions") * 10**6, **entry)
        for name, entry in plain.items()
    }


CATALOG: Mapping[str, CatalogEntry] = _load_catalog()
"""All short names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model that was named and recognised, not yet opened."""

    name: str
    """As the user named it: what records and reports show."""
    kind: Literal["hub", "folder", "gguf", "embedded"]
    location: str
    """Hub id, or the absolute path of the folder or GGUF file; the short name of an embedded model."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the hub's default."""
    licence: str | None = None
    """Where the catalogue knows it."""


def resolve(name: str, *, revision: str | None = None, weights: bool = True) -> ModelRef:
    """Recognises a model by its name.

    A short name of the catalogue comes first, then what exists as a path, then `organisation/name` as a hub id.

    Args:
        name: The value of `--model`.
        revision: The value of `--revision`: branch, tag or commit; only hub models have one.
        weights: Whether a folder must hold weights; without, its config.json is enough.

    Raises:
        LongEvalError: For an unknown name (with suggestions), a path that isn't there, a folder or file that is no
            model, or a revision where there is none to choose.
    """
    ref = _recognise(name.strip(), revision, weights)
    if revision is not None and ref.kind != "hub":
        raise LongEvalError(
            f"--revision {revision}: {name} is not on the hub",
            "Leave --revision out; it chooses a branch, tag or commit.",
        )
    return ref


def _recognise(name: str, revision: str | None, weights: bool) -> ModelRef:
    """The ref of a name; folders and files are checked, hub ids are taken as they are."""
    if name in CATALOG:
        entry = CATALOG[name]
        if entry.hub_id is None:
            return ModelRef(name=name, kind="embedded", location=name, licence=entry.licence)
        return ModelRef(name=name, kind="hub", location=entry.hub_id, revision=revision, licence=entry.licence)
    path = os.path.abspath(os.path.expanduser(name))
    if name and os.path.isdir(path):
        check_folder(path, name, weights=weights)
        return ModelRef(name=name, kind="folder", location=path)
    if name and os.path.isfile(path):
        if not path.lower().endswith(".gguf"):
            raise LongEvalError(
                f"--model {name}: a file, but no .gguf", "Give the folder that holds config.json and the safetensors."
            )
        return ModelRef(name=name, kind="gguf", location=gguf_shards(path)[0])
    if name.lower().endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LongEvalError(f"--model {name}: there is no such file or folder", "Check the path.")
    if _HUB_ID.fullmatch(name):
        return ModelRef(name=name, kind="hub", location=name, revision=revision)
    raise LongEvalError(
        f"--model {name}: unknown",
        f"{did_you_mean(name, CATALOG)} Or give a hub id (organisation/name), a model folder, or a .gguf file.",
    )

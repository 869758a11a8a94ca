"""What a task needs before it can run, in one line: read from its config, without loading anything.

The exceptions in the tables were found by reading the Python beside those tasks in lm-eval 0.4.13: what RULER's
generators download (niah_utils, qa_utils), and which tasks run code that isn't part of lm-eval.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from longeval.studies.tasks.definitions.files import Config, FunctionName, functions_in

NOTHING = "nothing"
"""What a task needs that runs anywhere, offline."""

_ESSAYS = "hub data set baber/paul_graham_essays and punkt_tab of nltk"
RULER_NEEDS: Mapping[str, str] = {
    "niah_single_1": NOTHING,
    "niah_single_2": _ESSAYS,
    "niah_single_3": _ESSAYS,
    "niah_multikey_1": _ESSAYS,
    "niah_multikey_2": NOTHING,
    "niah_multikey_3": NOTHING,
    "niah_multivalue": _ESSAYS,
    "niah_multiquery": _ESSAYS,
    "ruler_vt": NOTHING,
    "ruler_cwe": NOTHING,
    "ruler_fwe": NOTHING,
    "ruler_qa_squad": "download of SQuAD 2.0 from rajpurkar.github.io",
    "ruler_qa_hotpot": "hub data set namlh2004/hotpotqa",
}
"""lm-eval's RULER tasks; those that need nothing make all of their text with the model's tokenizer."""

RULER_GENERATORS = {
    "niah_utils": "generate_samples",
    "qa_utils": "generate_samples",
    "vt_utils": "sys_vartrack_w_noise_random",
    "cwe_utils": "sys_word_pair_random",
    "fwe_utils": "sys_kwext",
}
"""Function that makes RULER's samples, by the module that the task file names."""

_CLASSES = {
    "fda": "hub data set hazyresearch/based-fda",
    "swde": "hub data set hazyresearch/based-swde-v2",
    "squadv2": "hub data set lighteval/squad_v2",
    "squad_completion": "hub data set hazyresearch/based-squad",
}
"""Tasks that are Python classes, which name their data set in the class."""

_PACKAGED = frozenset({"json", "csv", "parquet", "arrow", "text", "webdataset", "xml", "imagefolder", "audiofolder"})
"""Readers of `datasets`: a dataset_path that names no data set."""

_EVALUATED = os.path.join("lm_eval", "tasks", "score", "math")
"""Folder of tasks whose scoring hands answers to sympy's parse_expr, and that to Python's `eval`; their files don't say
`unsafe_code`."""

WRITES_CODE = "it executes code that the model writes"
NO_TEXT = "it shows images or plays sound, and longeval runs language models"
"""Why longeval doesn't run a task."""


def refusal_of(config: Config) -> str | None:
    """Why longeval doesn't run a task; None if it does.

    Nothing that comes from a model, a data set or the hub is ever executed, and there are only texts to give a model.
    """
    name = str(config.get("task"))
    if config.get("unsafe_code"):
        return WRITES_CODE
    if any(os.path.dirname(function.file).endswith(_EVALUATED) for function in functions_in(config)):
        return "its scoring evaluates what the model writes as Python"
    if config.get("dataset_path") == "pandas":
        return "its data are pickles, which execute code when they are read"
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return NO_TEXT
    klass = config.get("class")
    if isinstance(klass, FunctionName) and klass.qualified.endswith("MultiModal"):
        return NO_TEXT
    if name.startswith("scrolls_") and klass is not None:
        return "its scoring script is downloaded from the hub (tau/scrolls) and executed"
    metrics = config.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else []:
        if isinstance(metric, dict) and metric.get("hf_evaluate") is True:
            return f"its metric {metric.get('metric')} is a script that is downloaded from the hub and executed"
    return None


def own_needs(config: Config) -> str | None:
    """What a file itself says under metadata, `needs`; None if it says nothing."""
    metadata = config.get("metadata")
    said = metadata.get("needs") if isinstance(metadata, dict) else None
    return " ".join(said.split()) if isinstance(said, str) and said.strip() else None


def needs_of(config: Config, *, look: bool = False) -> str:
    """What a task needs, in one line; `nothing` if it runs offline on every machine.

    Args:
        config: The task's keys.
        look: Whether to look for its data on this machine: a folder goes before a hub data set of the same name.
    """
    said = own_needs(config)
    if said is not None:
        return said
    name = str(config.get("task"))
    if name in RULER_NEEDS and ruler_module(config) is not None:
        return RULER_NEEDS[name]
    path = config.get("dataset_path")
    if look and isinstance(path, str) and os.path.isdir(path):
        return f"folder {path}"
    need = _data_of(config, name)
    return f"{need} and packages jieba fuzzywuzzy rouge" if name.startswith("longbench_") else need


def hub_ids(needs: str) -> tuple[str, ...]:
    """The hub data sets that a line of this module names."""
    return tuple(re.findall(r"hub data set ([\w.-]+/[\w.-]+|[\w.-]+)", needs))


def group_needs(needs: Mapping[str, str]) -> str:
    """What a group needs, from what each of its tasks does: one line."""
    kinds = [need for need in dict.fromkeys(needs.values()) if need != NOTHING]
    if not kinds:
        return NOTHING
    num_needy = sum(need != NOTHING for need in needs.values())
    which = f"for {num_needy} of {len(needs)} tasks: " if num_needy < len(needs) else ""
    return which + (f"{len(kinds)} downloads, such as {kinds[0]}" if len(kinds) > 4 else "; ".join(kinds))


def ruler_module(config: Config) -> Path | None:
    """The Python file that makes a RULER task's samples; None if the task isn't lm-eval's RULER."""
    function = config.get("custom_dataset")
    if not isinstance(function, FunctionName):
        return None
    path = Path(os.path.dirname(function.file), function.qualified.split(".")[0]).with_suffix(".py")
    return path if path.stem in RULER_GENERATORS and path.parts[-4:-1] == ("lm_eval", "tasks", "ruler") else None


def _data_of(config: Config, name: str) -> str:
    """Where its data comes from."""
    if name in _CLASSES and "class" in config:
        return _CLASSES[name]
    if name.startswith("scrolls_"):
        return "hub data set tau/scrolls"
    if "class" in config:
        module = config["class"].qualified if isinstance(config["class"], FunctionName) else "Python"
        return "package unitxt and its data sets on the hub" if "Unitxt" in module else "what its Python class loads"
    kwargs = config.get("dataset_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    path = config.get("dataset_path")
    if isinstance(path, str) and path in _PACKAGED:
        return _files(kwargs)
    if isinstance(path, str) and path:
        return f"folder {path}" if path.startswith((".", "/", "~")) or path.count("/") > 1 else f"hub data set {path}"
    repository = kwargs.get("dataset_repo_name") or kwargs.get("dataset_repo")
    if isinstance(repository, str):
        return f"hub data set {repository}"
    return "what its Python code loads" if functions_in(config.get("custom_dataset")) else NOTHING


def _files(kwargs: Mapping[str, Any]) -> str:
    """Data files: on the hub, elsewhere, or local."""
    first = kwargs.get("data_files")
    while isinstance(first, (dict, list)) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    if not isinstance(first, str):
        return f"folder {kwargs['data_dir']}" if isinstance(kwargs.get("data_dir"), str) else "files"
    url = urlparse(first)
    if url.scheme == "hf":
        return f"hub data set {'/'.join(first.removeprefix('hf://datasets/').split('/')[:2])}"
    return f"download from {url.netloc}" if url.scheme in ("http", "https") else f"file {first}"

"""What tests of a model's folder do with it."""

from __future__ import annotations

import json

from longeval.models.load import load_config, load_model, load_tokenizer
from longeval.models.prepare import prepare
from longeval.models.resolve import resolve


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_config(folder, **fields):
    edit_json(folder / "config.json", **fields)


def config_of(path):
    """The configuration of a folder or a GGUF file."""
    return load_config(resolve(str(path)))


def tokenizer_of(path):
    return load_tokenizer(resolve(str(path)))


def loaded(path, **options):
    return load_model(resolve(str(path)), **({"dtype": "float32", "device": "cpu"} | options))


def prepared(path, **changes):
    """A prepared model, with plain settings but for `changes`."""
    unset = dict.fromkeys(("revision", "native", "bos", "device_map", "attn"))
    settings = unset | {"dtype": "float32", "device": "cpu", "trust_remote_code": False}
    return prepare(str(path), **(settings | changes))

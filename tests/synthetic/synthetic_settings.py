"""The synthetic tasks as their YAML files describe them, with tokenizers of several kinds to make samples for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longeval.data.sources import read_stdlib
from longeval.studies.tasks.setting import Setting

FOLDER = Path(__file__).parents[2] / "tasks" / "synthetic"
POSGEN = FOLDER.parent / "posgen"
TASKS = (
    "passkey",
    "niah_single",
    "niah_multi_key",
    "niah_multi_value",
    "niah_multi_query",
    "kv_retrieval",
    "variable_tracking",
    "frequent_words",
)
DEPTHS = ("passkey", "niah_single", "niah_multi_key", "niah_multi_value", "niah_multi_query", "kv_retrieval")
HAYSTACK = ("niah_single", "niah_multi_key", "niah_multi_value", "niah_multi_query")


def load(path):
    """A file beside a task's YAML as lm-eval loads it: by its path, as no part of a package."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}_as_lm_eval_loads_it", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = load(FOLDER / "synthetic.py")
filler = importlib.import_module("longeval_synthetic.filler")
fitting = importlib.import_module("longeval_synthetic.fitting")


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read_yaml(path):
    return yaml.load(path.read_text(encoding="utf-8"), _Loader)


@functools.cache
def max_new_tokens(task):
    return read_yaml(FOLDER / f"{task}.yaml")["metadata"]["max_new_tokens"]


@functools.cache
def bpe(vocab_size):
    """Byte-level BPE: with 300 entries hardly more than bytes, with 6000 about what English and code have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    texts = [document.text for document, _ in zip(read_stdlib(), range(3), strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@functools.cache
def words():
    """A token for each word, digit and mark: as coarse as tokenizers get."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer


TOKENIZERS = {"bytes": lambda: bpe(300), "bpe": lambda: bpe(6000), "words": words}


class Counter:
    """A `measure`: what a chat template and BOS add is `overhead` tokens, and text round the message."""

    def __init__(self, tokenizer="bpe", *, chat=False):
        self.tokenizer = TOKENIZERS[tokenizer]()
        self.chat = chat
        self.calls = []

    def __call__(self, text):
        if self.chat:
            text = f"<|system|>You answer questions.<|end|>\n<|user|>\n{text}<|end|>\n<|assistant|>\nIt is"
        self.calls.append(text)
        return len(self.tokenizer.encode(text).ids) + 1


def make_setting(measure=None, *, length=1024, num_samples=4, seed=0, haystack="noise", cache=None, digest="d"):
    return Setting(
        length=length,
        num_samples=num_samples,
        seed=seed,
        haystack=haystack,
        measure=Counter() if measure is None else measure,
        digest=digest,
        cache=cache,
    )


def make_rows(task, setting):
    return rows_by(getattr(synthetic, task), setting, max_new_tokens(task))


def rows_by(make, setting, num_new):
    """The rows that a task's function makes, called as lm-eval does."""
    made = make(setting, max_new_tokens=num_new, version=1, description="ignored")
    assert list(made) == ["test"]
    return made["test"].to_list()


def check_filled(rows, counter, *, length, num_new):
    """With their answers, prompts fill 99% of the window, never more than all of it."""
    for row in rows:
        assert counter(row["input"]) == row["tokens"]
        assert 0.99 * length <= row["tokens"] + num_new <= length


@functools.cache
def rows_of(task, length=2048, num_samples=10, seed=0):
    return make_rows(task, make_setting(length=length, num_samples=num_samples, seed=seed))


def body_of(row):
    """What stands between instruction and question."""
    instruction, rest = row["input"].split("\n\n", 1)
    assert rest.endswith("\n\n" + row["question"])
    return instruction, rest.removesuffix("\n\n" + row["question"])

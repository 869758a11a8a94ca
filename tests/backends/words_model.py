"""A folder with the tokenizer of `completions_server`, documents in its words, and requests to such a server."""

from __future__ import annotations

import json
import random

from completions_server import VOCABULARY, WORDS, make_tokenizer
from tiny import save_tiny_llama

from longeval.studies.ppl.request import PplRequest
from longeval.studies.tasks.request import TasksRequest

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
{more}
metadata: {{version: 1, document: text, prompts: own}}
"""

MORE = {
    "generate_until": """\
doc_to_target: word
generation_kwargs: {max_gen_toks: 8, until: ["."]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}""",
    "multiple_choice": """\
doc_to_choice: choices
doc_to_target: right
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}""",
}


def save_words_model(folder, *, words=WORDS):
    save_tiny_llama(folder, vocab_size=VOCABULARY)
    make_tokenizer(words=words).save_pretrained(folder)
    return folder


def some_words(count, seed=0):
    return " ".join(random.Random(seed).choices(WORDS[3:], k=count))


def write_documents(path, *, words=(150, 90)):
    path.write_text("".join(json.dumps({"text": some_words(count, count)}) + "\n" for count in words))
    return path


def write_task(folder, kind, *, words=(20, 40)):
    """A task over prompts of so many tokens: answers of up to 8, or choices of one and three."""
    data = folder / "samples.jsonl"
    rows = [
        {"text": some_words(count, count), "word": "fox", "choices": ["fox", "a b c"], "right": 0} for count in words
    ]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = folder / f"{kind}.yaml"
    path.write_text(TASK.format(name=kind, data=data, kind=kind, more=MORE[kind]))
    return path


def ppl(server, model, documents, **changes):
    fields = {"model": (str(model),), "pe": ("none",), "lengths": (32, 60), "data": (str(documents),)}
    return PplRequest(**fields | {"backend": "openai", "base_url": server.url} | changes)


def tasks(server, model, *files, **changes):
    fields = {"model": (str(model),), "pe": ("none",), "lengths": (64,), "tasks": tuple(map(str, files))}
    return TasksRequest(**fields | {"backend": "openai", "base_url": server.url} | changes)


def serve(server, name="bigram", room=64, *, says=True):
    """Has the server serve a model with so much room, which it may not say."""
    server.models = [{"id": name, "limit": room} | ({"max_model_len": room} if says else {})]

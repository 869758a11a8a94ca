"""Requests to a server of `completions_server`, and the backend that makes them."""

from __future__ import annotations

import numpy as np
from completions_server import TIED, WORDS

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.backends.openai.backend import OpenAIBackend
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

TABLE = build_table("none", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=1.0))
A = WORDS.index("a")


def connect(server, tokenizer=None, length=64, **settings):
    backend = OpenAIBackend(base_url=server.url, tokenizer=tokenizer or server.tokenizer, **settings)
    backend.serve(TABLE, length)
    return backend


def tokens(*ids):
    return np.array(ids, np.int32)


def chosen(context, *continuations):
    return ChoicesRequest(context_T=tokens(*context), continuations=tuple(tokens(*one) for one in continuations))


def asked(prompt, max_new_tokens=8, stop=()):
    return GenerateRequest(prompt_T=tokens(*prompt), max_new_tokens=max_new_tokens, stop=tuple(stop))


def answer(backend, tokenizer, *request, **settings):
    ((_, answer),) = backend.generate([asked(*request, **settings)], tokenizer)
    return answer


REQUESTS = [
    chosen([3, 4, 20], [5], [21], [21, 22, 23], [21, 23, 24]),
    chosen([5], [7, 8]),
    chosen([3, 4], [5, 6], [5, 6]),
    chosen([3, 4, 20], [21, 22, 23], [TIED + 1]),
]

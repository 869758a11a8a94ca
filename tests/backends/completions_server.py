"""A completions server whose model is known in closed form, and which leaves out what a test wants left out.

Its model is a bigram: after token t, token t+1 has weight 4, t+2 weight 2, any other 1 (ids modulo the vocabulary), so
that a continuation's log-probability is counted by hand, and greedy answers count on. After `TIED`, t+2 weighs 4 too.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SENTENCE = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
WORDS = ["<s>", "<end>", "<unk>", *SENTENCE, *"abcdefghijklmnopqrstuvwx"]
SHUFFLED = [*WORDS[:3], *reversed(WORDS[3:])]
"""The same words at other ids."""
VOCABULARY = len(WORDS)
TIED = 20
OTHER = VOCABULARY + 4
"""Sum of all weights."""


def make_tokenizer(*, bos=False, words=WORDS):
    """Words between spaces; `<end>` ends a sequence."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>", unk_token="<unk>", name_or_path="words"
    )


def log_p(before, token):
    """Of a token after another."""
    weight = {1: 4, 2: 4 if before == TIED else 2}.get((token - before) % VOCABULARY, 1)
    return math.log(weight / (OTHER + 2 * (before == TIED)))


def total(tokens, first):
    return math.fsum(log_p(before, token) for before, token in zip(tokens[first - 1 :], tokens[first:], strict=False))


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that go away before they have read everything, as those of failed cells do."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class CompletionsServer:
    """Settings may be changed while it runs.

    `scoring`: what it does with requests for log-probabilities of the prompt: `prompt_logprobs`, `echo`, `echo, one
    more` (refuses max_tokens 0), `ignored`, `refused`, or a function from an answer to what is sent instead.
    """

    def __init__(self):
        self.key = None
        self.models = [{"id": "bigram", "max_model_len": 64}]
        self.takes_ids = True
        self.strict = False
        self.returns_ids = True
        self.scoring = "prompt_logprobs"
        self.usage = True
        self.end = 1
        self.tokenizer = make_tokenizer()
        self.next_answers = []
        """For the next completions: (status, headers, text), `drop`, `hang`; an empty list: proper answers."""
        self.change = None
        """Changes a proper answer before it is sent."""
        self.delay_s = 0.0
        self.posts = []
        self.paths = []
        self.headers = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer._answer(self, None)

            def do_POST(self):
                outer._answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                pass

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler, body):
        with self._lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.paths.append(handler.path)
            self.headers.append(dict(handler.headers))
            if body is not None:
                self.posts.append(body)
            special = self.next_answers.pop(0) if body is not None and self.next_answers else None
        if self.delay_s:
            time.sleep(self.delay_s)
        reply = special or self._proper(handler, body)
        if special == "hang":
            self._over.wait(10)
        # Before the client can know of it.
        with self._lock:
            self.under_way -= 1
        if special in ("drop", "hang"):
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        status, headers, text = reply
        with contextlib.suppress(OSError):
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(text.encode())))
            handler.end_headers()
            handler.wfile.write(text.encode())

    def _proper(self, handler, body):
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {}, json.dumps({"error": f"wrong key: {handler.headers.get('Authorization')}"})
        if handler.path == "/v1/models":
            return 200, {}, json.dumps({"object": "list", "data": self.models})
        if handler.path != "/v1/completions":
            return 404, {}, json.dumps({"detail": "Not Found"})
        try:
            answer = self._completion(body)
        except ValueError as error:
            return 400, {}, json.dumps({"error": {"message": str(error), "code": 400}})
        return 200, {}, json.dumps(self.change(answer) if self.change else answer)

    def _completion(self, body):
        own = {"prompt_logprobs", "return_token_ids", "repetition_penalty", "stop_token_ids"} & set(body)
        if self.strict and own:
            raise ValueError(f"Unrecognized request argument supplied: {min(own)}")
        if len(body.get("stop", [])) > 4:
            raise ValueError("stop: at most 4")
        assert body["temperature"] == 0 and body["model"] in [card["id"] for card in self.models]
        prompt = body["prompt"]
        if not isinstance(prompt, str) and not self.takes_ids:
            raise ValueError("prompt: Input should be a valid string")
        ids = list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
        if max(ids) >= VOCABULARY:
            raise ValueError("Token id out of vocabulary")
        room = self.models[0].get("limit", 64)
        if len(ids) + max(body["max_tokens"], 1) > room:
            raise ValueError(f"This model's maximum context length is {room} tokens, you asked for more.")
        choice, generated = self._generate(ids, body)
        if callable(self.scoring):
            choice |= self.scoring(ids, body)
        elif "prompt_logprobs" in body and self.scoring == "prompt_logprobs":
            choice["prompt_logprobs"] = [None, *(self._place(ids, at, body) for at in range(1, len(ids)))]
        elif body.get("echo") or body.get("logprobs"):
            choice |= self._echo(ids, choice["text"], generated, body)
        answer = {"object": "text_completion", "choices": [choice]}
        if self.usage:
            answer["usage"] = {"prompt_tokens": len(ids), "completion_tokens": len(generated)}
        return answer

    def _place(self, ids, at, body):
        before, token = ids[at - 1], ids[at]
        listed = {token, (before + 1) % VOCABULARY} if body["prompt_logprobs"] else {token}
        return {str(n): {"logprob": log_p(before, n), "decoded_token": f" {self.decode([n])}"} for n in listed}

    def _echo(self, ids, text, more, body):
        if self.scoring == "refused":
            raise ValueError("Setting 'echo' and 'logprobs' at the same time is not supported for this model.")
        if self.scoring == "echo, one more" and body["max_tokens"] == 0:
            raise ValueError("max_tokens must be at least 1")
        shown = more if self.scoring in ("ignored", "prompt_logprobs") else [*ids, *more]
        prompt = "" if self.scoring in ("ignored", "prompt_logprobs") else self.decode(ids) + " "
        values, tops = [], []
        for at in range(len(shown)):
            before = None if shown is not more and at == 0 else [ids[-1], *more][at] if shown is more else shown[at - 1]
            values.append(None if before is None else log_p(before, shown[at]))
            best = None if before is None else (before + 1) % VOCABULARY
            tops.append(None if best is None else {self.decode([best]): log_p(before, best)})
        told = {"tokens": [self.decode([n]) for n in shown], "token_logprobs": values, "top_logprobs": tops}
        return {"logprobs": told, "text": prompt + text}

    def _generate(self, ids, body):
        """Counts on from the last token, until an end token, a stop text, or the limit."""
        tokens, why, by = [], "length", None
        limit = body["max_tokens"] or (16 if self.scoring == "ignored" else 0)
        while len(tokens) < limit:
            tokens.append(([*ids, *tokens][-1] + 1) % VOCABULARY)
            if tokens[-1] == self.end or tokens[-1] in body.get("stop_token_ids", []):
                text = self.decode(tokens[:-1])
                why, by = "stop", None if tokens[-1] == self.end else tokens[-1]
                break
            text = self.decode(tokens)
            found = [stop for stop in body.get("stop", []) if stop in text]
            if found:
                text, why, by = text[: text.find(found[0])], "stop", found[0]
                break
        else:
            text = self.decode(tokens)
        told = {"index": 0, "text": text, "finish_reason": why}
        if self.returns_ids and body.get("return_token_ids"):
            told |= {"token_ids": tokens, "stop_reason": by}
        return told, tokens

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

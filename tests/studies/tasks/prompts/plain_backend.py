"""Backends for tests of tasks: one that runs every choice and new token in full, one with answers known beforehand."""

from __future__ import annotations

import numpy as np
import torch

from longeval.backends.base import ChoiceScore, Generation


class PlainBackend:
    """A transformers model as it is: no cache, no sharing, no table of ours."""

    def __init__(self, model):
        self.model = model
        self.served = []
        """(table, length) of every call of `serve`."""

    def serve(self, table, length):
        self.served.append((table, length))

    @torch.inference_mode()
    def _log_probabilities(self, ids):
        return torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)

    def choices(self, requests):
        for index, request in enumerate(requests):
            context = request.context_T.tolist()
            scores = []
            for continuation in request.continuations:
                whole = [*context, *continuation.tolist()]
                assert len(whole) <= self.served[-1][1]
                rows = self._log_probabilities(whole[:-1])[len(context) - 1 :]
                picked = rows.gather(1, torch.tensor(continuation.tolist())[:, None]).sum()
                scores.append(ChoiceScore(float(picked), bool((rows.argmax(-1).numpy() == continuation).all())))
            yield index, tuple(scores)

    def generate(self, requests, tokenizer):
        for index, request in enumerate(requests):
            ids = request.prompt_T.tolist()
            assert len(ids) + request.max_new_tokens <= self.served[-1][1]
            new, text, finish = [], "", "length"
            while len(new) < request.max_new_tokens and finish == "length":
                new.append(int(self._log_probabilities(ids + new)[-1].argmax()))
                text = tokenizer.decode(new, skip_special_tokens=True)
                if new[-1] == tokenizer.eos_token_id:
                    finish = "eos"
                elif any(stop in text for stop in request.stop):
                    text, finish = text[: min(text.find(stop) for stop in request.stop if stop in text)], "stop"
            yield index, Generation(text, len(new), finish)


class KnownBackend:
    """Answers by given functions of token ids, last request first.

    Args:
        score: (context ids, continuation ids) → log-likelihood.
        text: prompt ids → answer.
    """

    def __init__(self, score=lambda context, continuation: -float(len(continuation)), text=lambda prompt: ""):
        self.score, self.text = score, text
        self.served = []
        self.asked = []
        """Requests of every call of `choices` or `generate`."""

    def serve(self, table, length):
        self.served.append((table, length))

    def choices(self, requests):
        self.asked.append(list(requests))
        for index in reversed(range(len(requests))):
            context = requests[index].context_T.tolist()
            parts = [part.tolist() for part in requests[index].continuations]
            yield index, tuple(ChoiceScore(self.score(context, part), np.bool_(False)) for part in parts)

    def generate(self, requests, tokenizer):
        self.asked.append(list(requests))
        for index in reversed(range(len(requests))):
            text = self.text(requests[index].prompt_T.tolist())
            yield index, Generation(text, len(text), "stop")

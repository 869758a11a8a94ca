"""Carries out requests for tasks with backends whose answers are known."""

from __future__ import annotations

from fake import FakeBackend

from longeval.backends.hf.backend import load_backend
from longeval.cli.progress import RunProgress
from longeval.run.engine import run
from longeval.studies.tasks.plan import plan_tasks


def carry_out(spec, store, backend=None, **options):
    load = load_backend if backend is None else lambda model: backend
    return run(plan_tasks(spec), store, RunProgress(quiet=True), load=load, **options)


def prefers_report(tokenizer):
    """A model to which ` report` is always likelier than ` model`, and which answers so; right for even questions."""
    report = tokenizer.encode(" report", add_special_tokens=False)
    return FakeBackend(
        lambda t, p, _: 0.0 * p,
        choice=lambda context_T, tokens_S, table: 0.0 if list(tokens_S) == report else -5.0,
        answer=lambda prompt_T, table: "report. And more",
    )


class Failing(FakeBackend):
    """Runs out of memory, or breaks, in windows longer than so many tokens."""

    def __init__(self, error, longest=100):
        super().__init__(lambda t, p, _: 0.0 * p, choice=lambda context_T, tokens_S, table: -1.0)
        self._error = error
        self._longest = longest

    def choices(self, requests):
        for index, scores in super().choices(requests):
            if len(requests[index].context_T) > self._longest:
                raise self._error
            yield index, scores

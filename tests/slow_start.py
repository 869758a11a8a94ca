"""An engine whose start and passes take known times, on a clock that only they move."""

from __future__ import annotations

from types import SimpleNamespace

from fake import FakeBackend

from longeval.cli.progress import RunProgress

START_S = 1000.0
PASS_S = 1.0


class SlowStart(FakeBackend):
    """Takes `START_S` for another table, `PASS_S` for a window or a question; `events`: what happened, in order."""

    def __init__(self, nll, **answers):
        super().__init__(nll, **answers)
        self.now, self.held, self.events = 0.0, None, []

    def serve(self, table, length):
        if self.held is None or not self.held.same_as(table):
            self.now += START_S
            self.events.append("start")
        self.held = table
        super().serve(table, length)

    def score(self, tokens_T, first_scored):
        self.now += PASS_S
        return super().score(tokens_T, first_scored)

    def choices(self, requests):
        for found in super().choices(requests):
            self.now += PASS_S
            yield found

    @property
    def clock(self):
        """Takes the place of the module `time`."""
        return SimpleNamespace(perf_counter=lambda: self.now)

    def progress(self):
        """A progress that is told of in `events` too."""
        backend = self

        class Noted(RunProgress):
            def stage(self, what, num_passes, noun):
                backend.events.append(what)

        return Noted(quiet=True)

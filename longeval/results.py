"""The Python interface: studies as functions, and their results as data frames.

    import longeval

    results = longeval.ppl(model="smollm2-135m-q4", pe=["none", "yarn"], lengths=["1k", "2k"], data="stdlib", docs=1)
    results.frame                       # one row a record
    results.nll(results.frame.cell[0])  # one row a scored token
    results.report("report.md")

The functions take the settings of the command of the same name and do what it does: they check the request, compute
only what the run folder lacks, and store each cell as soon as it is whole.
"""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.store.folder import Store
from longeval.store.records import Record

if TYPE_CHECKING:
    import pandas as pd

    from longeval.report.build import StudyReport


_OF_RESULTS = ("params.ci", "params.stderr", "params.primary", "params.higher_is_better", "params.filter")
"""Columns that describe results instead of settings, so they don't distinguish cells."""


class Results:
    """The records of a run folder; see `load` and the functions of studies."""

    def __init__(self, path: str, cells: Sequence[str] | None = None) -> None:
        """Opens a run folder.

        Args:
            path: The folder.
            cells: Ids of the cells of these results, in order; None: all cells of the folder.

        Raises:
            LongEvalError: It is not a run folder.
        """
        self._store = Store(path, create=False)
        self._cells = None if cells is None else tuple(cells)

    @property
    def path(self) -> str:
        """The run folder."""
        return self._store.path

    @functools.cached_property
    def records(self) -> tuple[Record, ...]:
        """All records, cell by cell in the order of the requests."""
        stored = {cell.cell: cell.records for cell in self._store.cells()}
        plan = self._store.plan()
        planned = [cell.cell for request in plan.requests for cell in request.cells] if plan is not None else []
        order = dict.fromkeys((*planned, *sorted(stored))) if self._cells is None else self._cells
        return tuple(record for cell in order for record in stored.get(cell, ()))

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """A data frame with one row per record. Its columns are the fields of records.

        Entries of `params` and `provenance` have columns of their own, such as `params.method.beta_fast`. Cells that
        failed or were skipped have rows too; `status` and `error` state why they have no value.
        """
        import pandas as pd

        return pd.json_normalize([record.to_json() for record in self.records])

    def nll(self, cell: str) -> pd.DataFrame:
        """The scored tokens of a perplexity cell, one row each, in the order in which they were scored.

        Args:
            cell: The cell's id, from the column `cell` of `frame`.

        Returns:
            Columns `document` (name), `window` (number of the window in the cell), `position` (in the window, prefix
            included; equal to the number of tokens before it) and `nll` (nats).

        Raises:
            LongEvalError: The cell has no token values.
        """
        import numpy as np
        import pandas as pd

        nll = self._store.nll(cell)
        if nll is None:
            raise LongEvalError(f"cell {cell}: has no token values in {self.path}", "Use a finished cell of ppl.")
        window_S = np.repeat(np.arange(len(nll.tokens_W)), nll.tokens_W)
        documents = np.array(nll.documents, dtype=object)[nll.document_W]
        columns = {"document": documents[window_S], "window": window_S, "position": nll.positions_S(), "nll": nll.nll_S}
        return pd.DataFrame(columns)

    def samples(self, cell: str) -> pd.DataFrame:
        """The samples of a cell of downstream tasks, one row each: prompt digest, answer, scores, tokens cut.

        With `keep_text` there is a column `prompt`: the text that the model was given, special tokens included; of
        scored choices a list with [context, [continuation, …]] for each context.

        Raises:
            LongEvalError: The cell has no samples.
        """
        import pandas as pd

        from longeval.store.samples import sample_to_json

        samples = self._store.samples(cell)
        if samples is None:
            raise LongEvalError(f"cell {cell}: has no samples in {self.path}", "Use a finished cell of tasks.")
        return pd.json_normalize([sample_to_json(sample) for sample in samples])

    def losses(self, cell: str) -> pd.DataFrame:
        """The steps of a training of `finetune`, one row each: loss, learning rate, gradient norm, seconds, tokens.

        Raises:
            LongEvalError: The cell has no losses.
        """
        import dataclasses

        import pandas as pd

        losses = self._store.losses(cell)
        if losses is None:
            raise LongEvalError(f"cell {cell}: has no losses in {self.path}", "Use a finished cell of finetune.")
        columns = {name: value for name, value in dataclasses.asdict(losses).items() if value is not None}
        return pd.DataFrame(columns).rename(columns={"steps": "step"})

    def effective(self) -> pd.DataFrame:
        """The effective lengths of the whole run folder, as the report's first section and `effective.csv` have them.

        Returns:
            One row per method, data or task (`subject`), and rule. `effective_length`, `low` and `high` are tokens: 0
            where even the shortest length fails, missing where nothing can be said (`why`). `longest_passes`: the
            longest length tried passes, so that `effective_length` is a lower bound. `gain` and `cost`: relative change
            of perplexity against `none` at the longest and at the native length.

        Raises:
            LongEvalError: The folder holds no cells.
        """
        import pandas as pd

        from longeval.report.collect import collect

        studies = self._studies()
        cells = collect([self.path], studies[0].command)
        sections = [section for study in studies for section in study.opening(cells)]
        return pd.DataFrame([row for section in sections for data in section.data for row in data.rows])

    def report(self, path: str | None = None) -> str:
        """Writes the report of the whole run folder in every format, as `longeval report` does.

        A folder with only PosGen cells gets the report of `longeval posgen table`.

        Args:
            path: The Markdown file; the other formats get the same name with their suffix. None: `report.md`
                (`posgen.md`) in the run folder.

        Returns:
            The path of the Markdown file.

        Raises:
            LongEvalError: The folder holds no cells, or the files can't be written.
        """
        from longeval.report.build import write_report

        written = write_report([self.path], studies=self._studies(), out=path, command="longeval.Results.report")
        return written.files[0]

    def __repr__(self) -> str:
        """The folder and the number of cells."""
        cells = {record.cell: record.status for record in self.records}
        failed = sum(status == "failed" for status in cells.values())
        return f"Results({self.path!r}: {len(cells)} cells, {failed} failed)"

    def _repr_html_(self) -> str:
        """The display in a notebook: the values of these results, and the figures of the run folder's report."""
        if not self.records:
            return f"<p>{html.escape(self.path)}: no cells</p>"
        return "\n".join((self._table(), *self._figures()))

    def _table(self) -> str:
        """The values as an HTML table: a column for each length, a row for each combination of other settings."""
        frame = self.frame.assign(data=self.frame["task"].fillna(self.frame["data"]))
        always = ["model", "data", "metric", "pe"]
        others = [name for name in frame if name.startswith("params.") and not name.startswith(_OF_RESULTS)]
        for name in ("protocol", "factor", "backend", "dtype", *others, "cell"):
            if not frame.duplicated([*always, "length"]).any():
                break
            if frame[name].map(str).nunique() > 1:
                always.append(name)
        wide = frame.pivot(index=always, columns="length", values="value").dropna(how="all").sort_index(axis="columns")
        return str(wide.to_html(na_rep="–", float_format="{:.4g}".format))

    def _figures(self) -> list[str]:
        """The figures of the run folder's report, as HTML."""
        from longeval.report.build import build_document
        from longeval.report.collect import collect
        from longeval.report.document import Preface
        from longeval.report.plots import draw

        studies = self._studies()
        cells = collect([self.path], studies[0].command)
        document = build_document(cells, studies, command="", preface=Preface(), published=False)
        return [
            f'<img src="data:image/png;base64,{base64.b64encode(draw(figure.chart).png).decode()}" '
            f'alt="{html.escape(figure.name)}" style="max-width: 640px">'
            for section in document.sections
            for figure in section.figures
        ]

    def _studies(self) -> tuple[StudyReport, ...]:
        """The studies of the run folder's report: those of `longeval report` if they have cells, else another one's."""
        from longeval.cli.report import study_reports
        from longeval.report.collect import LONGEVAL_REPORT, report_command

        commands = {report_command(cell.records[0]) for cell in self._store.cells()}
        return study_reports(LONGEVAL_REPORT if LONGEVAL_REPORT in commands or not commands else commands.pop())


def load(path: str) -> Results:
    """Opens a run folder and returns the results of all its requests.

    Raises:
        LongEvalError: It is not a run folder.
    """
    return Results(path)


def carry_out(
    command: str,
    /,
    *,
    out: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
    track: Sequence[str] = (),
    executor: str = "local",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    **settings: Any,
) -> Results:
    """Carries out a request of a study, as the command of the same name does.

    Args:
        command: Name of the study: `ppl`, `tasks`, `posgen`, or another.
        out: Run folder; None: `runs/<date>-<digest>`.
        fresh: Whether to compute stored cells again.
        quiet: Whether to show no progress on stderr.
        track: Trackers that get the values of each cell: tensorboard, wandb, mlflow, trackio.
        executor: `local`, or `ray` for the cluster at RAY_ADDRESS.
        workers: Processes that compute; None: one, with `ray` as many as there is room for.
        gpus_per_worker: GPUs of each worker; None: what its work is estimated to need.
        settings: Values by name of the flag with underscores, either as Python values, `[1024, 2048]`, or as on the
            command line, `"1k,2k"`.

    Returns:
        The results of this request, including failed cells with the reason.

    Raises:
        LongEvalError: The request is wrong; nothing has been computed or written.
    """
    from longeval.cli.progress import RunProgress
    from longeval.cli.run import check_folder, default_out
    from longeval.models.device import process_rank
    from longeval.run.engine import run
    from longeval.run.pool import choose_executor
    from longeval.run.study import Plan, find_study, plan_after, plan_all
    from longeval.run.tracking import Tracking, check_trackers

    trackers = (track,) if isinstance(track, str) else track
    check_trackers(trackers)
    chosen = choose_executor(executor, workers, gpus_per_worker)
    study = find_study(command)
    request = study.Request.read(settings)
    store = Store(out or default_out(request), read_only=process_rank() > 0)
    quiet = quiet or process_rank() > 0  # another process of the same training tells and writes
    check_folder([request], {command: study}, store)

    def planned(make: Callable[[RunProgress], list[Plan]]) -> list[Plan]:
        with RunProgress(quiet=quiet) as progress:
            progress.preparing("loading libraries")
            plans = make(progress)
            for note in dict.fromkeys(note for plan in plans for note in plan.notes):
                progress.note(note)
        return plans

    queue = planned(lambda tell: plan_all([request], tell))
    for plan in queue:
        plan.check_folder(store)
    cells: list[str] = []
    with chosen:
        while queue:
            plan = queue.pop(0)
            with (
                RunProgress(quiet=quiet) as progress,
                Tracking(trackers, folder=store.path, settings=plan.request.to_mapping()) as tracking,
            ):
                run(plan, store, progress, executor=chosen, fresh=fresh, under_way=bool(cells), told=tracking.tell)
            cells += [cell.cell for cell in plan.planned().cells]  # with those that are derived from others
            queue[:0] = planned(functools.partial(plan_after, plan, store))
    return Results(store.path, list(dict.fromkeys(cells)))


def function_of(study: str) -> Callable[..., Results]:
    """The function `longeval.NAME` of a study that has none below."""
    return functools.partial(carry_out, study)


def ppl(**settings: Any) -> Results:
    """Measures perplexity. The settings are those of `longeval ppl` and of `carry_out`."""
    return carry_out("ppl", **settings)


def tasks(**settings: Any) -> Results:
    """Runs downstream tasks. The settings are those of `longeval tasks` and of `carry_out`."""
    return carry_out("tasks", **settings)


def finetune(**settings: Any) -> Results:
    """Trains models on at a longer context. The settings are those of `longeval finetune` and of `carry_out`."""
    return carry_out("finetune", **settings)


def posgen(**settings: Any) -> Results:
    """Trains and tests PosGen's models. The settings are those of `longeval posgen train` and of `carry_out`."""
    return carry_out("posgen", **settings)

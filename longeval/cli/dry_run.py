"""What a request would compute, for `--dry-run`: its cells, what is stored of them, and what the rest will cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longeval.cli.request import count
from longeval.printable import as_markup

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.request import ModelRequest
    from longeval.store.folder import Store
    from longeval.studies.posgen.plan import PosGenPlan
    from longeval.studies.ppl.plan import Plan
    from longeval.studies.tasks.plan import TaskPlan


def show_plan(plan: Plan, store: Store, console: Console, *, fresh: bool) -> None:
    """What a perplexity run would do."""
    from rich.table import Table

    from longeval.cli.progress import format_duration
    from longeval.studies.ppl.estimate import estimate
    from longeval.studies.ppl.run import pending
    from longeval.values import format_length

    stored, jobs = pending(plan, store, fresh=fresh)
    table = Table(title="Cells", title_justify="left")
    for column in ("method", "s", "length", "documents", "skipped", "windows", "stored"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for job in plan.jobs:
        table.add_section()
        table.add_row(f"[bold]{as_markup(f'{job.model.name} on {job.corpus.source.name}')}[/bold]")
        for cell in plan.cells_of(job):
            table.add_row(
                cell.pe.canonical,
                "–" if cell.factor is None else f"{cell.factor:g}",
                format_length(cell.length),
                str(len({window.document for window in cell.windows})),
                str(cell.skipped),
                f"{len(cell.windows):,}",
                "yes" if cell.id in stored else "–",
            )
    console.print(table)
    console.print()
    ours = plan.spec.backend == "hf"  # what an engine or a server takes, only it knows
    for part in estimate(jobs):
        passes = f"{part.passes} forward {'pass' if part.passes == 1 else 'passes'}"
        console.print(
            f"{part.model} ({_precision(plan.spec, part.dtype)}): {count(part.cells, 'cell')} in {passes}, "
            f"{part.tokens:,} tokens"
            + (f"; estimated {format_duration(part.seconds)} and {part.memory_bytes / 2**30:.1f} GiB" if ours else ""),
            highlight=False,
            markup=False,
        )


def _precision(spec: ModelRequest, dtype: str) -> str:
    """What is computed in; a server's own isn't known."""
    return "precision unknown" if spec.backend == "openai" else dtype


def show_task_plan(plan: TaskPlan, store: Store, console: Console, *, fresh: bool) -> None:
    """What a run of downstream tasks would do."""
    from rich.table import Table

    from longeval.cli.progress import format_duration
    from longeval.run.cost import memory_bytes, sample_costs, seconds
    from longeval.studies.tasks.cells import longest_reach
    from longeval.studies.tasks.run import stored_cells
    from longeval.values import format_length

    stored = {} if fresh else stored_cells(plan, store)
    table = Table(title="Cells", title_justify="left")
    for column in ("task", "length", "methods", "samples", "cut", "skipped", "longest prompt", "stored"):
        table.add_column(column, justify="left" if column in ("task", "methods") else "right")
    for name in plan.spec.model:
        table.add_section()
        table.add_row(f"[bold]{as_markup(name)}[/bold]")
        for job in plan.jobs:
            if job.model.name == name:
                samples = job.prepared.samples
                table.add_row(
                    as_markup(job.title),
                    format_length(job.length),
                    ", ".join(cell.pe.canonical for cell in job.cells),
                    str(len(samples)),
                    str(sum(sample.truncated for sample in samples)),
                    str(job.skipped),
                    f"{max((sample.tokens for sample in samples), default=0):,}",
                    f"{sum(cell.id in stored for cell in job.cells)} of {len(job.cells)}",
                )
    console.print(table)
    console.print()
    for name in plan.spec.model:
        jobs = [job for job in plan.jobs if job.model.name == name]
        size, model = plan.sizes[name], jobs[0].model
        todo = {id(job): sum(cell.id not in stored for cell in job.cells if job.prepared.samples) for job in jobs}
        prompts = {id(job): sum(sample_costs(size, job.inputs())) for job in jobs}
        flops = sum(prompts[id(job)] * todo[id(job)] for job in jobs)
        longest = max(longest_reach(job.prepared) for job in jobs)
        said = (
            f"{name} ({_precision(plan.spec, model.dtype)}): {count(sum(todo.values()), 'cell')} to compute, "
            f"{sum(len(job.prepared.samples) * todo[id(job)] for job in jobs):,} samples"
        )
        if plan.spec.backend == "hf":  # what an engine or a server takes, only it knows
            said += (
                f"; estimated {format_duration(seconds(model, size, flops))} for reading the prompts (answers that are "
                f"generated come on top) and {memory_bytes(model, size, longest, cached=longest) / 2**30:.1f} GiB"
            )
        console.print(
            said,
            highlight=False,
            markup=False,
        )


def show_posgen_plan(plan: PosGenPlan, store: Store, console: Console, *, fresh: bool) -> None:
    """What PosGen trainings would do."""
    from rich.table import Table

    from longeval.cli.progress import format_duration
    from longeval.studies.posgen.estimate import estimate
    from longeval.studies.posgen.run import pending

    left = pending(plan, store, fresh=fresh)
    table = Table(title="Cells", title_justify="left")
    for column in ("task", "regime", "method", "trained with", "s", "seeds", "stored"):
        table.add_column(column, justify="right" if column in ("s", "seeds", "stored") else "left")
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in plan.cells:
        factor = "–" if cell.factor is None else f"{cell.factor:g}"
        trained_with = cell.params["trained_with"]
        place = (cell.training.data.task, cell.regime, cell.pe.canonical, trained_with, factor)
        rows.setdefault(place, []).append(cell.id)
    for row, ids in rows.items():
        table.add_row(*row, str(len(ids)), f"{sum(cell in left.stored for cell in ids)} of {len(ids)}")
    console.print(table)
    console.print()
    cost = estimate(plan, left.work)
    together = f" in {count(cost.stacks, 'stack')}" if plan.stacked else ", one after another" * (cost.trainings > 1)
    console.print(
        f"{plan.spec.model_name} ({plan.spec.dtype}, {plan.device}): {count(cost.cells, 'cell')} to compute from "
        f"{count(cost.trainings, 'training')} of {count(plan.spec.epochs, 'epoch')}{together}; "
        f"{cost.flops:.2g} operations, estimated {format_duration(cost.seconds)} at {cost.rate / 1e9:,.0f} GFLOP/s "
        f"(a matrix product, measured now) and {cost.memory_bytes / 2**30:.1f} GiB",
        highlight=False,
        markup=False,
    )

"""The executor with workers, where it needs none."""

from __future__ import annotations

from longeval.run import pool
from longeval.run.host import Host, Silent, backend_of
from longeval.run.study import SkippedWork
from longeval.studies.ppl.plan import plan_ppl


def test_skipped_cells_come_after_all_others_and_start_no_worker(request_spec, store, monkeypatch):
    """Else they would be stored before it is known that the model can be loaded."""
    plan = plan_ppl(request_spec())
    skipped = SkippedWork(cells=plan.work[0].cells, reason="too short")
    host = Host(store=store, progress=Silent(), load=backend_of(plan.request))
    executor = pool.RayExecutor(join=False, workers=2)

    def of_workers(plan, work, host):
        yield from work

    monkeypatch.setattr(executor, "_computed", of_workers)
    found = [*executor.outcomes(plan, [skipped, *plan.work], host)]
    assert found[: len(plan.work)] == [*plan.work]
    assert {one.records[0].status for one in found[len(plan.work) :]} == {"skipped"}
    monkeypatch.undo()
    assert [one.records[0].error for one in executor.outcomes(plan, [skipped], host)] == ["too short"] * len(
        skipped.cells
    )

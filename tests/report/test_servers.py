"""What a report says of results of servers: methods are labels there, and several servers make one comparison."""

import re

import pytest
from records import (
    make_nll,
    make_records,
    make_run,
    make_samples,
    make_task_records,
    make_task_run,
    without_figures,
    write_report,
)

from longeval.report.facts import server_notes
from longeval.report.formats.markdown import block_text
from longeval.report.settings import comparable
from longeval.report.tables import build_grids
from longeval.studies.tasks.report.tables import build_task_sets

NLL = make_nll([[1.0] * 63] * 12)
SAMPLES = make_samples([1.0, 0.0] * 10)
HERE, THERE = "http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"


def at(url=HERE, name="small"):
    return {"backend": "openai", "dtype": "unknown", "params": {"base_url": url, "served_model": name}}


def cell(pe="none", length=64, **server):
    return make_records(pe, length, NLL, **at(**server))


def task(pe="none", length=64, **server):
    return make_task_records(pe, length, "passkey", SAMPLES, **at(**server))


def test_sections_name_what_is_known():
    titles = [grid.title for grid in build_grids([*make_records("none", 64, NLL), *cell()])]
    assert titles == ["toy on texts, prefix (hf, float32)", "toy on texts, prefix (openai, precision unknown)"]
    sets = build_task_sets([*make_task_records("none", 64, "passkey", SAMPLES), *task()])
    assert [found.differs for found in sets] == ["hf, float32", "openai, precision unknown"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    shipped = {"shipped_rope": "llama3 (factor 8)", "layers": "all"}
    perplexity = [make_records("none", 64, NLL), cell(), cell("yarn", url=THERE, name="stretched")]
    tasks = [
        make_task_records("none", 64, "passkey", SAMPLES, **server | {"params": server.get("params", {}) | shipped})
        for server in ({}, at())
    ]
    runs = [
        make_run(folder / "ppl", [(records, NLL) for records in perplexity]),
        make_task_run(folder / "tasks", [(records, SAMPLES) for records in tasks]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        write_report(runs, out=str(folder / "report.md"))
    return (folder / "report.md").read_text()


def test_one_note_in_each_section_of_a_server_says_that_methods_are_labels(text):
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    noted = [section for section in sections if "> Methods are labels here: " in section]
    titles = ["toy on texts, prefix", "toy, downstream tasks"]
    assert [section.splitlines()[0] for section in noted] == [f"{t} (openai, precision unknown)" for t in titles]
    assert text.count("Methods are labels here") == 2
    assert f"Asked: `small` at {HERE} (`none`); `stretched` at {THERE} (`yarn`).\n" in noted[0]


def test_nothing_is_said_of_what_a_server_does_with_the_models_own_scaling(text):
    assert text.count("RoPE scaling that the model came with") == 1, "that of the section computed here"
    assert text.count("The model rotates by layer type") == 1


def test_other_backends_get_no_note():
    assert server_notes(make_records("none", 64, NLL)) == [] and server_notes([]) == []
    (note,) = server_notes([*cell(), *cell(length=128)])
    assert block_text(note, "").endswith(f"Asked: `small` at {HERE} (`none`).")


def test_methods_of_several_servers_stand_in_one_table_and_are_compared():
    pair = {"none": {}, "resonance": {"url": THERE, "name": "rounded"}}
    (grid,) = build_grids([record for pe, where in pair.items() for record in cell(pe, **where)])
    assert [row.pe for row in grid.rows] == ["none", "resonance"]
    records = [record for pe, where in pair.items() for record in task(pe, **where)]
    (table,) = build_task_sets(records)[0].tasks
    assert [row.pe for row in table.rows] == ["none", "resonance"] and table.differs == ""
    assert comparable(*records)
    assert not comparable(records[0], *make_task_records("none", 64, "passkey", SAMPLES))


@pytest.mark.parametrize(
    ("other", "differs"),
    [({"url": THERE}, f"base_url {THERE}"), ({"name": "large"}, "served_model large")],
)
def test_one_method_of_two_servers_makes_two_tables(other, differs):
    grids = build_grids([*cell(), *cell(**other)])
    assert len(grids) == 2 and grids[1].differs == differs
    (found,) = build_task_sets([*task(), *task(**other)])
    assert len(found.tasks) == 2 and found.tasks[1].differs == differs

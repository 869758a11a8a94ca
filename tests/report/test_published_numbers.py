"""Numbers of papers, against a transcription of their own, and how a report shows them."""

import pytest
import yaml
from records import make_group, make_nll, make_records, make_samples, make_task_records

from longeval.report.formats.markdown import block_text
from longeval.report.published import PATH, published_sets
from longeval.report.tables import build_grids
from longeval.studies.ppl import report as of_perplexity
from longeval.studies.tasks import report as of_tasks
from longeval.studies.tasks.report.tables import build_task_sets
from longeval.values import parse_length

# Wang et al. 2024 (arXiv 2403.00071), Table 2; Coursera, GSM, QuALITY, TOEFL, CodeU, SFiction, average.
L_EVAL = """
7B  dynamic_ntk     -  32k -                31.98 32.00 34.65 59.11 1.11 36.72 32.59
7B  ntk             8  -   -                36.77  3.00 26.73 34.20 1.11 50.78 25.43
7B  yarn            -  32k 50_steps_at_32k  36.05 19.00 33.17 50.56 4.44 56.25 33.24
7B  resonance_yarn  -  32k 50_steps_at_32k  36.48 22.00 34.16 55.76 0.00 57.03 34.24
7B  yarn            -  -   400_steps_at_4k  35.03 24.00 37.62 57.62 4.44 60.94 36.61
7B  resonance_yarn  -  -   400_steps_at_4k  36.34 27.00 40.59 56.51 3.33 61.72 37.58
13B dynamic_ntk     -  16k -                29.22 39.00 40.59 63.94 1.11 39.84 35.62
13B ntk             4  -   -                40.26 21.00 38.12 65.43 1.11 46.88 35.47
13B yarn            -  16k 100_steps_at_16k 38.08 39.00 43.07 65.43 0.00 63.28 41.48
13B resonance_yarn  -  16k 100_steps_at_16k 38.66 39.00 43.56 65.06 1.11 62.50 41.65
13B yarn            -  -   400_steps_at_4k  41.72 34.00 41.09 66.91 2.22 48.44 39.06
13B resonance_yarn  -  -   400_steps_at_4k  41.86 35.00 42.57 65.80 5.56 48.44 39.87
"""

# Peng et al. 2024 (arXiv 2309.00071): size, method, s, perplexity at 2k, 4k, 8k, 16k, 32k, 64k, 96k, 128k.
PROOF_PILE = """
7B  pi   -  4.156 3.696 3.507 2.973 2.636 187.7 1921  11458
7B  NTK  -  4.462 3.955 3.714 3.107 2.745 2.547 2.538 2.706
7B  yarn 16 4.141 3.689 3.507 2.987 2.655 2.422 15.51 -
7B  yarn 32 4.214 3.752 3.562 3.036 2.698 2.453 2.364 2.372
13B yarn 16 3.807 3.401 3.252 2.791 2.496 2.289 18.62 78.88
13B yarn 32 3.861 3.446 3.290 2.826 2.529 2.312 2.230 2.239
"""
GOV_REPORT = """
7B  pi   -  3.668
7B  NTK  -  4.438
7B  yarn 16 3.595
7B  yarn 32 3.643
13B NTK  -  4.223
13B yarn 16 3.352
13B yarn 32 3.393
"""

# Lu et al. 2024 (arXiv 2409.12181): Llama2-7B at 2k, 4k, 8k, 16k, 32k, 64k.
PG19 = """
7B none         - 6.61 6.30 -    -    -     -
7B NTK_(frozen) - 6.61 6.30 6.82 7.94 14.52 -
7B pi           - 6.88 6.52 6.27 6.08 5.95  -
7B NTK-32K      - 6.63 6.32 6.09 5.92 5.79  5.76
7B yarn         - 6.70 6.39 6.16 6.01 5.93  -
7B CLEX         - 6.85 6.62 6.14 5.93 5.82  5.79
"""


def lines_of(text):
    """Words of each line: underscores stand for spaces in long ones, a dash for nothing."""
    lines = [line.split() for line in text.strip().splitlines()]
    spaced = [
        [word.replace("_", " ") if "_steps_" in word or "_(" in word else word for word in line] for line in lines
    ]
    return [[None if word == "-" else word for word in line] for line in spaced]


def the_set(name):
    (found,) = [s for s in published_sets() if s.name.startswith(name)]
    return found


def numbers(words):
    return [None if word is None else float(word) for word in words]


def test_l_eval_is_as_printed():
    found = the_set("L-Eval")
    assert found.columns == (
        "leval_coursera", "leval_gsm100", "leval_quality", "leval_toefl", "leval_codeu", "leval_sfiction", "average",
    )  # fmt: skip
    for row, (size, method, factor, context, tuning, *values) in zip(found.rows, lines_of(L_EVAL), strict=True):
        assert (row.model, row.method, row.context, row.tuning) == (f"LLaMA2-Chat {size}", method, context, tuning)
        assert row.factor == (None if factor is None else float(factor))
        assert [row.values[column] for column in found.columns] == numbers(values)
    assert found.source == "Wang et al. 2024, Resonance RoPE (arXiv 2403.00071), Table 2"


def test_l_evals_averages_are_the_means_of_their_rows():
    for row in the_set("L-Eval").rows:
        six = [value for column, value in row.values.items() if column != "average"]
        assert len(six) == 6
        assert abs(sum(six) / 6 - row.values["average"]) <= 0.005 + 1e-9


@pytest.mark.parametrize(
    ("name", "arxiv", "data", "protocol", "columns", "text"),
    [
        ("Proof-pile", "2309.00071", "proof_pile", "prefix", "2k 4k 8k 16k 32k 64k 96k 128k", PROOF_PILE),
        ("GovReport", "2309.00071", "gov_report", "sliding_window_mean", "32k", GOV_REPORT),
        ("PG19", "2409.12181", "pg19", "stream", "2k 4k 8k 16k 32k 64k", PG19),
    ],
)
def test_perplexities_are_as_printed(name, arxiv, data, protocol, columns, text):
    found = the_set(name)
    assert (found.arxiv, found.data, found.protocol) == (arxiv, data, protocol)
    assert found.columns == tuple(columns.split())
    for row, (size, method, factor, *values) in zip(found.rows, lines_of(text), strict=True):
        assert size in row.model
        assert (row.method, row.factor) == (method, None if factor is None else float(factor))
        assert [row.values.get(column) for column in found.columns] == numbers(values)


def sets_of_file():
    with open(PATH, encoding="utf-8") as file:
        return yaml.safe_load(file)["sets"]


KEYS = {"name", "source", "kind", "unit", "setting", "columns", "rows"}
OWN_KEYS = {"tasks": {"cut", "answers"}, "perplexity": {"data", "protocol"}, "posgen": {"params"}}
ROW_KEYS = {"model", "method", "factor", "context", "tuning", "values"}


@pytest.mark.parametrize("plain", sets_of_file(), ids=lambda plain: plain["name"])
def test_the_file_has_the_form_that_its_first_lines_say(plain):
    kind = plain["kind"]
    assert set(plain) == KEYS | OWN_KEYS[kind] and set(plain["source"]) == {"paper", "arxiv", "table"}
    assert plain["unit"] == ("perplexity" if kind == "perplexity" else "percent")
    if kind == "perplexity":
        assert sorted(plain["columns"], key=parse_length) == plain["columns"]
    for row in plain["rows"]:
        assert set(row) == ROW_KEYS | ({"variances"} if kind == "posgen" else set())
        assert len(row["values"]) == len(plain["columns"])
        values = [value for value in row["values"] if value is not None]
        assert all(value >= 1 if kind == "perplexity" else 0 <= value <= 100 for value in values)
        variances = row.get("variances", [0] * len(row["values"]))
        assert len(variances) == len(row["values"]) and all(value >= 0 for value in variances if value is not None)


def shown(blocks):
    return "\n".join(block_text(block, "") for block in blocks)


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def leval_sets(**params):
    samples = make_samples([1.0] * 9 + [0.0] * 11)
    asked = {"chance": 0.25, "max_new_tokens": 16, "overlong": "middle"} | params
    records = []
    for pe in ("none", "yarn"):
        records += make_task_records(pe, 8192, "leval_quality", samples, params=asked)
        records += make_task_records(pe, 16384, "leval_quality", samples[:10], params=asked)
    error = "no average: leval_codeu is missing (no data)"
    records += make_group("none", 16384, "leval", ["leval_quality", "leval_codeu"], None, error=error)
    (tasks,) = build_task_sets(records)
    return tasks


def test_tasks_stand_beside_published_ones_with_what_differs():
    text = shown(of_tasks.published_blocks(leval_sets()))
    rows = rows_of(text)
    assert rows[0] == ["whose", "model", "method", "s", "window", "trained on", "leval\\_quality", "average"]
    assert [row[0] for row in rows[2:]] == ["published"] * 12 + ["ours"] * 2
    assert rows[2] == ["published", "LLaMA2-Chat 7B", "`dynamic_ntk`", "–", "32k", "no", "34.65", "32.59"]
    assert rows[-2] == ["ours", "toy", "`none`", "–", "16k", "no", "90.00 [59.6, 98.2] (n 10)", "–"]
    for needed in (
        "cut: theirs by --overlong right, ours by --overlong middle",
        "prompts: ours are in longeval's own words",
        "answers: theirs have up to 512 new tokens, ours 16",
        "ours at most 20 of each task",
        "tasks that this report doesn't have: leval\\_coursera",
        "no average of ours",
        "arXiv 2403.00071",
    ):
        assert needed in text, needed


def test_settings_that_agree_are_not_flagged():
    text = shown(
        of_tasks.published_blocks(leval_sets(overlong="right", max_new_tokens=512, limit=None, own_prompts=False))
    )
    for flag in ("- cut:", "- answers:", "- prompts:", "- samples:"):
        assert flag not in text


def test_perplexities_stand_beside_published_ones_of_the_same_data():
    nll = make_nll([[2.0] * 8] * 10)
    records = [
        *make_records("yarn", 8192, nll, data="gov_report", factor=2.0, model="llama2-7b"),
        *make_records("yarn", 8192, nll, data="other"),
    ]
    text = "\n".join(shown(of_perplexity.published_blocks(grid)) for grid in build_grids(records))
    assert text.count("### ") == 1
    rows = rows_of(text)
    assert rows[0] == ["whose", "model", "method", "s", "window", "trained on", "8k", "32k"]
    assert rows[4] == ["published", "Llama 2 7B", "`yarn`", "16", "–", "trained on", "–", "3.595"]
    assert rows[-1] == ["ours", "llama2-7b", "`yarn`", "2", "–", "no", "7.389 [7.389, 7.389] (n 10)", "–"]
    assert "protocol: theirs is sliding\\_window\\_mean, ours prefix" in text
    assert "llama2-7b is one of theirs by its name" in text
    assert "factor s of yarn: theirs 16 and 32, ours 2" in text

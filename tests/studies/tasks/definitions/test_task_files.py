"""Task files: includes as lm-eval merges them, functions as names, and the place of what is broken."""

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from task_files import write

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.files import FunctionName, functions_in, lm_eval_folder, place_of, read_config


def test_a_file_wins_over_its_includes_and_later_includes_over_earlier(tmp_path):
    write(tmp_path / "deep", low="a: 1\nb: 1\nc: 1\nd: 1\ntask_list: [x]\n")
    write(
        tmp_path,
        left="include: deep/low.yaml\nb: 2\n",
        right="c: 3\nb: 3\n",
        top="include: [left.yaml, right.yaml]\nc: 4\n",
    )
    path = str(tmp_path / "top.yaml")
    assert read_config(path) == {"a": 1, "b": 3, "c": 4, "d": 1} == load_yaml(path)
    places = [place_of(path, key).rsplit("/", 1)[1] for key in "abc"]
    assert places == ["low.yaml, line 1", "right.yaml, line 2", "top.yaml, line 2"]


def test_functions_are_names_and_nothing_is_imported(tmp_path):
    write(tmp_path, code_py="raise SystemExit('was imported')\n", low="x: !function code.one\n")
    write(tmp_path / "down", top="include: ../low.yaml\ny: [{z: !function code.two}]\n")
    path = str(tmp_path / "down" / "top.yaml")
    config = read_config(path)
    assert config["x"] == FunctionName("code.one", str(tmp_path / "low.yaml"))
    assert [name.qualified for name in functions_in(config)] == ["code.one", "code.two"]
    assert config["y"][0]["z"].place == f"{path}, line 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: x\nmetric_list: [a\n", "top.yaml, line 3: not valid YAML"),
        ("- task: x\n", "top.yaml, line 1: must be a mapping"),
        ("task: x\ninclude: absent.yaml\n", "top.yaml, line 2: include .*absent.yaml: can't be read"),
        ("task: x\ninclude: top.yaml\n", "top.yaml, line 2: include goes round in a circle"),
        ("task: x\ntag: a\ntask: y\n", "top.yaml, line 3: task stands in line 1 already"),
        ("task: !!python/object/apply:os.getcwd []\n", "top.yaml, line 1: not valid YAML"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    write(tmp_path, top=content)
    with pytest.raises(LongEvalError, match=message):
        read_config(str(tmp_path / "top.yaml"), strict=True)


@pytest.mark.parametrize("name", ["ruler/vt.yaml", "longbench/qasper.yaml", "babilong/babilong_qa1.yaml"])
def test_files_of_lm_eval_read_as_lm_eval_reads_them(name):
    path = f"{lm_eval_folder()}/{name}"
    ours, theirs = read_config(path), load_yaml(path, resolve_func=False)
    for config in (ours, theirs):  # functions: names here, paths there
        for key in ("custom_dataset", "process_results", "metric_list"):
            config.pop(key, None)
    assert ours == theirs


LEVELS = [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(LEVELS)
"""Few characters that stand for 9⁸ values."""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("description: 2020-99-99", "can't be read"),
        ("repeats: " + "9" * 5000, "can't be read"),
        ("description: " + "[" * 3000 + "]" * 3000, "nested"),
        (ALIASES, "too many values"),
    ],
    ids=["date", "digits", "depth", "aliases"],
)
def test_yaml_that_no_reader_can_hold_is_refused(line, reason, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(f"task: t\ndataset_path: json\n{line}\n")
    with pytest.raises(LongEvalError, match=f"t.yaml.*{reason}"):
        read_config(str(path))
    (tmp_path / "u.yaml").write_text("task: u\ninclude: /dev/zero\n")
    with pytest.raises(LongEvalError, match="not a regular file"):
        read_config(str(tmp_path / "u.yaml"))

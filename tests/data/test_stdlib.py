"""The standard library as a source: which modules, in which order."""

import pytest

from longeval.data import stdlib
from longeval.data.stdlib import list_modules, read_stdlib
from longeval.errors import LongEvalError


def test_the_longest_first_ties_by_name_and_only_written_ones(tmp_path, monkeypatch):
    sizes = {"long.py": 90, "b.py": 40, "a/c.py": 40, "a/short.py": 5}
    left_out = ("test/t.py", "lib/tests/t.py", "site-packages/x.py", "encodings/e.py", "pydoc_data/topics.py")
    left_out += ("_sysconfigdata_linux.py", "idlelib/i.py", "config-3.11-x86/c.py", "html/entities.py", "notes.txt")
    for name, size in (sizes | dict.fromkeys(left_out, 1000)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * size)
    assert list_modules(str(tmp_path)) == ["long.py", "a/c.py", "b.py", "a/short.py"]
    assert [(d.name, len(d.text)) for d in read_stdlib(str(tmp_path))][:2] == [("long.py", 90), ("a/c.py", 40)]
    monkeypatch.setattr(stdlib, "NUM_MODULES", 2)
    assert list_modules(str(tmp_path)) == ["long.py", "a/c.py"]


def test_a_python_without_sources_says_so(tmp_path):
    with pytest.raises(LongEvalError, match="no sources in"):
        list_modules(str(tmp_path))


def test_this_python_has_long_modules():
    documents = list(read_stdlib())
    assert 10 <= len(documents) <= stdlib.NUM_MODULES
    assert len(documents[0].text) > 100_000
    assert not any("test" in d.name.split("/") for d in documents)

"""Local files: what is read, in which order, and what each broken one is answered with."""

import builtins
import gzip
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from longeval.data.readers import check_path, read_documents
from longeval.errors import LongEvalError


def read(path, **options):
    check_path(str(path))
    return [(document.name, document.text) for document in read_documents(str(path), **options)]


def problem_of(path, **options):
    with pytest.raises(LongEvalError) as caught:
        read(path, **options)
    assert caught.value.remedy.endswith(".")
    return caught.value.problem


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_text_is_kept_as_it_stands_but_for_the_byte_order_mark(write):
    content = "\ufeff  Ü one\r\ntwo\u2028three\n\n"
    assert read(write("a.rst", content)) == [("a.rst", content[1:])]


def test_a_folder_is_read_sorted_recursively_without_hidden_files(write, tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".hidden", ".git/config", "a/__init__.py"):
        write(name, "" if name.endswith("__init__.py") else name)
    assert read(tmp_path) == [
        ("a/__init__.py", ""),
        ("a/b/c.py", "a/b/c.py"),
        ("a/z.md", "a/z.md"),
        ("b.txt", "b.txt"),
    ]


def test_json_lines_end_at_newlines_only_and_are_named_by_line(write):
    content = '{"text": "a\u2028b"}\n\n  \n{"text": "c"}'
    assert read(write("x.jsonl", content)) == [("x.jsonl#1", "a\u2028b"), ("x.jsonl#4", "c")]


def test_gzipped_json_lines_and_arrays_and_parquet_read_alike(write, tmp_path):
    records = [{"id": n, "body": f"text {n}"} for n in range(40)]
    lines = "\n".join(map(json.dumps, records)).encode()
    write("x.jsonl.gz", gzip.compress(lines))
    write("x.json", json.dumps(records))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "x.parquet")
    for name in ("x.jsonl.gz", "x.json", "x.parquet"):
        expected = [(f"{name}#{n + 1}", f"text {n}") for n in range(40)]
        assert read(tmp_path / name, text_field="body") == expected


def test_the_first_record_settles_which_field_is_read(write):
    assert read(write("a.jsonl", '{"content": "c", "text": "t"}')) == [("a.jsonl#1", "t")]
    assert read(write("b.jsonl", '{"content": "c", "input": "i"}')) == [("b.jsonl#1", "i")]
    problem = problem_of(write("c.jsonl", '{"input": "i"}\n{"text": "t"}'))
    assert problem.endswith("c.jsonl, line 2: no field 'input'; its fields: text")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", "empty"),
        ("a.txt", " \n", "empty"),
        ("a.jsonl", "\n\n", "no records"),
        ("a.json", "[]", "no records"),
        ("a.txt", b"ab\0c", "NUL byte at 2"),
        ("a.txt", b"ab\xff", "not UTF-8 text (byte 2)"),
        ("a.txt", "UTF-16 text".encode("utf-16"), "UTF-16's: convert it"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2, column 9: malformed JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n["b"]', "line 2: an array, not an object"),
        ("a.jsonl", '{"text": null}', "line 1: field 'text' is null, not a string"),
        ("a.jsonl", '{"text": ["b"]}', "field 'text' is an array"),
        ("a.jsonl", '{"text": "a\\ud800"}', "half a surrogate pair at character 1"),
        ("a.jsonl", '{"title": "a", "body": "b"}', "no field 'text' or 'input' or 'content'; its fields: title, body"),
        ("a.jsonl", '{"a":' + "[" * 100_000, "line 1: JSON nested too deeply"),
        ("a.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}", "line 1: JSON can't be read"),
        ("a.json", '{"text": "a"}', "an object, not an array"),
        ("a.json", '[\n{"text": "a"},\n{"text": }]', "line 3, column 10: malformed JSON"),
        ("a.json", '[{"text": "a"}, {"text": 3}]', "item 2: field 'text' is a number"),
        ("a.parquet", "no parquet", "not a readable parquet file"),
        ("a.jsonl.gz", b"not gzipped", "can't be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-20], "can't be read"),
        ("a.tar.gz", gzip.compress(b"text", mtime=0), "compressed"),
        ("a.zip", b"PK", "compressed"),
    ],
)
def test_broken_files_are_named_with_what_is_wrong(write, name, content, expected):
    problem = problem_of(write(name, content))
    assert expected in problem
    assert name in problem


def test_json_lines_with_the_wrong_suffix_are_recognised(write):
    with pytest.raises(LongEvalError, match=r"rename it to \.jsonl"):
        read(write("a.json", '{"text": "a"}\n{"text": "b"}'))


def test_parquet_without_the_field_or_with_a_null_in_it(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None]}), tmp_path / "x.parquet")
    assert "its fields: body" in problem_of(tmp_path / "x.parquet")
    assert "row 2: field 'body' is null" in problem_of(tmp_path / "x.parquet", text_field="body")


def test_a_pickle_is_never_opened(write, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    assert "can run code" in problem_of(write("a.pkl", pickle.dumps(Trap())))
    assert "binary" in problem_of(write("disguised.txt", pickle.dumps("x" * 9)))
    assert not (tmp_path / "trapped").exists()


def test_missing_unreadable_and_empty_places(write, tmp_path, monkeypatch):
    assert "no such file or folder" in problem_of(tmp_path / "missing.txt")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    assert "holds no files" in problem_of(tmp_path / "empty")
    assert "neither a file nor a folder" in problem_of("/dev/null")
    path = write("a.txt", "text")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(LongEvalError, match="Permission denied"):
        list(read_documents(str(path)))


def test_reading_is_lazy(write):
    documents = read_documents(str(write("x.jsonl", '{"text": "a"}\nbroken')))
    assert next(documents).text == "a"
    with pytest.raises(LongEvalError, match="line 2"):
        next(documents)

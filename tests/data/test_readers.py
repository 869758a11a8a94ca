"""Local files: the documents that each form holds, what each broken file is answered with, and how much is read."""

import builtins
import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from longeval.data.documents import Growth, TextField
from longeval.data.readers import check_path, read_documents
from longeval.errors import LongEvalError

TEXTS = ["plain", 'a "quoted", one', "two\nlines\r\nand\tmore; | Ü", "", "  blanks  "]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def read(path, **options):
    check_path(str(path))
    return [document.text for document in read_documents(str(path), **options)]


def texts_or_none(path, **options):
    return [None if document.missing else document.text for document in read_documents(str(path), **options)]


def names(path):
    return [document.name for document in read_documents(str(path))]


def problem_of(path, **options):
    with pytest.raises(LongEvalError) as caught:
        read(path, **options)
    assert caught.value.remedy.endswith(".")
    return str(caught.value)


def json_lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter, mark=""):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return (mark + buffer.getvalue()).encode()


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
UNPACKED = {
    "a.jsonl": json_lines(),
    "a.ndjson": json_lines(),
    "a.jsonlines": json_lines(),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.csv": table(","),
    "b.csv": table(";"),
    "c.csv": table(",", "\ufeff"),
    "d.tsv.csv": table("\t"),
    "a.tsv": table("\t"),
}


@pytest.mark.parametrize("packed", ["", *PACKED])
@pytest.mark.parametrize("name", UNPACKED)
def test_all_forms_hold_the_same_documents(write, name, packed):
    content = PACKED[packed](UNPACKED[name]) if packed else UNPACKED[name]
    for shown in (name + packed, (name + packed).upper()):
        path = write(shown, content=content)
        assert read(path) == read(path, text_field="text") == TEXTS
        if "csv" in name:
            assert read(path, text_field="id") == list("01234")


@pytest.mark.parametrize("packed", PACKED)
def test_packed_text_is_text(write, packed):
    assert read(write(f"a.txt{packed}", content=PACKED[packed](b"some text\r\n"))) == ["some text\r\n"]


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
def test_columns(tmp_path, kind):
    rows = pyarrow.table({"id": range(5), "text": pyarrow.array(TEXTS).cast(kind)})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=2)
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", rows.schema) as stream:
        stream.write_table(rows)
    with pyarrow.ipc.new_file(tmp_path / "b.arrow", rows.schema) as file:
        file.write_table(rows, max_chunksize=2)
    pyarrow.feather.write_feather(rows, str(tmp_path / "a.feather"))
    for name in ("a.parquet", "a.arrow", "b.arrow", "a.feather"):
        assert read(tmp_path / name) == TEXTS
        assert names(tmp_path / name) == [f"{name}#{n}" for n in range(1, 6)]
        assert "field 'id' is int64" in problem_of(tmp_path / name, text_field="id")


def test_text_is_kept_as_it_stands_but_for_the_byte_order_mark(write):
    content = "\ufeff  Ü one\r\ntwo\u2028three\n\n"
    assert read(write("a.rst", content=content)) == [content[1:]]


def test_json_lines_end_at_newlines_only_and_are_named_by_line(write):
    path = write("x.jsonl", content='{"text": "a\u2028b"}\n\n  \n{"text": "c"}')
    assert read(path) == ["a\u2028b", "c"]
    assert names(path) == ["x.jsonl#1", "x.jsonl#4"]


def test_the_first_record_settles_which_field_is_read(write):
    assert read(write("a.jsonl", content='{"content": "c", "text": "t"}')) == ["t"]
    assert read(write("b.jsonl", content='{"content": "c", "input": "i"}')) == ["i"]
    assert texts_or_none(write("c.jsonl", content='{"input": "i"}\n{"text": "t"}')) == ["i", None]


def test_a_long_json_array_is_read_piece_by_piece(write):
    texts = [f"{number} " + 'Ü\\"' * (20_000 if number % 50 == 7 else 3) for number in range(400)]
    content = json.dumps([{"text": text} for text in texts], indent=2)
    assert read(write("a.json", content=content)) == texts
    lines = content.splitlines()
    lines[601] += "]"
    documents = read_documents(str(write("a.json", content="\n".join(lines))))
    assert next(documents).text == texts[0]
    with pytest.raises(LongEvalError, match=r"line 602, column \d+: malformed"):
        list(documents)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", " \n", "empty"),
        ("a.txt", b"ab\0c", "NUL byte at 2"),
        ("a.txt", b"ab\xff", "UTF-8 text (byte 2)"),
        ("a.txt", "UTF-16 text".encode("utf-16"), "UTF-16"),
        ("a.txt", json_lines(), "looks like JSON"),
        ("a.log", json.dumps(ROWS), "looks like JSON"),
        ("a.txt", gzip.compress(b"text", mtime=0), ".gz"),
        ("a.txt", b"%PDF-1.4 text", "PDF"),
        ("a.txt", pickle.dumps("x" * 9), "binary"),
        ("a.jsonl", "\n\n", "no records"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2, column 9: malformed"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n["b"]', "line 2: an array"),
        ("a.jsonl", '{"text": null}\n{"text": null}', "null or missing in all 2 records"),
        ("a.csv", "id,text\n1,\n", "null or missing in all 1 records"),
        ("a.jsonl", '{"n": 1}\n{"m": 1}', "line 1: no field 'text' or 'input' or 'content'; its fields: n"),
        ("a.jsonl", '{"text": "a\\ud800"}', "surrogate pair at character 1"),
        ("a.jsonl", '{"title": "a", "body": "b"}', "no field 'text' or 'input' or 'content'; its fields: title, body"),
        ("a.jsonl", '{"a":' + "[" * 100_000, "line 1: JSON nested too deeply"),
        ("a.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}", "line 1: JSON can't be read"),
        ("a.jsonl.gz", b"not gzipped", "can't be read"),
        ("a.jsonl.gz", gzip.compress(json_lines() * 999, mtime=0)[:-20], "can't be read"),
        ("a.jsonl.bz2", bz2.compress(json_lines())[:-9], "can't be read"),
        ("a.jsonl.xz", lzma.compress(json_lines())[:-9], "can't be read"),
        ("a.jsonl.zst", zstd(json_lines() * 999)[:-20], "can't be read"),
        ("a.json", "[]", "no records"),
        ("a.json", '{"text": "a"}', "an object"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "rename it to .jsonl"),
        ("a.json", '[\n{"text": "a"},\n{"text": }]', "line 3, column 10: malformed"),
        ("a.json", '[{"text": "a"}, {"text": 3}]', "item 2: field 'text' is a number"),
        ("a.json", '[{"text": "a"}] {}', "Extra data"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "Expecting ','"),
        ("a.json", '[{"text": "a"}', "malformed"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '[{"text": "a", "n": ' + "9" * 5000 + "}]", "JSON can't be read"),
        ("a.csv", "id,body\n1,x\n", "no field 'text' or 'input' or 'content'; its fields: id, body"),
        ("a.csv", "id,text\n1,x,y\n", "line 2: 3 cells"),
        ("a.csv", 'id,text\n1,"x\n2,y\n', "not a readable table"),
        ("a.csv", "text,text\nx,y\n", "several columns 'text'"),
        ("a.csv", b"id,text\n1,\xff\n", "line 2: not UTF-8 (byte 2)"),
        ("a.csv", "id,text\n1,a\0b\n", "line 2: binary"),
        ("a.csv", "id,text\n", "no records"),
        ("a.csv", "\n\n", "no records"),
        ("a.parquet", "no parquet", "parquet file"),
        ("a.arrow", "no arrow file", "Arrow file"),
    ],
)
def test_broken_files_are_named_with_what_is_wrong(write, name, content, said):
    problem = problem_of(write(name, content=content))
    assert said in problem and name in problem


@pytest.mark.parametrize("text", ["{not JSON}\n", "[1] a footnote\n", '{"a": 1}\nand prose\n', "[1, 2]\n[3, 4]\n"])
def test_text_with_braces_stays_text(write, text):
    assert read(write("a.txt", content=text)) == [text]


def test_parquet_without_the_field_or_with_a_null_in_it(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None]}), tmp_path / "x.parquet")
    assert "its fields: body" in problem_of(tmp_path / "x.parquet")
    assert texts_or_none(tmp_path / "x.parquet", text_field="body") == ["a", None]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(3)}), tmp_path / "y.parquet")
    assert "in all 3 records" in problem_of(tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": 1}\n{"text": null}\n{"text": ""}\n{"text": "t"}\n{"id": 2}'),
        ("a.json", '[{"id": 1}, {"text": null}, {"text": ""}, {"text": "t"}, {"id": 2}]'),
    ],
)
def test_a_record_without_text_is_told_from_an_empty_one(write, name, content):
    assert texts_or_none(write(name, content=content)) == [None, None, "", "t", None]


def test_an_empty_cell_of_a_table_is_null(write):
    assert texts_or_none(write("a.csv", content='id,text\n1,\n2,""\n3,t\n')) == [None, None, "t"]


def test_a_field_that_the_first_records_lack_is_a_wrong_one(write, monkeypatch):
    monkeypatch.setattr(TextField, "MOST_WITHOUT", 3)
    lines = ['{"id": 1}'] * 3 + ['{"text": "t"}']
    assert texts_or_none(write("a.jsonl", content="\n".join(lines[1:]))) == [None, None, "t"]
    assert "b.jsonl, line 1: no field" in problem_of(write("b.jsonl", content="\n".join(lines)))


def test_a_pickle_is_never_opened(write, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    assert "can run code" in problem_of(write("a.pkl", content=pickle.dumps(Trap())))
    assert not (tmp_path / "trapped").exists()


def test_missing_unreadable_and_empty_places(write, tmp_path, monkeypatch):
    assert "no such file or folder" in problem_of(tmp_path / "missing.txt")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    assert "holds no files" in problem_of(tmp_path / "empty")
    path = write("a.txt", content="text")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(LongEvalError, match="Permission denied"):
        list(read_documents(str(path)))


def test_a_record_has_a_bound_and_a_long_file_has_none(write, tmp_path, monkeypatch):
    for name in ("MOST_TEXT", "MOST_RECORD", "FREE_TEXT", "FREE_RECORD"):
        monkeypatch.setattr(Growth, name, 2**16)
    text = "".join(f"word{number} " for number in range(5_000))

    def write_all(texts):
        rows = [{"text": one} for one in texts]
        write("a.jsonl", content=json_lines(rows))
        write("a.json", content=json.dumps(rows))
        write("a.csv", content="text\n" + "".join(f'"{one}"\n' for one in texts))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False)
        return [tmp_path / name for name in ("a.jsonl", "a.json", "a.csv", "a.parquet")]

    for path in write_all([text] * 40):
        assert read(path) == [text] * 40
    many_lines = write("b.csv", content=f'text\n"{text}"\n"' + "a\n" * 40_000 + '"\n')
    for path in (*write_all([text, text * 2, text]), many_lines, write("a.txt", content=text * 2)):
        problem = problem_of(path)
        assert "longer than" in problem and path.name in problem


BOMB = """
import resource, sys
from longeval.data.readers import read_documents
from longeval.errors import LongEvalError

import pyarrow.parquet

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for document in read_documents(sys.argv[1]):
        pass
except LongEvalError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
BOMB_BEGINS = {
    "a.jsonl.gz": b'{"text": "',
    "lists.jsonl.gz": b'{"text": [',
    "a.json.gz": b'[{"text": "',
    "a.csv.gz": b'text\n"',
    "a.txt.gz": b"",
}


@pytest.mark.parametrize("name", [*BOMB_BEGINS, "value.parquet", "rows.parquet"])
def test_bombs_are_refused_before_they_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    if name in BOMB_BEGINS:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(BOMB_BEGINS[name])
            for _ in range(100):
                file.write((b"[]," if name == "lists.jsonl.gz" else b"aaa") * 350_000)
    else:
        count, value = (16, "a" * 80_000_000) if name == "value.parquet" else (2_000_000, "some words " * 900)
        texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([value]))
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", row_group_size=10**9)
    assert path.stat().st_size < 2_000_000
    ran = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, timeout=100, check=True
    )
    said, grown = ran.stdout.splitlines()
    assert name in said and ("longer than" in said or "200 times its size" in said)
    assert int(grown) < 400

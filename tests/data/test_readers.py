"""Records in every form they come in give the same documents, and none of them fills the memory."""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from longeval.data.documents import Growth
from longeval.data.readers import check_path, read_documents
from longeval.errors import LongEvalError

TEXTS = ["plain", 'a "quoted", one', "two\nlines\r\nand\tmore; | Ü", "", "  blanks  "]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def read(path, **options):
    check_path(str(path))
    return [document.text for document in read_documents(str(path), **options)]


def problem_of(path, **options):
    with pytest.raises(LongEvalError) as caught:
        read(path, **options)
    return str(caught.value)


def json_lines():
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


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
def test_all_forms_hold_the_same_documents(tmp_path, name, packed):
    content = UNPACKED[name]
    for shown in (name + packed, (name + packed).upper()):
        path = tmp_path / shown
        path.write_bytes(PACKED[packed](content) if packed else content)
        assert read(path) == read(path, text_field="text") == TEXTS
        assert read(path, text_field="text") != read(path, text_field="id") if "csv" in name else True


@pytest.mark.parametrize("packed", PACKED)
def test_packed_text_is_text(tmp_path, packed):
    (tmp_path / f"a.txt{packed}").write_bytes(PACKED[packed](b"some text\r\n"))
    assert read(tmp_path / f"a.txt{packed}") == ["some text\r\n"]


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
        assert [d.name for d in read_documents(str(tmp_path / name))] == [f"{name}#{n}" for n in range(1, 6)]
        assert "field 'id' is int64, not a string" in problem_of(tmp_path / name, text_field="id")


def test_a_long_json_array_is_read_piece_by_piece(tmp_path):
    texts = [f"{number} " + 'Ü\\"' * (20_000 if number % 50 == 7 else 3) for number in range(400)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], indent=2))
    assert read(tmp_path / "a.json") == texts
    content = (tmp_path / "a.json").read_text().splitlines()
    content[601] += "]"
    (tmp_path / "a.json").write_text("\n".join(content))
    documents = read_documents(str(tmp_path / "a.json"))
    assert next(documents).text == texts[0]
    with pytest.raises(LongEvalError, match=r"line 602, column \d+: malformed JSON"):
        list(documents)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"id,body\n1,x\n", "no field 'text' or 'input' or 'content'; its fields: id, body"),
        ("a.csv", b"id,text\n1,x,y\n", "line 2: 3 cells where the first row names 2 columns"),
        ("a.csv", b'id,text\n1,"x\n2,y\n', "not a readable table"),
        ("a.csv", b"text,text\nx,y\n", "several columns 'text'"),
        ("a.csv", b"id,text\n1,\xff\n", "line 2: not UTF-8 (byte 2)"),
        ("a.csv", b"id,text\n1,a\0b\n", "line 2: binary"),
        ("a.csv", b"id,text\n", "no records"),
        ("a.csv", b"\n\n", "no records"),
        ("a.csv", json_lines(), "no field"),
        ("a.json", b'[{"text": "a"}] {}', "malformed JSON (Extra data)"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "malformed JSON (Expecting ',' delimiter)"),
        ("a.json", b'[{"text": "a"}', "malformed JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", "JSON can't be read"),
        ("a.arrow", b"no arrow file", "not a readable Arrow file"),
        ("a.jsonl.zst", b"no zstd", "can't be read"),
        ("a.jsonl.zst", zstd(json_lines() * 999)[:-20], "can't be read"),
        ("a.jsonl.xz", b"no xz", "can't be read"),
        ("a.jsonl.bz2", bz2.compress(json_lines())[:-9], "can't be read"),
        ("a.txt", json_lines(), "looks like JSON"),
        ("a.txt", b'\n{"id": 1}\n', "looks like JSON"),
        ("a.log", json.dumps(ROWS).encode(), "looks like JSON"),
        ("a.txt", gzip.compress(b"text", mtime=0), "add .gz to its name"),
        ("a.txt", b"%PDF-1.4 text", "PDF's"),
    ],
)
def test_what_does_not_fit_its_name_is_told(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    problem = problem_of(tmp_path / name)
    assert said in problem and name in problem


@pytest.mark.parametrize("text", ["{not JSON}\n", "[1] a footnote\n", '{"a": 1}\nand prose\n', "[1, 2]\n[3, 4]\n"])
def test_text_with_braces_stays_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt") == [text]


def test_a_record_has_a_bound_and_a_long_file_has_none(tmp_path, monkeypatch):
    for name in ("MOST_TEXT", "MOST_RECORD", "FREE_TEXT", "FREE_RECORD"):
        monkeypatch.setattr(Growth, name, 2**16)
    text = "".join(f"word{number} " for number in range(5_000))
    rows = [{"text": text}] * 40
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("text\n" + f'"{text}"\n' * 40)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False)
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        assert read(tmp_path / name) == [text] * 40
    rows[1] = {"text": text * 2}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text(f'text\n"{text}"\n"{text * 2}"\n')
    (tmp_path / "b.csv").write_text(f'text\n"{text}"\n"' + "a\n" * 40_000 + '"\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text(text * 2)
    for name in ("a.jsonl", "a.json", "a.csv", "b.csv", "a.parquet", "a.txt"):
        assert "longer than 0 MiB" in problem_of(tmp_path / name) and name in problem_of(tmp_path / name)


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


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "lists.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz", "value.parquet", "rows.parquet"]
)
def test_bombs_are_refused_before_they_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".gz"):
        begin = {
            "a.jsonl.gz": b'{"text": "',
            "lists.jsonl.gz": b'{"text": [',
            "a.json.gz": b'[{"text": "',
            "a.csv.gz": b'text\n"',
        }
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(begin.get(name, b""))
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

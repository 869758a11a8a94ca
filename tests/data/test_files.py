"""Which files of a folder are documents, and what is said of the others."""

import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from longeval.data.readers import check_path, read_documents
from longeval.data.sources import open_source
from longeval.errors import LongEvalError


def names(folder):
    return [document.name for document in read_documents(str(folder))]


def texts(path):
    return [document.text for document in read_documents(str(path))]


def note(folder):
    return check_path(str(folder)).note


def test_the_clone_of_a_data_set_is_its_data(write, tmp_path):
    write("README.md", "LICENSE", ".gitattributes", ".git/config", content="about the data " * 99)
    write("dataset_infos.json", "figure.png", "load.py", "weights.safetensors")
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "data" / "train-00000.parquet")
    assert texts(tmp_path) == ["one", "two"]
    said = open_source(str(tmp_path)).note
    assert said.startswith(f"--data {tmp_path}: 1 file is read (1 .parquet); not read: .git, .gitattributes, LICENSE")
    assert said.endswith(" and 3 more")


def test_splits_that_are_read_together_are_said(write, tmp_path):
    write("data/train-0.jsonl", "data/test-0.jsonl", "data/dev.jsonl")
    assert len(names(tmp_path)) == 3
    assert "train, validation, test" in note(tmp_path)
    assert note(tmp_path / "data" / "train-0.jsonl") is None


def test_a_folder_of_books_keeps_its_books_in_sorted_order(write, tmp_path):
    books = ["a.txt", "b.md", "sub/c.txt"]
    write(*reversed(books), content="a book " * 99)
    assert names(tmp_path) == books and note(tmp_path) is None
    others = ["LICENSE.txt", "README.md", "cover.jpg", "metadata.csv"]
    write(".hidden", *others, content="about the books")
    assert names(tmp_path) == books
    assert note(tmp_path).endswith(f"3 files are read (1 .md, 2 .txt); not read: .hidden, {', '.join(others)}")
    write("books.csv", content="title\nx\n")  # the folder holds more text files than tables
    assert names(tmp_path) == books


def test_a_readme_alone_is_a_document(write, tmp_path):
    write("README.md", content="text")
    assert names(tmp_path) == ["README.md"]


def test_several_formats_and_unknown_suffixes_are_said(write, tmp_path):
    write("a.jsonl", "b.ndjson")
    assert len(names(tmp_path)) == 2 and "(1 .jsonl, 1 .ndjson)" in note(tmp_path)
    folder = write("other/a.foo", "other/b", "other/c.txt", content="prose").parent
    assert names(folder) == ["a.foo", "b", "c.txt"]
    assert "(1 without a suffix (as plain text), 1 .foo (as plain text), 1 .txt)" in note(folder)
    assert "plain text" in note(folder / "a.foo")


@pytest.mark.parametrize("name", ["a.pdf", "a.DOCX", "a.safetensors", "a.zip", "a.tar.gz", "a.parquet.gz", "a.png"])
def test_what_is_no_text_is_refused_by_name_with_what_is_read(write, name):
    path = write(name, content="harmless")
    for refused in (path, path.parent):
        with pytest.raises(LongEvalError, match=name) as caught:
            check_path(str(refused))
        assert ".jsonl" in caught.value.remedy


def test_links_are_followed_inside_only_and_once(write, tmp_path):
    write("outside.txt", "far/away.txt", content="secret")
    write("folder/a.txt", "folder/sub/b.txt", content="text")
    write("folder/.store/x", content="stored")
    folder = tmp_path / "folder"
    for link, target in {
        "again.txt": "a.txt",
        "out.txt": tmp_path / "outside.txt",
        "away": tmp_path / "far",
        "sub/loop": folder,
        "zero.txt": "/dev/zero",
        "broken.txt": "nowhere.txt",
        "stored.txt": ".store/x",
    }.items():
        (folder / link).symlink_to(target)
    assert names(folder) == ["a.txt", "stored.txt", "sub/b.txt"]
    for told in ("again.txt (the same file as a.txt)", "away (leads out of the folder)", "broken.txt (no plain file)"):
        assert told in note(folder)
    # The folder itself may be a link, and so may a file that is named.
    (tmp_path / "link").symlink_to(folder)
    assert names(tmp_path / "link") == names(folder)
    assert texts(folder / "out.txt") == ["secret"]


def test_a_snapshot_in_the_hubs_cache_is_read(write, tmp_path):
    write("blobs/0123")
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/0123")
    assert texts(snapshot) == ["a document"]


def test_fifos_sockets_and_devices_are_never_opened(write, monkeypatch):
    folder = write("f/a.txt", content="text").parent
    os.mkfifo(folder / "b.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(folder)  # a socket's path is short
        bound.bind("c.txt")
        assert names(folder) == ["a.txt"]
        assert "b.txt (no plain file), c.txt (no plain file)" in note(folder)
    for path in (folder / "b.txt", "/dev/zero", "/dev/null"):
        with pytest.raises(LongEvalError, match="neither a file nor a folder"):
            check_path(str(path))
    if os.path.exists("/proc/self/environ"):
        with pytest.raises(LongEvalError, match="empty"):
            check_path("/proc/self/environ")


def test_a_folder_with_the_name_of_a_file_is_a_folder(write):
    assert names(write("x.jsonl/a.txt", content="text").parent) == ["a.txt"]


def test_a_pattern_is_the_files_that_match_it_by_the_rule_of_folders(write, tmp_path, monkeypatch):
    write("outside.txt", content="secret")
    write("f/b.txt", "f/a.txt", "f/c.md", "f/sub/z.txt", "f/.h.txt", "f/.hidden/x.txt", content="text")
    folder = write("f/p.png", content=b"\x89PNG\0").parent
    (folder / "d.txt").symlink_to(tmp_path / "outside.txt")
    assert names(folder / "*.txt") == ["a.txt", "b.txt"] and "d.txt (leads out" in note(folder / "*.txt")
    assert names(folder / "[ac].*") == ["a.txt", "c.md"] and note(folder / "[ac].*") is None
    assert names(folder / "**" / "*.txt") == ["a.txt", "b.txt", "sub/z.txt"]
    assert names(tmp_path / "f*" / "sub" / "?.txt") == ["f/sub/z.txt"]
    assert names(folder / "*") == ["a.txt", "b.txt", "c.md"] and "p.png" in note(folder / "*")
    for pattern, said in (("*.rst", "no file matches"), ("s*", "no file matches"), ("*.png", r"p\.png"), (".*", "h")):
        with pytest.raises(LongEvalError, match=said):
            check_path(str(folder / pattern))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("*.md") == ["text"]
    source = open_source("~/f/*.md")
    assert (source.name, source.origin) == ("~/f/*.md", "path ~/f/*.md")
    assert [document.name for document in source.documents()] == ["c.md"]
    assert [document.name for document in open_source("?.md").documents()] == ["c.md"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(write, tmp_path):
    path = write("a[12].txt", content="this one")
    write("a1.txt", content="not this one")
    assert texts(path) == ["this one"]
    path.unlink()
    assert texts(path) == ["not this one"]

"""Which files of a folder are documents, and what is said of the others."""

import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from longeval.data.readers import check_path, read_documents
from longeval.data.sources import open_source
from longeval.errors import LongEvalError

ROW = '{"text": "a document"}\n'


@pytest.fixture
def write(tmp_path):
    def write_files(*names, content=ROW):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write_files


def names(folder):
    return [document.name for document in read_documents(str(folder))]


def note(folder):
    return check_path(str(folder)).note


def test_the_clone_of_a_data_set_is_its_data(write, tmp_path):
    folder = write(
        "README.md", "README_zh.md", "LICENSE", ".gitattributes", ".git/config", content="about the data " * 99
    )
    write("dataset_infos.json", "figure.png", "load.py", "weights.safetensors")
    (tmp_path / "data").mkdir()
    texts = ["one", "two"]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert [document.text for document in read_documents(str(folder))] == texts
    said = open_source(str(folder)).note
    assert said.startswith(f"--data {folder}: 1 file is read (1 .parquet); not read: .git, .gitattributes, LICENSE")
    assert said.endswith(" and 4 more")


def test_splits_that_are_read_together_are_said(write):
    folder = write("data/train-0.jsonl", "data/test-0.jsonl", "data/dev.jsonl")
    assert len(names(folder)) == 3
    assert "of the splits train, validation, test together" in note(folder)
    assert note(folder / "data" / "train-0.jsonl") is None


def test_a_folder_of_books_keeps_its_books(write):
    folder = write("a.txt", "b.md", "sub/c.txt", content="a book " * 99)
    assert names(folder) == ["a.txt", "b.md", "sub/c.txt"] and note(folder) is None
    write("README.md", "LICENSE.txt", ".hidden", "metadata.csv", "cover.jpg", content="about the books")
    assert names(folder) == ["a.txt", "b.md", "sub/c.txt"]
    assert note(folder) == (
        f"--data {folder}: 3 files are read (1 .md, 2 .txt); not read: .hidden, LICENSE.txt, README.md, cover.jpg, "
        "metadata.csv"
    )
    # A table of them has another name: what the folder holds more of is read.
    write("books.csv", content="title\nx\n")
    assert names(folder) == ["a.txt", "b.md", "sub/c.txt"] and "books.csv" in note(folder).replace(
        " and 1 more", "books.csv"
    )


def test_a_readme_alone_is_a_document(write):
    assert names(write("README.md", content="text")) == ["README.md"]


def test_several_formats_and_unknown_suffixes_are_said(write, tmp_path):
    folder = write("a.jsonl", "b.ndjson")
    assert len(names(folder)) == 2 and "(1 .jsonl, 1 .ndjson)" in note(folder)
    other = write("other/a.foo", "other/b", "other/c.txt", content="prose") / "other"
    assert names(other) == ["a.foo", "b", "c.txt"]
    assert "(1 without a suffix (as plain text), 1 .foo (as plain text), 1 .txt)" in note(other)
    assert note(other / "a.foo").endswith("read as plain text, as it stands")


@pytest.mark.parametrize(
    "name", ["a.pdf", "a.DOCX", "a.npy", "a.safetensors", "a.zip", "a.tar.gz", "a.parquet.gz", "a.png"]
)
def test_what_is_no_text_is_refused_by_name_with_what_is_read(write, name):
    folder = write(name, content="harmless")
    for path in (folder, folder / name):
        with pytest.raises(LongEvalError) as caught:
            check_path(str(path))
        assert name in str(caught.value) and ".jsonl" in caught.value.remedy


def test_links_are_followed_inside_only_and_once(write, tmp_path):
    outside = write("outside.txt", "far/away.txt", content="secret")
    folder = write("folder/a.txt", "folder/sub/b.txt", content="text") / "folder"
    (folder / "again.txt").symlink_to("a.txt")
    (folder / "out.txt").symlink_to(outside / "outside.txt")
    (folder / "away").symlink_to(outside / "far")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "broken.txt").symlink_to("nowhere.txt")
    (folder / "stored.txt").symlink_to(".store/x")
    (folder / ".store").mkdir()
    (folder / ".store" / "x").write_text("stored")
    assert names(folder) == ["a.txt", "stored.txt", "sub/b.txt"]
    said = note(folder)
    for told in ("again.txt (the same file as a.txt)", "away (leads out of the folder)", "broken.txt (no plain file)"):
        assert told in said
    # The folder itself may be a link, and so may a file that is named.
    (tmp_path / "link").symlink_to(folder)
    assert names(tmp_path / "link") == names(folder)
    assert [document.text for document in read_documents(str(folder / "out.txt"))] == ["secret"]


def test_a_snapshot_in_the_hubs_cache_is_read(write):
    cache = write("data/blobs/0123", content=ROW) / "data"
    snapshot = cache / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/0123")
    assert [document.text for document in read_documents(str(snapshot))] == ["a document"]


def test_fifos_sockets_and_devices_are_never_opened(write, monkeypatch):
    folder = write("f/a.txt", content="text") / "f"
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
    assert names(write("x.jsonl/a.txt", content="text") / "x.jsonl") == ["a.txt"]

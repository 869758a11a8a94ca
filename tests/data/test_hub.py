"""The hub, without one: splits from a local repository, one file through a stand-in, and what errors turn into."""

import functools
import io
import types

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors

from longeval.data.corpora import HubDataset
from longeval.data.hub import HubUnavailableError, PinnedDataset, pin, read_hub_documents, resolve_revision
from longeval.data.sources import open_source
from longeval.errors import LongEvalError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASET = HubDataset(id="who/what", split="test", field="text")
FILE = HubDataset(id="who/what", file="deep/test.jsonl", field="text")


def test_a_split_is_streamed_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["wrong"]), ("test", ["one", "two"])):
        table = pyarrow.table({"report": texts, "number": [1] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")

    def read(field):
        dataset = HubDataset(id=str(tmp_path), split="test", field=field)
        return [
            (document.name, document.text) for document in read_hub_documents(dataset, PinnedDataset(commit="main"))
        ]

    assert read("report") == [("test#1", "one"), ("test#2", "two")]
    with pytest.raises(LongEvalError, match=r"row 1: no field 'text'; its fields: report, number"):
        read("text")


def test_one_file_is_read_at_the_settled_commit_until_the_connection_breaks(monkeypatch):
    opened = []

    class Broken(io.BytesIO):
        def read(self, size):
            piece = super().read(size)
            if piece:
                return piece
            raise ConnectionResetError("reset by peer")

    class FileSystem:
        kind = io.BytesIO

        def open(self, *asked, revision):
            opened.append((*asked, revision))
            return self.kind(b'{"text": "a"}\n{"text": "b"}\n')

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    assert [(d.name, d.text) for d in read_hub_documents(FILE, PinnedDataset(commit="c0ffee"))] == [
        ("test.jsonl#1", "a"),
        ("test.jsonl#2", "b"),
    ]
    assert opened == [("datasets/who/what/deep/test.jsonl", "rb", "c0ffee")]
    monkeypatch.setattr(FileSystem, "kind", Broken)
    documents = read_hub_documents(FILE, PinnedDataset(commit="c0ffee"))
    assert next(documents).text == "a"
    with pytest.raises(LongEvalError, match=r"who/what: .*reset by peer"):
        list(documents)


@pytest.mark.parametrize(
    ("kind", "reason", "remedy"),
    [
        (errors.OfflineModeIsEnabled, "switched off", "HF_HUB_OFFLINE"),
        (errors.GatedRepoError, "gated", "hf auth login"),
        (errors.RepositoryNotFoundError, "have it", "https://huggingface.co/datasets/who/what"),
        (TimeoutError, "reached", "network"),
        (KeyError, None, None),  # a bug stays a bug
    ],
)
def test_what_the_hub_answers_is_explained(monkeypatch, kind, reason, remedy):
    def fail(*args, **kwargs):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(HubUnavailableError if reason else kind) as caught:
        resolve_revision(DATASET)
    if reason:
        assert reason in str(caught.value) and remedy in caught.value.remedy


def test_a_host_that_does_not_answer_is_explained(monkeypatch):
    nobody_listens = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", nobody_listens)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubUnavailableError):
        resolve_revision(DATASET)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Returns a function that puts a data set of so many files into the hub's local cache; the hub is switched off."""
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(hub_id, **files):
        repo = tmp_path / "hf" / f"datasets--{hub_id.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(COMMIT)
        folder = repo / "snapshots" / COMMIT
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            else:
                pyarrow.parquet.write_table(pyarrow.table(content), path)
        return folder

    return put


CARD = """---
configs:
- config_name: short
  data_files: [{split: test, path: short/*.parquet}]
- config_name: long
  data_files: [{split: test, path: long/test.parquet}, {split: train, path: long/train.parquet}]
---
"""


@pytest.fixture
def two_configurations(cached):
    texts = {f"{name}.parquet": {"body": [name, None]} for name in ("short/test", "long/test", "long/train")}
    return cached("who/what", **{"README.md": CARD}, **texts)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("hub:who/what:short:test", ["short/test", ""]),
        ("hub:who/what@main:long:test", ["long/test", ""]),
        (f"hub:who/what@{COMMIT}:long:train", ["long/train", ""]),
    ],
)
def test_a_data_set_is_named_with_configuration_and_split_and_read_offline(two_configurations, name, texts):
    source = open_source(name, text_field="body")
    assert (source.name, source.origin, source.default_docs) == (name, f"hub who/what@{COMMIT}", 50)
    assert "local cache holds of commit 0123456789ab" in source.note
    documents = list(source.documents())
    assert [document.text for document in documents] == texts and documents[1].missing


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:who/what", r"available configs: \['short', 'long'\].*hub:who/what:CONFIG:SPLIT"),
        ("hub:who/what:middle:test", r"'middle' not found. Available: \['short', 'long'\]"),
        ("hub:who/what:long:dev", "split dev: unknown.*Known: test, train"),
        (
            "hub:who/what@v2:long:test",
            "--data hub:who/what@v2:long:test: .*switched off.*hf download --repo-type dataset",
        ),
        ("hub:who/else", "--data hub:who/else: .*switched off.*Or give a copy"),
        ("hub:who", "not of the form hub:OWNER/NAME"),
        ("hub:a/b:c:d:e", "not of the form hub:OWNER/NAME"),
    ],
)
def test_what_a_data_set_does_not_have_is_named(two_configurations, name, said):
    with pytest.raises(LongEvalError, match=said):
        list(open_source(name, text_field="body").documents())


def test_the_only_split_needs_no_name_and_a_file_of_text_is_a_document(cached, tmp_path):
    script = f"open({str(tmp_path / 'made')!r}, 'w')"
    cached("who/one", **{"data/b.txt": "two\nlines\n", "data/a.txt": "first", "one.py": script, "load.py": script})
    assert [(d.name, d.text) for d in open_source("hub:who/one").documents()] == [
        ("train#1", "first"),
        ("train#2", "two\nlines\n"),
    ]
    assert not (tmp_path / "made").exists()  # no code of a data set runs
    cached("who/two", **{"train.parquet": {"text": ["a"]}, "test.parquet": {"text": ["b"]}})
    with pytest.raises(LongEvalError, match=r"has the splits train, test.*--data hub:who/two:test\."):
        list(open_source("hub:who/two").documents())
    assert [d.text for d in open_source("hub:who/two:test").documents()] == ["b"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": "# about"}, "no data files in the hub's local cache"),
        ({"task.toml": "a = 1"}, "harbor files, not of text"),
        ({"train.parquet": {"text": pyarrow.nulls(2, pyarrow.string())}}, "null or missing in all 2 records"),
        ({"train.parquet": {"body": ["a"]}}, "row 1: no field 'text' or 'input' or 'content'; its fields: body"),
        ({"README.md": "---\nconfigs: [{config_name: a, data_files: ../../../../x.txt}]\n---\n"}, "outside of it"),
    ],
)
def test_a_data_set_that_holds_no_documents_is_refused(cached, tmp_path, files, said):
    (tmp_path / "x.txt").write_text("somebody's file")
    cached("who/what", **files)
    with pytest.raises(LongEvalError, match=said):
        list(open_source("hub:who/what").documents())


@pytest.mark.parametrize("numbers", [[1], [0, 2]])
def test_a_split_of_which_the_cache_holds_only_some_parts_is_refused(cached, tmp_path, numbers):
    parts = {f"data/train-{number:05}-of-00003.parquet": {"text": [str(number)]} for number in range(3)}
    folder = cached("who/what", **parts, **{"data/test-00000-of-00001.parquet": {"text": ["whole"]}})
    for number, name in enumerate(parts):  # the hub's own client links files of a snapshot to their contents
        blob = tmp_path / "hf" / "datasets--who--what" / "blobs" / f"{number}"
        blob.parent.mkdir(exist_ok=True)
        (folder / name).rename(blob)
        (folder / name).symlink_to(blob)
    assert [d.text for d in open_source("hub:who/what:train").documents()] == ["0", "1", "2"]
    for number, name in enumerate(parts):
        if number not in numbers:
            (folder / name).unlink()
    said = rf"holds {len(numbers)} of 3 parts of train-\*-of-00003\.parquet.*hf download --repo-type dataset who/what"
    with pytest.raises(LongEvalError, match=said):
        next(iter(open_source("hub:who/what:train").documents()))
    assert [d.text for d in open_source("hub:who/what:test").documents()] == ["whole"]


def test_a_single_file_is_read_from_the_cache_too(cached):
    cached("who/what", **{"deep/test.jsonl": '{"text": "a"}\n{"text": null}\n'})
    pinned = pin(FILE)
    assert pinned.commit == COMMIT
    assert [(d.name, d.text, d.missing) for d in read_hub_documents(FILE, pinned)] == [
        ("test.jsonl#1", "a", False),
        ("test.jsonl#2", "", True),
    ]


def test_the_hub_is_asked_before_its_cache(cached, monkeypatch):
    cached("who/what", **{"train.parquet": {"text": ["old"]}})
    answer = types.SimpleNamespace(sha="c0ffee")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: answer)
    assert pin(DATASET) == PinnedDataset(commit="c0ffee")

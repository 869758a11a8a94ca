"""The hub, without one: splits from a local repository, one file through a stand-in, and what errors turn into."""

import functools
import io

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors

from longeval.data.corpora import HubDataset
from longeval.data.hub import HubUnavailableError, read_hub_documents, resolve_revision
from longeval.errors import LongEvalError


def split_of(folder, field):
    return HubDataset(id=str(folder), split="test", field=field)


def test_a_split_is_streamed_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["wrong"]), ("test", ["one", "two"])):
        table = pyarrow.table({"report": texts, "number": [1] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    documents = list(read_hub_documents(split_of(tmp_path, "report"), "main"))
    assert [(d.name, d.text) for d in documents] == [("test#1", "one"), ("test#2", "two")]
    with pytest.raises(LongEvalError, match=r"row 1: no field 'text'; its fields: report, number"):
        list(read_hub_documents(split_of(tmp_path, "text"), "main"))


def test_one_file_is_read_at_the_settled_commit(monkeypatch):
    opened = []

    class FileSystem:
        def open(self, path, mode, revision):
            opened.append((path, mode, revision))
            return io.BytesIO(b'{"text": "a"}\n{"text": "b"}\n')

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    hub = HubDataset(id="who/what", file="deep/test.jsonl", field="text")
    assert [(d.name, d.text) for d in read_hub_documents(hub, "c0ffee")] == [
        ("test.jsonl#1", "a"),
        ("test.jsonl#2", "b"),
    ]
    assert opened == [("datasets/who/what/deep/test.jsonl", "rb", "c0ffee")]


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (errors.OfflineModeIsEnabled("off"), "switched off", "HF_HUB_OFFLINE"),
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "gated", "hf auth login"),
        (
            errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError),
            "doesn't have it",
            "https://huggingface.co/datasets/who/what",
        ),
        (TimeoutError("timed out"), "can't be reached (timed out)", "network"),
    ],
)
def test_what_the_hub_answers_is_explained(monkeypatch, error, reason, remedy):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(HubUnavailableError) as caught:
        resolve_revision(HubDataset(id="who/what", split="test", field="text"))
    assert reason in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_host_that_does_not_answer_is_explained(monkeypatch):
    nobody_listens = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", nobody_listens)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubUnavailableError, match="can't be reached"):
        resolve_revision(HubDataset(id="who/what", split="test", field="text"))


def test_a_bug_stays_a_bug(monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(KeyError):
        resolve_revision(HubDataset(id="who/what", split="test", field="text"))


def test_a_connection_that_breaks_half_way_is_named(monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size):
            piece = super().read(size)
            if piece:
                return piece
            raise ConnectionResetError("reset by peer")

    class FileSystem:
        def open(self, path, mode, revision):
            return Broken(b'{"text": "a"}\n')

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    documents = read_hub_documents(HubDataset(id="who/what", file="x.jsonl", field="text"), "main")
    assert next(documents).text == "a"
    with pytest.raises(LongEvalError, match=r"hub data set who/what: .*reset by peer"):
        next(documents)

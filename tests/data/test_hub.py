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

DATASET = HubDataset(id="who/what", split="test", field="text")
FILE = HubDataset(id="who/what", file="deep/test.jsonl", field="text")


def test_a_split_is_streamed_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["wrong"]), ("test", ["one", "two"])):
        table = pyarrow.table({"report": texts, "number": [1] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")

    def read(field):
        dataset = HubDataset(id=str(tmp_path), split="test", field=field)
        return [(document.name, document.text) for document in read_hub_documents(dataset, "main")]

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
    assert [(d.name, d.text) for d in read_hub_documents(FILE, "c0ffee")] == [
        ("test.jsonl#1", "a"),
        ("test.jsonl#2", "b"),
    ]
    assert opened == [("datasets/who/what/deep/test.jsonl", "rb", "c0ffee")]
    monkeypatch.setattr(FileSystem, "kind", Broken)
    documents = read_hub_documents(FILE, "c0ffee")
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

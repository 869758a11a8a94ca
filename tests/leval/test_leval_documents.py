"""L-Eval's files as rows: order, fields, local copies, the hub (through stand-ins), and files that are broken."""

import huggingface_hub
import pytest

from longeval.errors import LongEvalError

COMMIT = "43b9dbf06c239360b183c76cb5d90ebe4f5e3070"


@pytest.fixture(scope="module")
def documents(module_of):
    return module_of("documents")


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that can't be reached, and nothing of it in the cache."""

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)


def test_rows_are_questions_in_order_of_their_index(documents, write):
    asked = [("q1", "a one"), ("q2", "b"), ("q3", "c")]
    write("quality", [(" First text.\n", asked[:2]), ("Second text.", asked), ("Third text.", asked[:1])])
    rows = documents.load(file="quality", evaluation="exam", version=1, setting=object())["test"]
    first = {"document": "First text.", "document_id": "quality#1", "question": "q1", "reference": "a one"}
    assert rows[0] == first | {"index": 0, "words": 2}
    places = [f"{place[-1]}{question}" for place, question in zip(rows["document_id"], rows["question"], strict=True)]
    assert places == ["1q1", "2q1", "3q1", "1q2", "2q2", "2q3"]
    assert rows["index"][:] == [0, 0, 0, 1, 1, 2]


def test_lines_with_the_same_text_are_one_document(documents, write):
    write("news_summ", [("Text.", [("a", "b")]), ("Other.", [("c", "d")]), ("Text. ", [("e", "f")])], "rouge")
    rows = documents.load(file="news_summ", evaluation="rouge")["test"]
    assert rows["document_id"][:] == ["news_summ#1", "news_summ#2", "news_summ#1"]


def test_lines_for_other_judges_are_left_out(documents, write):
    for evaluation in ("LLM", "rouge", "human"):
        path = write("news_summ", [(f"For {evaluation}.", [("q", "a")])], evaluation)
    rows = documents.load(file="news_summ", evaluation="rouge")["test"]
    assert rows["document"][:] == ["For rouge."]
    with pytest.raises(LongEvalError, match=rf"{path}: .*'f1'.*leval/news_summ.jsonl"):
        documents.load(file="news_summ", evaluation="f1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "JSON"),
        ("[]", ""),
        ('{"input": "caf\u00e9"}', "UnicodeDecodeError"),
        ('{"input": "t", "instructions": ["q"], "evaluation": "exam"}', "outputs"),
        ('{"input": "t", "instructions": ["q"], "outputs": [1], "evaluation": "exam"}', ""),
        ('{"input": "t", "instructions": ["q"], "outputs": [], "evaluation": "exam"}', "1 .* 0 "),
        ('{"input": " ", "instructions": ["q"], "outputs": ["a"], "evaluation": "exam"}', " 0 characters"),
    ],
)
def test_a_damaged_line_is_named(documents, write, line, words):
    path = write("tpo", [("Text.", [("q", "A")])])
    with path.open("ab") as out:
        out.write(line.encode("latin-1") + b"\n")
    with pytest.raises(LongEvalError, match=f"{path}.* line 2: .*{words}"):
        documents.load(file="tpo", evaluation="exam")


def test_empty_lines_are_no_documents(documents, write):
    path = write("tpo", [("Text.", [("q", "A")])])
    path.write_text("\n" + path.read_text() + "\n\n")
    assert documents.load(file="tpo", evaluation="exam")["test"]["document_id"][:] == ["tpo#2"]


def test_without_any_copy_both_ways_are_named(documents, write, no_hub, monkeypatch, tmp_path):
    def refused(words):
        with pytest.raises(LongEvalError, match=words):
            documents.load(file="codeU", evaluation="exam")

    refused(rf"no leval/codeU\.jsonl in LONGEVAL_DATA={tmp_path}.*L4NLP/LEval: .*\(no route\)")
    monkeypatch.delenv("LONGEVAL_DATA")
    refused(r"LONGEVAL_DATA is not set.*codeU\.jsonl")
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path / "nothing"))
    refused("nothing: not a folder")


@pytest.mark.parametrize(
    ("file", "evaluation", "path"),
    [("codeU", "exam", "LEval/Exam/codeU.jsonl"), ("news_summ", "rouge", "LEval/Generation/news_summ.jsonl")],
)
def test_the_hub_file_is_fetched_at_one_commit(documents, write, monkeypatch, file, evaluation, path):
    copy = write("elsewhere", [("Text.", [("q", "a")])], evaluation)
    fetched = []

    def info(_, name, *, revision, timeout):
        fetched.append((name, revision))
        return type("Info", (), {"sha": revision})

    def download(name, filename, *, repo_type, revision):
        fetched.append((name, filename, repo_type, revision))
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    rows = documents.load(file=file, evaluation=evaluation)["test"]
    assert rows["reference"][:] == ["a"]
    assert fetched == [("L4NLP/LEval", COMMIT), ("L4NLP/LEval", path, "dataset", COMMIT)]


def test_a_cached_hub_file_needs_no_network(documents, write, no_hub, monkeypatch):
    copy = write("elsewhere", [("Text.", [("q", "a")])])

    def cached(name, filename, *, repo_type, revision):
        assert (name, filename, repo_type, revision) == ("L4NLP/LEval", "LEval/Exam/codeU.jsonl", "dataset", COMMIT)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert len(documents.load(file="codeU", evaluation="exam")["test"]) == 1


def test_a_fetch_that_breaks_off_is_no_traceback(documents, write, no_hub, monkeypatch):
    def broken(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("connection reset")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: type("Info", (), {"sha": COMMIT}))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(LongEvalError, match=r"Exam/codeU\.jsonl .*\(connection reset\).*leval/codeU\.jsonl"):
        documents.load(file="codeU", evaluation="exam")

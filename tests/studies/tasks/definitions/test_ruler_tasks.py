"""RULER's offline tasks with a tokenizer of ours: no network, as many samples as asked for, never endless."""

import json
import os
from pathlib import Path

import pytest

from longeval.errors import LongEvalError
from longeval.models.tokenizer import tokenizer_folder
from longeval.studies.tasks.definitions import index
from longeval.studies.tasks.definitions.files import lm_eval_folder
from longeval.studies.tasks.definitions.load import load_task
from longeval.studies.tasks.setting import Setting

pytestmark = pytest.mark.usefixtures("no_downloads", "only_ruler")


@pytest.fixture
def only_ruler(monkeypatch):
    """An index of RULER's folder alone: the whole takes seconds."""
    folder = os.path.join(lm_eval_folder(), "ruler")
    monkeypatch.setattr(index, "lm_eval_folder", lambda: folder)


@pytest.fixture
def no_downloads(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *a, **k: pytest.fail("tried to download"))


@pytest.fixture(scope="module")
def words():
    """A tokenizer with a token for each word and mark: RULER's texts are as short as with a real one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def build(name, tokenizer, length, num_samples=2, seed=0, template=0):
    setting = Setting(
        length=length + template,
        num_samples=num_samples,
        seed=seed,
        haystack="noise",
        measure=len,
        digest="",
        cache=None,
    )
    folder = tokenizer_folder(tokenizer)
    return load_task(name, metadata={"setting": setting, "tokenizer": folder, "max_seq_lengths": [length]})


OFFLINE = ["niah_single_1", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe"]


@pytest.mark.slow  # importing niah takes lm-eval ten seconds: it lays out all pairs of adjective and noun
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_tasks_are_built(name, words, capsys):
    docs = list(build(name, words, 2048).eval_docs)
    assert len(docs) == 2
    for doc in docs:
        assert 1024 < len(words(doc["input"]).input_ids) <= 2048
        assert doc["max_length"] == 2048
        assert all(answer in doc["input"] for answer in doc["outputs"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["niah_single_1", "ruler_vt", "ruler_cwe"])
def test_fewer_samples_are_the_first_of_more_and_follow_the_seed(words, name):
    def inputs(num_samples, seed=0):
        return [doc["input"] for doc in build(name, words, 2048, num_samples, seed).eval_docs]

    assert inputs(2) == inputs(5)[:2]
    assert inputs(2) != inputs(2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ruler_vt", "ruler_cwe", "ruler_fwe"])
def test_a_window_too_short_is_an_error_and_the_shortest_that_it_names_does(name, words):
    """No endless loop. Lengths are told as they were asked for: with the tokens of the chat template."""
    with pytest.raises(LongEvalError, match=f"--tasks {name}: a window of 128 tokens") as plain:
        build(name, words, 128)
    with pytest.raises(LongEvalError, match="a window of 163 tokens, less 35") as templated:
        build(name, words, 128, template=35)
    shortest, with_template = (int(e.value.remedy.rstrip(".").split()[-1]) for e in (plain, templated))
    assert with_template == shortest + 35
    assert len(build(name, words, shortest, num_samples=20).eval_docs) == 20


def test_a_tokenizer_folder_holds_no_code_and_is_made_once(words, tmp_path, monkeypatch):
    class WithCode:
        def save_pretrained(self, folder):
            words.save_pretrained(folder)
            path = Path(folder, "tokenizer_config.json")
            config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
            path.write_text(json.dumps(config))
            Path(folder, "evil.py").write_text("raise SystemExit")

    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    folder = tokenizer_folder(WithCode())
    assert folder == tokenizer_folder(WithCode()) == tokenizer_folder(words)
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    for name, content in (("tokenizer.json", b"{}"), ("planted.py", b"1")):
        Path(folder, name).write_bytes(content)
        assert tokenizer_folder(words) == folder  # made again where it was damaged
        assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == files
    assert list((tmp_path / "cache" / "tokenizers").iterdir()) == [Path(folder)]
    assert not any(name.endswith(".py") for name in files)
    assert "auto_map" not in json.loads(files["tokenizer_config.json"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "file"))
    other = Path(tokenizer_folder(words))
    assert (other / "tokenizer.json").is_file() and not other.is_relative_to(tmp_path / "file")

"""Small models, texts and tasks that once failed: from a folder `cases` beside that of the documents, if there is one.

What is right was computed apart from longeval: stock transformers on the weights, and the ids that the folder's
tokenizer.json gives.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from longeval.cli.app import run_app

CASES = Path(os.environ.get("LONGEVAL_DATA", "/nowhere")).parent / "cases"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases beside LONGEVAL_DATA"),
]

WINDOW = 256


def ids_of(folder, text, *, plain_specials=True):
    """A text's ids by the folder's own tokenizer.json, with what its post-processor adds."""
    tokenizer = Tokenizer.from_file(str(CASES / "models" / folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = plain_specials
    return tokenizer.encode(text).ids


def stock_perplexity(folder, ids, prefix=1):
    """Perplexity by stock transformers of the ids after the first `prefix`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(CASES / "models" / folder, dtype=torch.float32).eval()
    window = torch.tensor([ids[:WINDOW]])
    with torch.no_grad():
        logprobs = model(window).logits[0].double().log_softmax(-1)
    nll = -logprobs[:-1].gather(1, window[0, 1:, None])[:, 0]
    return math.exp(float(nll[prefix - 1 :].mean()))


def read(name):
    return (CASES / "data" / name).read_text(encoding="utf-8")


def ppl(tmp_path, model, *more, data="book.txt", status=0):
    """The perplexity of a request, unless it is a dry run or to be refused."""
    tmp_path.mkdir(exist_ok=True)
    out = tmp_path / "records.json"
    arguments = ["ppl", "--model", str(model), "--pe", "none", "--lengths", str(WINDOW)]
    arguments += ["--data", str(CASES / "data" / data), "--dtype", "float32", "--out", str(tmp_path / "run"), "--quiet"]
    if "--dry-run" not in more:
        arguments += ["--json", str(out)]
    assert run_app([*arguments, *more]) == status
    if status or "--dry-run" in more:
        return None
    (value,) = (record["value"] for record in json.loads(out.read_text()) if record["metric"] == "perplexity")
    return value


def near(value):
    return pytest.approx(value, rel=2e-5)


def mean_perplexity(texts):
    """Of documents that fill the window, with the model `base`."""
    all_ids = [ids_of("base", text) for text in texts]
    nlls = [math.log(stock_perplexity("base", ids)) for ids in all_ids if len(ids) >= WINDOW]
    return math.exp(sum(nlls) / len(nlls))


SAME = ["base", "bias_true", "tk_deepseek", "g_sm", "y_top", "vv_top", "vv_in", "f_flash", "f_dtypebad", "cyc"]
SAME += ["v_partial"]  # its family ignores a partial rotary factor
AS_BASE = {"f_dtypebad", "f_flash"}
"""The weights are those of base; stock transformers stumbles over the word for a dtype, and needs FlashAttention."""


@pytest.mark.parametrize("folder", SAME)
def test_the_value_is_that_of_stock_transformers(folder, tmp_path):
    reference = "base" if folder in AS_BASE else folder
    expected = stock_perplexity(reference, ids_of(reference, read("book.txt")))
    assert ppl(tmp_path, CASES / "models" / folder) == near(expected)


def test_vv_top_is_its_right_twin(tmp_path):
    values = [ppl(tmp_path / name, CASES / "models" / name) for name in ("vv_top", "vv_in")]
    assert values[0] == values[1]


def test_a_prefix_of_two_tokens_starts_every_window(tmp_path):
    ids = ids_of("glm4", read("book.txt"))
    assert ids[:2] == [0, 1]
    model = CASES / "models" / "glm4"
    with_prefix = stock_perplexity("glm4", ids, prefix=2)
    assert ppl(tmp_path, model) == near(with_prefix)
    assert ppl(tmp_path, model, "--bos") == near(with_prefix)
    assert ppl(tmp_path, model, "--no-bos") == near(stock_perplexity("glm4", ids[2:]))


REFUSED = {
    "bias_hidden": "bias",
    "lay4as2": "layers.2",
    "q_fp8_nocfg": "scale",
    "f_adapter": "adapter",
    "f_vocab": "600",
    "max_float": "max_position_embeddings",
    "v_thetastr": "rope_theta",
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("folder", REFUSED)
def test_what_cannot_be_read_right_is_refused_by_name(folder, dry, tmp_path, capsys):
    ppl(tmp_path, CASES / "models" / folder, *(["--dry-run"] if dry else []), status=2)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert REFUSED[folder] in err and folder in err
    assert not (tmp_path / "run").exists()


def test_f_flash_with_another_attention_and_on_a_dry_run(tmp_path):
    model = CASES / "models" / "f_flash"
    assert json.loads((model / "config.json").read_text())["_attn_implementation"] == "flash_attention_2"
    ppl(tmp_path, model, "--dry-run")
    assert ppl(tmp_path, model, "--attn", "eager") == near(stock_perplexity("base", ids_of("base", read("book.txt"))))


@pytest.mark.parametrize("name", ["book.txt", "table.txt"])
def test_a_gguf_is_its_folder(name, tmp_path):
    reference = stock_perplexity("g_sm", ids_of("g_sm", read(name)))
    for model in (CASES / "gguf" / "g_sm.gguf", CASES / "models" / "g_sm"):
        assert ppl(tmp_path, model, data=name) == near(reference)


def test_a_split_gguf_is_read_whole(tmp_path):
    reference = stock_perplexity("base", ids_of("base", read("book.txt")))  # its weights are those of base
    for shard in ("00001", "00002"):
        assert ppl(tmp_path / shard, CASES / "gguf" / f"split-{shard}-of-00002.gguf") == near(reference)
    alone = tmp_path / "split-00001-of-00002.gguf"
    shutil.copy(CASES / "gguf" / alone.name, alone)
    ppl(tmp_path / "c", alone, status=2)


def texts_of(name):
    if name == "x.csv":
        return [row["text"] for row in csv.DictReader(read(name).splitlines(keepends=True))]
    if name == "x.ndjson":
        return [json.loads(line)["text"] for line in read(name).splitlines()]
    table = pyarrow.parquet.read_table(CASES / "data" / name / "data" / "train-00000-of-00001.parquet")
    return [row["text"] for row in table.to_pylist()]


@pytest.mark.parametrize("name", ["x.ndjson", "x.csv", "hf"])  # the last with a card, which is no document
def test_records_of_a_table_are_documents(tmp_path, name):
    assert ppl(tmp_path, CASES / "models" / "base", data=name) == near(mean_perplexity(texts_of(name)))


def test_special_tokens_in_a_text_are_text_unless_asked(tmp_path):
    text, base = read("special.txt"), CASES / "models" / "base"
    plain, parsed = ids_of("base", text), ids_of("base", text, plain_specials=False)
    assert plain != parsed
    assert ppl(tmp_path, base, data="special.txt") == near(stock_perplexity("base", plain))
    assert ppl(tmp_path, base, "--parse-special", data="special.txt") == near(stock_perplexity("base", parsed))


def test_a_comma_in_a_path(tmp_path):
    expected = stock_perplexity("base", ids_of("base", read("a,b.txt")))
    assert ppl(tmp_path, CASES / "models" / "base", data="a,b.txt") == near(expected)


def test_another_bos_is_another_cell(tmp_path):
    model = tmp_path / "bosch"
    shutil.copytree(CASES / "models" / "bosch", model, copy_function=shutil.copyfile)
    ids = ids_of("bosch", read("book.txt"))
    assert ppl(tmp_path, model, "--bos") == near(stock_perplexity("bosch", [0, *ids]))
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|endoftext|>"}))
    assert ppl(tmp_path, model, "--bos") == near(stock_perplexity("bosch", [2, *ids]))


def task_file(tmp_path, name):
    path = tmp_path / name
    text = (CASES / "tasks" / name).read_text()
    path.write_text(text.replace("DATA_JSON", str(CASES / "tasks" / "data.json")))
    return path


def tasks(tmp_path, model, name, length):
    out = tmp_path / "tasks.json"
    arguments = ["tasks", "--model", str(model), "--pe", "none", "--tasks", str(task_file(tmp_path, name))]
    arguments += ["--lengths", str(length), "--dtype", "float32", "--out", str(tmp_path / "run"), "--json", str(out)]
    assert run_app([*arguments, "--quiet"]) == 0
    return {record["metric"]: record for record in json.loads(out.read_text())}


def test_other_stop_tokens_are_asked_again(tmp_path):
    model = tmp_path / "cyc"
    shutil.copytree(CASES / "models" / "cyc", model, copy_function=shutil.copyfile)
    samples = tmp_path / "run" / "samples"
    tasks(tmp_path, model, "gen.yaml", 256)
    before = len(list(samples.iterdir()))
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 2]}))
    tasks(tmp_path, model, "gen.yaml", 256)
    assert len(list(samples.iterdir())) == before + 1


def test_a_rolling_task_scores_every_token_once_and_no_prefix(tmp_path):
    length = 512
    found = tasks(tmp_path, CASES / "models" / "base", "roll.yaml", length)
    model = transformers.AutoModelForCausalLM.from_pretrained(CASES / "models" / "base", dtype=torch.float32).eval()
    total, num_bytes = 0.0, 0
    for row in json.loads((CASES / "tasks" / "data.json").read_text()):
        ids = ids_of("base", row["document"])
        assert ids[0] == 0 and len(ids) <= length
        window = torch.tensor([ids])
        with torch.no_grad():
            logprobs = model(window).logits[0].double().log_softmax(-1)
        total += float(logprobs[:-1].gather(1, window[0, 1:, None]).sum())
        num_bytes += len(row["document"].encode())
    assert found["bits_per_byte"]["value"] == near(-total / num_bytes / math.log(2))

"""`--show` and `tasks --keep-text`: what the model was given, as a reader sees it; with tiny real models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from command_lines import command_line
from own_tasks import ANSWER, CHOICE, write_data, write_task
from transformers import AutoTokenizer

import longeval
from longeval.backends.base import GenerateRequest
from longeval.cli.app import run_app
from longeval.data.special import special_tokens
from longeval.run.examples import EDGE_TOKENS, InputPart, ShownInput, ShownInputs, shortened
from longeval.store.folder import Store
from longeval.studies.tasks.prompts.requests import digest


@pytest.fixture
def ppl(tiny_llama_bos, here):
    """Two methods on one hostile document."""
    words = " ".join(f"the model {number} reads" for number in range(200))
    (here / "text.txt").write_text(f"\x1b[31mred </s>\nsecond line {words}")
    small = {"model": str(tiny_llama_bos), "pe": "none,yarn", "data": "text.txt", "dtype": "float32", "out": "run"}
    small |= {"lengths": "64,256", "protocol": "sliding", "stride": "40"}
    return lambda **change: command_line("ppl", **small | change)


@pytest.fixture
def tasks(tiny_llama_bos, here):
    small = {"model": str(tiny_llama_bos), "pe": "none,yarn", "lengths": "128", "dtype": "float32", "out": "run"}
    data = write_data(here)

    def make(kind, **change):
        return command_line("tasks", **small | {"tasks": str(write_task(here, kind, data, "own"))} | change)

    return make


def shown(out):
    """The blocks of examples in what a command prints: by title, their lines."""
    blocks = [block.strip("\n").splitlines() for block in out.split("\n\n")]
    return {lines[0].strip(): lines[1:] for lines in blocks if any(line.startswith("    ") for line in lines[1:3])}


def no_weights(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("longeval.run.host.Host.backend", refuse)


def test_a_dry_run_shows_windows_and_where_scoring_starts_without_a_model(ppl, capsys, monkeypatch):
    no_weights(monkeypatch)
    assert run_app([*ppl(), "--dry-run", "--show", "2"]) == 0
    out = capsys.readouterr().out
    blocks = shown(out)
    assert [title.split(" · ")[0] for title in blocks] == ["text.txt at 64", "text.txt at 256"]
    first, second = "\n".join(blocks[next(iter(blocks))]).split("  text.txt, ")[1:]
    assert first.startswith("tokens 0 to 62: a window of 64 tokens, scored from position 1 on\n")
    assert "    context: 1 token, special tokens <s>\n      | <s>\n    scored: 63 tokens\n" in first
    assert "| \\x1b[31mred </s>\n      | second line the model" in first and "\x1b" not in out
    assert second.startswith("tokens 40 to 102: a window of 64 tokens, scored from position 24 on\n")
    assert second.count("not computed") == 2


def test_windows_of_a_run_and_of_stored_cells_show_their_values(ppl, capsys, here):
    assert run_app([*ppl(pe="none"), "--show", "3"]) == 0
    computed = shown(capsys.readouterr().out)
    (cell,) = (cell.cell for cell in Store("run").cells() if cell.records[0].length == 64)
    nll = Store("run").nll(cell)
    means = [values_S.mean(dtype=np.float64) for values_S in np.split(nll.nll_S, np.cumsum(nll.tokens_W)[:-1])][:3]
    lines = next(lines for title, lines in computed.items() if " at 64 " in title)
    found = [line.strip() for line in lines if line.startswith("    none: ")]
    assert found == [f"none: {mean:.4f} nats a token, perplexity {math.exp(mean):.4g}" for mean in means]
    assert run_app([*ppl(pe="none"), "--show", "3", "-q"]) == 0
    assert shown(capsys.readouterr().out) == computed


def test_json_on_stdout_leaves_it_to_stderr(ppl, capsys):
    assert run_app([*ppl(pe="none"), "--json", "-", "--show", "1", "-q"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 4
    assert err.count("scored from position 1 on") == 2


def test_choices_are_shown_with_what_the_model_gave_them(tasks, capsys):
    assert run_app([*tasks(CHOICE, pe="none"), "--show", "1", "-q"]) == 0
    (lines,) = shown(capsys.readouterr().out).values()
    sample = Store("run").samples(next(Store("run").cells()).cell)[0]
    text = "\n".join(line.strip() for line in lines)
    values = ", ".join(f"{value:.4f}" for value, _ in sample.output)
    assert "choice 1: 1 token\n|  report\nchoice 2: 1 token\n|  model\n" in text
    assert text.endswith(f'expected: "report"\nnone: log-likelihood {values}, accuracy {sample.scores["accuracy"]:g}')


def test_a_cut_prompt_is_shown_as_the_model_gets_it(tasks, capsys):
    assert run_app([*tasks(ANSWER), "--show", "3", "--dry-run"]) == 0
    (lines,) = shown(capsys.readouterr().out).values()
    text = "\n".join(lines)
    # 128 tokens less 8 of the answer; what was cut out is told for the third, of 250 words.
    assert "sample 2, its document shorter by " in text
    assert "prompt: 120 tokens, special tokens <s>" in text.partition("sample 2")[2]
    assert text.partition("sample 2")[2].count(" the line reads\n") == 1


def test_the_middle_of_a_long_text_is_left_out_and_counted(tiny_llama_bos):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_bos)
    ids = tokenizer("a long report " * 200)["input_ids"]
    part = InputPart(name="prompt", tokens_T=np.array(ids, dtype=np.int32))
    examples = ShownInputs(
        title="t", tokenizer=tokenizer, examples=(ShownInput(title="e", parts=(part,), answers=(("x", "\x1b"),)),)
    )
    *_, head, middle, tail, answer = examples.lines()
    assert head == f"      | {tokenizer.decode(ids[:EDGE_TOKENS])}"
    assert middle == f"      … {len(ids) - 2 * EDGE_TOKENS:,} tokens left out …"
    assert tail == f"      | {tokenizer.decode(ids[-EDGE_TOKENS:])}"
    assert answer == "    x: \\x1b"
    assert shortened("a" * 300 + "b" * 300) == f'"{"a" * 200} … 200 characters left out … {"b" * 200}"'


def test_a_special_token_is_told_from_a_text_that_spells_it(tiny_llama_bos):
    special = special_tokens(AutoTokenizer.from_pretrained(tiny_llama_bos))
    spelt = special.encode("a<s>", parse=False).ids
    control = special.encode("a<s>", parse=True).ids
    assert special.decode(spelt) == special.decode(control) == "a<s>"
    assert (dict(special.among(spelt)), dict(special.among(control))) == ({}, {"<s>": 1})


def test_saved_prompts_are_what_the_model_was_given(tasks, tiny_llama_bos, capsys):
    assert run_app([*tasks(ANSWER, keep_text=True), "-q"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_bos)
    for cell in Store("run").cells():
        frame = longeval.load("run").samples(cell.cell)
        assert len(frame) == 12 and frame["truncated"].any()
        for sample in Store("run").samples(cell.cell):
            ids = np.array(tokenizer(sample.prompt, add_special_tokens=False)["input_ids"], dtype=np.int32)
            asked = GenerateRequest(prompt_T=ids, max_new_tokens=1, stop=())
            assert digest([asked], settings=False)[:16] == sample.prompt_digest
    assert list(frame["prompt"]) == [sample.prompt for sample in Store("run").samples(cell.cell)]


def test_saved_contexts_with_their_choices(tasks):
    assert run_app([*tasks(CHOICE, keep_text=True, pe="none"), "-q"]) == 0
    sample = Store("run").samples(next(Store("run").cells()).cell)[0]
    ((context, choices),) = sample.prompt
    assert context.startswith("<s>") and context.endswith(" the line reads")
    assert choices == [" report", " model"]


def test_stored_cells_keep_their_id_and_get_prompts_only_if_computed_again(tasks, capsys):
    assert run_app([*tasks(ANSWER), "-q"]) == 0
    before = {cell.cell: Store("run").samples(cell.cell) for cell in Store("run").cells()}
    assert all("prompt" not in frame for frame in (longeval.load("run").samples(cell) for cell in before))
    capsys.readouterr()
    assert run_app(tasks(ANSWER, keep_text=True)) == 0
    err = capsys.readouterr().err
    assert "--keep-text: 2 of 2 stored cells" in err and "0 cells computed, 2 stored already" in err
    assert run_app([*tasks(ANSWER, keep_text=True), "--fresh"]) == 0
    assert "--keep-text" not in capsys.readouterr().err
    after = {cell.cell: Store("run").samples(cell.cell) for cell in Store("run").cells()}
    assert after.keys() == before.keys()
    assert all(sample.prompt for samples in after.values() for sample in samples)


@pytest.mark.parametrize(("number", "named"), [("0", "--show 0"), ("x", "--show 'x'"), ("1.5", "--show '1.5'")])
def test_a_wrong_number_is_refused(ppl, refused, number, named):
    assert named in refused([*ppl(), "--show", number])


def test_a_stored_request_without_prompts_is_refused(refused, here):
    (here / "request.yaml").write_text("command: posgen\npreset: smoke-test\n")
    assert "--show 1: would be ignored, posgen has no prompts" in refused(["run", "request.yaml", "--show", "1"])


def test_the_former_name_of_the_flag_and_of_the_key_still_works(tasks, here):
    assert run_app([*tasks(ANSWER, pe="none"), "--save-prompts", "-q"]) == 0
    (cell,) = Store("run").cells()
    assert all(sample.prompt for sample in Store("run").samples(cell.cell))
    spec = (here / "run" / "spec.yaml").read_text()
    assert "keep_text: true" in spec
    (here / "old.yaml").write_text(spec.replace("keep_text", "save_prompts"))
    assert run_app(["run", "old.yaml", "--out", "again", "-q"]) == 0
    assert all(sample.prompt for sample in Store("again").samples(cell.cell))

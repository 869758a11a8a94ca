"""LongPPL: against perplexity, against transformers, its windows, its resume, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from known import carry_out, log_position, values
from tiny import make_text, save_tiny_llama

from longeval.backends.hf.backend import load_backend
from longeval.errors import LongEvalError
from longeval.report.collect import LONGEVAL_REPORT, collect
from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.stats.bootstrap import interval, paired, resampling_units
from longeval.store.keys import KEY_NLL
from longeval.studies.ppl.keys import LongPpl, key_windows
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.report import sections

CONTEXT, STEP = 8, 4
ALL = {"alpha": -1e9, "beta": -1e9}


@pytest.fixture(scope="module")
def key_model(tmp_path_factory):
    """Another model, with the same tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "key", hidden_size=48, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    """A model whose tokenizer splits texts at other places: fewer merges, and a BOS."""
    from transformers import AutoTokenizer

    folder = save_tiny_llama(
        tmp_path_factory.mktemp("models") / "bytes", bos=True, hidden_size=40, max_position_embeddings=256
    )
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["model"]["merges"] = plain["model"]["merges"][:12]
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    assert len(AutoTokenizer.from_pretrained(folder).encode("the context")) > 7
    return folder


@pytest.fixture
def ask(request_spec, key_model):
    """Makes a request with LongPPL; parameters of it by their names."""

    def make(parameters=(), **changes):
        arguments = {"context": CONTEXT, "step": STEP, "alpha": 0.5, "beta": -8} | dict(parameters)
        fields = {"metric": ("perplexity", "long_ppl"), "key_model": str(key_model), "lengths": (32, 64)}
        return request_spec(**fields | {"metric_args": {"long_ppl": arguments}} | changes)

    return make


def of(result, metric="long_ppl"):
    return [record for record in result.records if record.metric == metric]


def test_windows_give_each_token_the_short_context_or_all_there_is():
    for prefix in (0, 1):
        (whole, *short) = key_windows([30], LongPpl(context=8, step=4), prefix)
        assert (whole.start, whole.stop, whole.score_start) == (0, 30, 1 - prefix)
        context = {}
        for window in short:
            assert window.length <= 12 and window.stop <= 30
            for token in range(window.score_start, window.stop):
                assert token not in context
                context[token] = token - window.start + prefix
        assert sorted(context) == [*range(12 - prefix, 30)]
        assert all(8 <= found < 12 for found in context.values())
        assert {context[token] for token in range(12 - prefix, 28)} == {8, 9, 10, 11}
    assert len(key_windows([12, 2], LongPpl(context=8, step=4), 0)) == 2


@pytest.mark.parametrize("protocol", ["prefix", "sliding"])
def test_where_all_tokens_are_key_tokens_it_is_perplexity(ask, store, protocol):
    stride = None if protocol == "prefix" else 16
    result = carry_out(ask(ALL, pe=("none", "yarn"), protocol=protocol, stride=stride), store)
    plain, long = of(result, "perplexity"), of(result)
    assert len(plain) == len(long) == 4
    for one, other in zip(plain, long, strict=True):
        assert (other.value, other.tokens, other.documents) == (one.value, one.tokens, one.documents)
        assert (one.ci_low is None) == (other.ci_low is None) == (one.length == 32 and protocol == "prefix")
        if one.ci_low is not None:
            assert [other.ci_low, other.ci_high] == pytest.approx([one.ci_low, one.ci_high], rel=1e-12)
        assert other.params["without_keys"] == 0
        assert (other.pe, other.length, other.factor) == (one.pe, one.length, one.factor)


def raw_nll(folder, ids, first):
    """NLLs in float64 of ids[first:], from one pass of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(log_p[place - 1, ids[place]]) for place in range(first, len(ids))]


def reference(evaluated, evaluator, texts, length, alpha, beta):
    """LongPPL in plain loops, from offsets in characters. Returns value, key tokens, documents with any."""
    from transformers import AutoTokenizer

    nlls, documents = [], 0
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (evaluator, evaluated)]
    for text in texts:
        key, own = (tokenizer(text, return_offsets_mapping=True, add_special_tokens=False) for tokenizer in tokenizers)
        fronts = [[0] if len(one.encode("")) else [] for one in tokenizers]
        ids = own["input_ids"][: length - len(fronts[1])]
        if len(ids) < length - len(fronts[1]):
            continue
        end = own["offset_mapping"][len(ids) - 1][1]
        num = next(place for place, offset in enumerate(key["offset_mapping"], 1) if offset[1] >= end)
        # The evaluator: the whole text, then every token with its short context.
        front, key_ids = fronts[0], key["input_ids"][:num]
        first = 0 if front else 1
        long = raw_nll(evaluator, front + key_ids, len(front) + first)
        marked = set()
        for token, nll_long in enumerate(long, first):
            in_window = token + len(front) - CONTEXT
            start = max(0, in_window // STEP * STEP)
            nll_short = raw_nll(evaluator, front + key_ids[start : token + 1], len(front) + token - start)[0]
            if nll_short - nll_long > alpha and nll_long < -beta:
                marked |= {*range(*key["offset_mapping"][token])}
        first = 0 if fronts[1] else 1
        scored = zip(
            own["offset_mapping"][first:], raw_nll(evaluated, fronts[1] + ids, len(fronts[1]) + first), strict=False
        )
        mine = [nll for offset, nll in scored if marked.issuperset(range(*offset))]
        nlls += mine
        documents += bool(mine)
    return math.exp(math.fsum(nlls) / len(nlls)), len(nlls), documents


@pytest.mark.parametrize("which", ["same tokenizer", "evaluator splits more", "evaluated splits more"])
def test_it_is_what_loops_over_raw_log_probabilities_give(
    ask, store, tmp_path, tiny_llama, key_model, other_tokenizer, which
):
    evaluator = other_tokenizer if which == "evaluator splits more" else key_model
    evaluated = other_tokenizer if which == "evaluated splits more" else tiny_llama
    texts = [make_text(24, 5) + " é€ context 𝄞 é€", make_text(30, 6), "𝄞𝄞 " + make_text(20, 7)]
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    asked = {"alpha": 0.5, "beta": -8}
    result = carry_out(
        ask(asked, model=(str(evaluated),), key_model=str(evaluator), data=(str(data),), lengths=(40,)), store
    )
    (record,) = of(result)
    value, tokens, documents = reference(evaluated, evaluator, texts, 40, **asked)
    assert 5 < tokens < 100
    assert (record.tokens, record.documents) == (tokens, documents)
    assert record.value == pytest.approx(value, rel=1e-6)


def test_one_mask_serves_every_method_and_length_and_the_records_say_whose_it_is(ask, store, key_model):
    result = carry_out(ask(pe=("none", "yarn", "resonance_yarn")), store)
    (keys,) = of(result, "key_tokens")
    assert keys.model == str(key_model) and keys.n == keys.documents == 3
    long = of(result)
    assert len(long) == 6 and len({json.dumps(record.params["key"], sort_keys=True) for record in long}) == 1
    about = long[0].params["key"]
    assert (about["model"], about["cell"], about["weights"]) == (str(key_model), keys.cell, keys.params["weights"])
    assert (about["alpha"], about["beta"], about["context"], about["step"]) == (0.5, -8, CONTEXT, STEP)
    masks = {record.cell: store.artefact(KEY_NLL, record.cell).key_S for record in long}
    for length in (32, 64):
        first, *others = [masks[record.cell] for record in long if record.length == length]
        assert first.any() and not first.all() and all(np.array_equal(first, other) for other in others)
    short, longer = (masks[record.cell].reshape(3, -1) for record in long[:2])
    np.testing.assert_array_equal(short, longer[:, :31])


def test_cells_of_perplexity_are_those_of_a_request_without_it(ask, request_spec):
    plain, with_keys = plan_ppl(request_spec(lengths=(32, 64))), plan_ppl(ask())
    assert {cell.id for cell in with_keys.cells} > {cell.id for cell in plain.cells}
    assert len(with_keys.cells) == len(plain.cells) + 1


def test_another_alpha_runs_no_model_and_has_cells_of_its_own(ask, store):
    first = carry_out(ask(), store)

    def no_model(model):
        raise AssertionError("a model was loaded")

    again = run(plan_ppl(ask({"alpha": 1.5})), store, Silent(), load=no_model)
    assert again.computed == 0 and again.reused == 3
    assert {record.cell for record in of(first)}.isdisjoint(record.cell for record in of(again))
    assert [record.tokens for record in of(again)] < [record.tokens for record in of(first)]
    assert of(run(plan_ppl(ask()), store, Silent(), load=no_model)) == of(first)


def test_a_run_that_is_killed_keeps_the_keys(ask, store, key_model):
    class KilledAfterKeys(Silent):
        def finished(self, record):
            if record.metric == "key_tokens":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan_ppl(ask()), store, KilledAfterKeys(), load=load_backend)
    loaded = []

    def load(model):
        loaded.append(model.name)
        return load_backend(model)

    result = run(plan_ppl(ask()), store, Silent(), load=load)
    assert loaded and str(key_model) not in loaded
    assert all(record.value for record in of(result))


def test_documents_without_key_tokens_are_left_out_and_counted(ask, store, tmp_path, tiny_llama):
    """A Z costs less far back in a window than near its start, and one document of three has some."""
    from fake import FakeBackend
    from transformers import AutoTokenizer

    (letter,) = AutoTokenizer.from_pretrained(tiny_llama).encode("Z")
    data = tmp_path / "texts.jsonl"
    texts = [make_text(26, 1) + "ZZZ" + make_text(60, 2), make_text(90, 3), make_text(90, 4)]
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")

    def far(tokens_S, positions_S, table):
        return np.where((tokens_S == letter) & (positions_S > 20), 0.5, 4.0)

    asked = ask({"alpha": 2, "beta": -2}, data=(str(data),), lengths=(16, 64))
    (short, longer) = of(run(plan_ppl(asked), store, Silent(), load=lambda model: FakeBackend(far)))
    assert (short.status, short.value) == ("skipped", None)
    assert (longer.tokens, longer.documents, longer.params["without_keys"]) == (3, 1, 2)
    assert longer.value == pytest.approx(math.exp(0.5))


def test_without_any_key_token_the_record_is_skipped_and_says_why(ask, store):
    result = carry_out(ask({"alpha": 1e6}), store)
    assert [(record.status, record.value) for record in of(result)] == [("skipped", None)] * 2
    assert all("key token" in record.error for record in of(result))
    assert result.failed == 0 and len(of(result, "perplexity")) == 2
    assert of(carry_out(ask({"alpha": 1e6}), store)) == of(result)


def test_a_failed_evaluator_fails_long_ppl_alone(ask, store, key_model):
    from fake import FakeBackend

    def load(model):
        limit = 40 if model.name == str(key_model) else None
        return FakeBackend(log_position, limit)

    result = run(plan_ppl(ask()), store, Silent(), load=load)
    assert {record.status for record in of(result)} == {"failed"}
    assert {record.status for record in of(result, "perplexity")} == {"ok"}


def test_intervals_resample_the_units_of_perplexity_that_have_key_tokens(ask, store):
    first, second = [
        store.artefact(KEY_NLL, record.cell)
        for record in of(carry_out(ask(pe=("none", "ntk"), factor=4.0, lengths=(64,)), store))
    ]
    units = resampling_units(first.nll, "prefix", first.key_S)
    whole = resampling_units(first.nll, "prefix")
    assert units.mean == pytest.approx(first.mean(), rel=1e-12)
    assert units.kind == "block" and (units.denominator_U > 0).all() and len(units) <= len(whole)
    assert units.denominator_U.sum() == first.num_keys
    difference = paired(first.nll, second.nll, "prefix", key_S=first.key_S)
    assert difference.ratio == pytest.approx(math.exp(second.mean() - first.mean()) - 1)
    # The same draws by hand.
    index_RU = np.random.default_rng(0).integers(len(units), size=(2000, len(units)))
    other = resampling_units(second.nll, "prefix", first.key_S)
    total_R = units.denominator_U[index_RU].sum(1)
    change_R = np.expm1((other.numerator_U[index_RU].sum(1) - units.numerator_U[index_RU].sum(1)) / total_R)
    assert [difference.low, difference.high] == pytest.approx(np.quantile(change_R, [0.025, 0.975]))
    drawn = interval(units)
    mean_R = units.numerator_U[index_RU].sum(1) / total_R
    assert [drawn.low, drawn.high] == pytest.approx(np.exp(np.quantile(mean_R, [0.025, 0.975])))


def test_several_models_share_the_keys_of_a_text(ask, store, tiny_llama, other_tokenizer):
    result = carry_out(ask(model=(str(tiny_llama), str(other_tokenizer)), lengths=(64,)), store)
    assert len(of(result, "key_tokens")) == 1
    mine, other = of(result)
    assert mine.params["key"] == other.params["key"] and mine.model != other.model


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"key_model": None}, "--metric"),
        ({"metric": None}, "--key-model"),
        ({"metric": None, "key_model": None}, "--metric-arg"),
        ({"metric": ("rouge",)}, "--metric"),
        ({"protocol": "stream"}, "--metric long_ppl"),
        ({"protocol": "sliding_window_mean"}, "--metric long_ppl"),
        ({"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "dtype": "auto"}, "--metric long_ppl"),
        ({"metric_args": {"long_ppl": {"gamma": 1}}}, "--metric-arg long_ppl.gamma"),
        ({"metric_args": {"long_ppl": {"step": 0}}}, "--metric-arg long_ppl.step"),
        ({"metric_args": {"perplexity": {"step": 4}}}, "--metric-arg perplexity"),
        ({"metric_args": {}}, "--lengths"),
        ({"key_model": "no/such/folder"}, "--key-model"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(ask, store, changes, flag):
    with pytest.raises(LongEvalError) as caught:
        plan_ppl(ask(**changes))
    assert caught.value.problem.startswith(flag) and caught.value.remedy
    assert not store.is_run_folder()


def test_texts_longer_than_the_evaluator_reads_are_refused(ask, tiny_llama):
    plan_ppl(ask(lengths=(64,), key_model=str(tiny_llama)))
    with pytest.raises(LongEvalError, match=r"64 tokens.* 65 of its"):
        plan_ppl(ask(lengths=(65,), key_model=str(tiny_llama)))


def test_a_tokenizer_without_offsets_is_refused(ask, monkeypatch):
    from longeval.data.tokens import TokenisedDocument

    monkeypatch.setattr(TokenisedDocument, "byte_ends", lambda self: None)
    with pytest.raises(LongEvalError, match="tokenizer of --model"):
        plan_ppl(ask())


def test_a_model_that_evaluates_itself_is_told_of(ask, tiny_llama):
    assert any("degenerates" in note for note in plan_ppl(ask(key_model=str(tiny_llama))).notes)
    assert not any("degenerates" in note for note in plan_ppl(ask()).notes)


def test_values_are_those_of_python_flags_and_yaml(ask):
    asked = ask()
    assert type(asked).read(asked.to_mapping()) == asked
    assert type(asked).read({"model": "m", "lengths": "4k", "metric": "long_ppl", "key_model": "k"}).metric == (
        "perplexity",
        "long_ppl",
    )
    plain = type(asked).read({"model": "m", "lengths": "4k", "metric": "perplexity"})
    assert plain == type(asked).read({"model": "m", "lengths": "4k"}) and "metric" not in plain.to_mapping()


def test_perplexities_do_not_change_beside_it(ask, request_spec, store, tmp_path):
    from longeval.store.folder import Store

    with_keys = carry_out(ask(), store)
    assert values(with_keys) == values(carry_out(request_spec(lengths=(32, 64)), Store(str(tmp_path / "plain"))))


def test_reports_show_it_beside_perplexity_with_its_evaluator_and_the_pair(ask, store, key_model):
    import longeval

    result = carry_out(ask(pe=("ntk", "resonance_ntk"), factor=4.0), store)
    results = longeval.load(store.path)
    text = Path(results.report()).read_text()
    section = text.partition("### LongPPL\n")[2].partition("### Perplexity by position")[0]
    assert str(key_model) in section
    rows = [line for line in section.splitlines() if line.startswith(("| `ntk`", "| `resonance_ntk`"))]
    assert sum("vs" in row for row in rows) == 1 and len(rows) == 3
    for record in of(result):
        assert any(f"{record.value:.4g}" in row and f"(n {record.tokens:,})" in row for row in rows)
    base, rounded = (next(r for r in of(result) if (r.pe, r.length) == (pe, 64)) for pe in ("ntk", "resonance_ntk"))
    change = f"{abs(100 * (rounded.value / base.value - 1)):.3g}"
    assert any(change[:3] in row for row in rows if "vs" in row)
    frame = results.frame
    assert frame[frame.metric == "long_ppl"].value.tolist() == [record.value for record in of(result)]


def test_reports_draw_it_by_context_length(ask, store):
    import longeval

    result = carry_out(ask(pe=("ntk", "yarn"), factor=4.0), store)
    (section,) = sections(collect([store.path], LONGEVAL_REPORT))
    (figure,) = [figure for figure in section.figures if figure.name.startswith("long_ppl-")]
    perplexity = section.figures[0]
    assert figure.name.removeprefix("long_ppl-") == perplexity.name.removeprefix("perplexity-")
    assert figure.chart.title != perplexity.chart.title
    ((panel,), (other,)) = figure.chart.panels, perplexity.chart.panels
    assert panel.y.title == "LongPPL" and (panel.x, panel.marks) == (other.x, other.marks)
    for line, of_perplexity in zip(panel.lines, other.lines, strict=True):
        records = [record for record in of(result) if record.pe == line.label]
        assert (line.x, line.y) == ((32, 64), tuple(record.value for record in records))
        assert line.style == of_perplexity.style and line.y != of_perplexity.y
        assert all(f"{record.tokens:,} token" in note for record, note in zip(records, line.notes, strict=True))
    report = Path(longeval.load(store.path).report())
    assert {path.suffix for path in report.parent.glob(f"report_files/{figure.name}.*")} == {".png", ".svg", ".pdf"}
    assert all(f"report_files/{figure.name}" in report.with_suffix(end).read_text() for end in (".md", ".tex"))


def test_no_report_mentions_it_where_it_was_not_asked_for(request_spec, store):
    import longeval

    carry_out(request_spec(lengths=(32, 64)), store)
    assert "LongPPL" not in Path(longeval.load(store.path).report()).read_text()


def test_results_in_python_have_it(ask, tmp_path):
    import longeval

    settings = {name: value for name, value in ask() if value is not None}
    found = longeval.ppl(out=str(tmp_path / "own"), quiet=True, **settings)
    assert found.frame.metric.tolist().count("long_ppl") == 2

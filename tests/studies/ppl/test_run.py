"""From spec to records with a backend whose answers are known, and with a tiny real model."""

from __future__ import annotations

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
from fake import FakeBackend
from known import carry_out, log_position, values
from tiny import make_text, save_tiny_llama
from tokenizers import Tokenizer

from longeval.backends.hf.backend import load_backend
from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.run.engine import run
from longeval.store.folder import Store
from longeval.studies.ppl.plan import plan_ppl


def test_perplexity_is_the_closed_form(request_spec, store):
    result = carry_out(request_spec(), store, FakeBackend(log_position))
    for length in (32, 64, 128):
        # exp(mean of log 2 … log n) over n−1 tokens, the same in every document
        expected = math.exp(math.lgamma(length + 1) / (length - 1))
        assert values(result)["none", length] == pytest.approx(expected, rel=1e-6)
    record = next(r for r in result.records if r.length == 64)
    # Documents of about 400, 60 and 250 words: the second has fewer than 128 tokens.
    assert (record.documents, record.skipped, record.truncated, record.n) == (2, 1, 2, 2)
    assert record.tokens == 2 * 63
    assert record.nll_sum == pytest.approx(2 * math.lgamma(65), rel=1e-6)


def test_bits_per_byte_counts_the_bytes_of_the_scored_tokens(request_spec, store, tiny_llama, documents):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    result = carry_out(request_spec(lengths=(64,)), store, FakeBackend(lambda t, p, _: np.full(len(t), math.log(2))))
    num_bytes = 0
    for text in texts:
        ids = tokenizer(text).input_ids
        if len(ids) >= 64:
            num_bytes += len(tokenizer.decode(ids[1:64]).encode())
    scored = sum(len(tokenizer(text).input_ids) >= 64 for text in texts) * 63
    assert values(result)["none", 64] == pytest.approx(2.0)
    assert values(result, "bits_per_byte")["none", 64] == pytest.approx(scored / num_bytes)


def test_one_pass_a_document_serves_all_lengths_of_a_static_method(request_spec, store):
    backend = FakeBackend(log_position)
    carry_out(request_spec(pe=("yarn", "resonance_yarn")), store, backend)
    assert backend.windows == [(128, 1)] * 4


def test_length_dependent_methods_share_passes_only_where_their_table_is_the_same(request_spec, store):
    backend = FakeBackend(log_position)
    result = carry_out(request_spec(pe=("none", "dynamic_ntk"), lengths=(32, 64, 96, 128)), store, backend)
    # Up to the native 64 tokens dynamic_ntk is none; beyond, each length has its own passes.
    assert sorted(backend.windows) == [(96, 1)] * 2 + [(128, 1)] * 4
    digests = {(r.pe, r.length): r.rope_digest for r in result.records}
    assert digests["none", 64] == digests["dynamic_ntk", 64]
    assert digests["none", 96] != digests["dynamic_ntk", 96]


def test_each_length_can_have_its_own_factor(request_spec, store):
    one = carry_out(request_spec(pe=("yarn", "none")), store, FakeBackend(log_position))
    each = carry_out(request_spec(pe=("yarn", "none"), factor="each"), store, FakeBackend(log_position))
    factors = [{r.length: r.factor for r in result.records if r.pe == "yarn"} for result in (one, each)]
    assert factors == [{32: 2.0, 64: 2.0, 128: 2.0}, {32: 1.0, 64: 1.0, 128: 2.0}]
    assert all(r.factor is None for r in one.records if r.pe == "none")
    assert each.reused == 4  # the three of none, and yarn at 128, where both rules say 2


def test_sliding_protocols_differ_as_they_should(request_spec, store):
    spec = request_spec(lengths=(64,), stride=16, docs=1)
    nll = {}
    for protocol in ("sliding", "sliding_window_mean", "stream"):
        changed = spec.replaced(protocol=protocol)
        result = carry_out(changed, store, FakeBackend(log_position))
        record = result.records[0]
        nll[protocol] = (math.log(record.value), record.tokens, record.n)
    plan = plan_ppl(spec.replaced(protocol="sliding"))
    (num_tokens,) = plan.work[0].corpus.selection.lengths
    # The first window scores positions 1 … 63; later ones 16 tokens at positions 48 … 63, the last one fewer.
    first = [math.log(p + 1) for p in range(1, 64)]
    later, scored = [], 64
    while scored < num_tokens:
        new = min(16, num_tokens - scored)
        later.append([math.log(p + 1) for p in range(48, 48 + new)])
        scored += new
    tokens = first + [value for window in later for value in window]
    assert nll["sliding"] == pytest.approx((sum(tokens) / len(tokens), num_tokens - 1, 1 + len(later)))
    means = [sum(window) / len(window) for window in (first, *later)]
    assert nll["sliding_window_mean"][0] == pytest.approx(sum(means) / len(means))
    num_full = (num_tokens - 64) // 16 + 1
    assert nll["stream"] == pytest.approx((sum(first) / 63, 63 * num_full, num_full))


def test_bos_stands_in_every_window_where_the_tokenizer_adds_it(request_spec, store, tiny_llama_bos):
    windows = []

    class Spy(FakeBackend):
        def score(self, tokens_T, first_scored):
            windows.append((tokens_T.tolist(), first_scored))
            return super().score(tokens_T, first_scored)

    spec = request_spec(model=(str(tiny_llama_bos),), lengths=(64,), docs=1)
    record = carry_out(spec, store, Spy(log_position)).records[0]
    without = carry_out(spec.replaced(bos=False), store, Spy(log_position)).records[0]
    assert record.params["bos"] is True and without.params["bos"] is False
    assert record.cell != without.cell
    (with_bos, first), (plain, first_plain) = windows
    # 63 scored tokens both ways; with BOS (id 0) they are the document's first 63, without its second to 64th.
    assert (len(with_bos), len(plain), first, first_plain) == (64, 64, 1, 1)
    assert with_bos[0] == 0 and with_bos[1:] == plain[:63] and 0 not in plain


def test_a_prefix_of_two_tokens_starts_every_window_and_is_never_scored(request_spec, store, tmp_path):
    windows = []

    class Spy(FakeBackend):
        def score(self, tokens_T, first_scored):
            windows.append((tokens_T.tolist(), first_scored))
            return super().score(tokens_T, first_scored)

    folder = save_tiny_llama(tmp_path / "glm", prefix=("[gMASK]", "<sop>"))
    spec = request_spec(model=(str(folder),), lengths=(64,), docs=1)
    record = carry_out(spec, store, Spy(log_position)).records[0]
    carry_out(spec.replaced(bos=False), store, Spy(log_position))
    (behind, first), (plain, _) = windows
    assert (behind[:2], behind[2:], first) == ([1, 2], plain[:62], 2)
    # The fake's loss of the token at position p is log(p + 1); 2 to 63 are scored.
    assert record.value == pytest.approx(math.exp(sum(map(math.log, range(3, 65))) / 62)) and record.tokens == 62
    assert (record.params["bos"], record.params["prefix"]) == (True, [1, 2])
    windows.clear()
    sliding = spec.replaced(protocol="sliding", stride=16)
    record = carry_out(sliding, store, Spy(log_position)).records[0]
    assert all(tokens[:2] == [1, 2] and first >= 2 for tokens, first in windows) and len(windows) > 2
    assert record.tokens == plan_ppl(sliding).work[0].corpus.selection.lengths[0]
    with pytest.raises(LongEvalError, match="--lengths 2: has no room for a token behind the 2"):
        plan_ppl(spec.replaced(lengths=(2, 64)))


def test_another_bos_token_is_another_cell(request_spec, tmp_path, tiny_llama):
    """What --bos puts in front is named in tokenizer_config.json alone, which the tokenizer's digest doesn't cover."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    ids = {}
    for token in ("<s>", "a"):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": token}))
        for bos in (True, None):
            ids[token, bos] = plan_ppl(request_spec(model=(str(folder),), bos=bos)).cells[0].id
    assert ids["<s>", True] != ids["a", True]
    assert "prefix" not in plan_ppl(request_spec()).cells[0].params


def test_special_tokens_in_documents_are_text_unless_asked(request_spec, store, tmp_path, tiny_llama):
    text = make_text(60).replace("context", "<s>", 3)
    file = tmp_path / "spelt.txt"
    file.write_text(text)
    windows = []

    class Spy(FakeBackend):
        def score(self, tokens_T, first_scored):
            windows.append(tokens_T.tolist())
            return super().score(tokens_T, first_scored)

    spec = request_spec(model=(str(tiny_llama),), data=(str(file),), lengths=(64,))
    parsing = spec.replaced(parse_special=True)
    plain, parsed = (carry_out(one, store, Spy(log_position)).records[0] for one in (spec, parsing))
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    as_stock = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    assert windows == [tokenizer.encode(text).ids[:64], as_stock[:64]] and as_stock.count(0) == 3
    assert plain.cell != parsed.cell and plain.params["data_digest"] != parsed.params["data_digest"]
    assert (plain.params.get("parse_special"), parsed.params["parse_special"]) == (None, True)
    for one, words in ((spec, "read as plain text"), (parsing, "read as control tokens")):
        assert [note for note in plan_ppl(one).notes if "3 times (<s>)" in note and words in note]
    assert not [note for note in plan_ppl(request_spec()).notes if "spell" in note]


def test_documents_cut_short_are_counted_and_whole_ones_not(request_spec, store):
    spec = request_spec(lengths=(64,), docs=2)
    lengths = plan_ppl(spec).work[0].corpus.selection.lengths
    whole = request_spec(lengths=(min(lengths),), docs=2)
    sliding = request_spec(lengths=(64,), docs=2, protocol="sliding", stride=32)
    stream = request_spec(lengths=(64,), docs=2, protocol="stream", stride=64)
    found = [carry_out(each, store, FakeBackend(log_position)).records[0].truncated for each in (spec, sliding, stream)]
    assert found == [2, 0, int(sum(lengths) % 64 != 0)]
    assert lengths[0] != lengths[1]  # the shorter one fills its window exactly
    assert carry_out(whole, store, FakeBackend(log_position)).records[0].truncated == 1


def test_the_digest_is_of_the_cells_length_also_where_the_last_window_is_shorter(request_spec, store):
    sliding = request_spec(pe=("dynamic_ntk",), lengths=(128,), docs=1, protocol="sliding", stride=100)
    prefix = request_spec(pe=("dynamic_ntk",), lengths=(128,), docs=1)
    backend = FakeBackend(log_position)
    digests = [carry_out(spec, store, backend).records[0].rope_digest for spec in (sliding, prefix)]
    assert backend.windows[-2][0] != 128, "the last sliding window should be a shorter one"
    assert digests[0] == digests[1]


def test_stored_cells_are_not_computed_again(request_spec, store):
    carry_out(request_spec(lengths=(32, 64), min_tokens=128), store, FakeBackend(log_position))

    def unexpected(model):
        raise AssertionError("no weights needed")

    again = run(
        plan_ppl(request_spec(lengths=(32, 64), min_tokens=128)), store, RunProgress(quiet=True), load=unexpected
    )
    assert (again.computed, again.reused) == (0, 2)
    backend = FakeBackend(log_position)
    more = carry_out(request_spec(min_tokens=128, pe=("none", "yarn")), store, backend)
    # none at 128 alone, and the three of yarn in one pass: two documents each
    assert (more.computed, more.reused, len(backend.windows)) == (4, 2, 4)
    fresh = carry_out(request_spec(lengths=(32, 64), min_tokens=128), store, FakeBackend(log_position), fresh=True)
    assert (fresh.computed, fresh.reused) == (2, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"pe_args": {"yarn": {"beta_fast": 16}}},
        {"native": 32},
        {"factor": 4.0},
        {"seed": 1},
        {"min_tokens": 256},
        {"bos": True},
        {"protocol": "stream", "stride": 32},
        {"attn": "eager"},
    ],
)
def test_cell_ids_depend_on_what_decides_the_result(request_spec, change):
    before = plan_ppl(request_spec(pe=("yarn",)))
    after = plan_ppl(request_spec(pe=("yarn",), **change))
    assert not {cell.id for cell in before.cells} & {cell.id for cell in after.cells}
    assert [cell.id for cell in plan_ppl(request_spec(pe=("yarn",))).cells] == [cell.id for cell in before.cells]


def test_cell_ids_depend_on_weights_and_texts(request_spec, tiny_llama, documents, tmp_path):
    before = plan_ppl(request_spec())
    documents.write_text(documents.read_text().replace("report", "letter"))
    assert not {cell.id for cell in before.cells} & {cell.id for cell in plan_ppl(request_spec()).cells}
    from tiny import save_tiny_llama

    other = save_tiny_llama(tmp_path / "other", intermediate_size=40)
    digests = [plan_ppl(request_spec(model=(str(path),))).work[0].model.weights_digest for path in (tiny_llama, other)]
    assert digests[0] != digests[1]


def test_aliases_of_one_data_set_are_one(request_spec, store, documents):
    plan = plan_ppl(request_spec(data=(str(documents), str(documents))))
    assert len(plan.work) == 1


def test_requests_with_lists_of_factors_are_written_once(request_spec, store, tmp_path):
    factors = {"short_factor": (1.0,) * 8, "long_factor": (2.0,) * 8}
    spec = request_spec(pe=("longrope",), pe_args={"longrope": factors}, lengths=(128,))
    for _ in range(2):
        carry_out(spec, store, FakeBackend(log_position), fresh=True)
    assert (tmp_path / "run" / "spec.yaml").read_text().count("command: ppl") == 1


def test_attention_auto_is_the_same_as_none_named(request_spec):
    ids = [[cell.id for cell in plan_ppl(request_spec(attn=attn)).cells] for attn in (None, "auto")]
    assert ids[0] == ids[1]


def test_length_dependent_methods_have_no_memory(request_spec, tmp_path):
    spec = request_spec(pe=("dynamic_ntk", "dynamic_yarn"), lengths=(64, 96, 128))
    both = [
        carry_out(spec, Store(str(tmp_path / "a"))),
        carry_out(spec.replaced(pe=("dynamic_yarn", "dynamic_ntk")), Store(str(tmp_path / "b"))),
    ]
    single = {
        (pe, length): carry_out(
            spec.replaced(pe=(pe,), lengths=(length,), min_tokens=128),
            Store(str(tmp_path / f"{pe}{length}")),
        ).records[0]
        for pe in spec.pe
        for length in (128, 64, 96)
    }
    for result in both:
        for record in result.records:
            if record.metric == "perplexity":
                assert record.rope_digest == single[record.pe, record.length].rope_digest
                assert record.value == pytest.approx(single[record.pe, record.length].value, rel=1e-6)


def test_long_then_short_equals_short_then_long_in_one_model(tiny_llama):
    from longeval.models.prepare import prepare
    from longeval.rope.build import parse_method_name

    options = dict.fromkeys(("revision", "native", "bos", "device_map", "attn"))
    model = prepare(str(tiny_llama), **options, dtype="float32", device="cpu", trust_remote_code=False)
    table = model.rope.tables(parse_method_name("dynamic_ntk"), model.geometry, {})
    tokens_T = np.random.default_rng(0).integers(1, 300, 256).astype(np.int32)
    backend = load_backend(model)

    def score(length):
        backend.serve(table(length), length)
        return backend.score(tokens_T[:length], 1)

    long_first = [score(256), score(80)]
    short_first = [score(80), score(256)]
    np.testing.assert_array_equal(long_first[0], short_first[1])
    np.testing.assert_array_equal(long_first[1], short_first[0])


def test_the_request_is_written_once_and_repeatable(request_spec, store, tmp_path):
    carry_out(request_spec(), store, FakeBackend(log_position))
    carry_out(request_spec(), store, FakeBackend(log_position))
    carry_out(request_spec(pe=("yarn",)), store, FakeBackend(log_position))
    text = (tmp_path / "run" / "spec.yaml").read_text()
    assert text.count("command: ppl") == 2


def test_a_request_can_build_on_the_scaling_a_model_came_with(tmp_path, documents, request_spec, store):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    folder = save_tiny_llama(tmp_path / "scaled", rope_parameters=rope)
    plain = request_spec(model=(str(folder),), pe=("none", "pi"), lengths=(128,))
    on_top = plain.replaced(scale_from="shipped")
    records = {}
    for spec in (plain, on_top):
        for record in carry_out(spec, store).records:
            records[spec.scale_from, record.pe] = record
            assert record.params["shipped_rope"] == "linear" and record.params["scale_from"] == spec.scale_from
    positions_T = np.arange(128)
    for (start, name), record in records.items():
        # Both have s = 2 in the request: 128 tokens over the native 64.
        divisor = {"none": 2.0, "pi": 4.0 if start == "shipped" else 2.0}[name]
        angle_TF = positions_T[:, None] * 10000.0 ** (-np.arange(8) / 8) / divisor
        parts = [part(angle_TF).astype(np.float32).tobytes() for part in (np.cos, np.sin)]
        assert record.rope_digest == hashlib.sha256(b"".join(parts)).hexdigest()
    # Another start is another cell, even where it comes to the same table.
    assert len({record.cell for record in records.values()}) == 4


def test_a_run_folder_that_is_removed_meanwhile_is_whole_again(request_spec, store):
    backend = FakeBackend(log_position)
    progress = RunProgress(quiet=True)
    removed = []

    def finished(record):
        if not removed:
            removed.append(record.cell)
            shutil.rmtree(store.path)

    progress.finished = finished
    run(plan_ppl(request_spec()), store, progress, load=lambda _: backend)
    again = Store(store.path, create=False)
    assert "lengths" in again.read_text("spec.yaml")
    assert removed and removed[0] not in {cell.cell for cell in again.cells()}
    assert carry_out(request_spec(), store, FakeBackend(log_position)).computed == 1


def test_the_bos_that_a_tokenizer_adds_itself_is_told_by_its_digest(request_spec, tmp_path):
    folder = save_tiny_llama(tmp_path / "with-bos", bos=True)
    path = folder / "tokenizer.json"
    cells = []
    for number in (0, 7):
        plain = json.loads(path.read_text())
        plain["post_processor"]["special_tokens"]["<s>"]["ids"] = [number]
        path.write_text(json.dumps(plain))
        cells.append(plan_ppl(request_spec(model=(str(folder),), pe=("none",), lengths=(64,))).cells[0])
    assert "prefix" not in cells[0].params and cells[0].params["bos"]
    assert cells[1].params["prefix"] == [7]
    assert cells[0].params["tokenizer"] != cells[1].params["tokenizer"]

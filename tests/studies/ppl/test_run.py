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
from longeval.models.prepare import prepare
from longeval.rope.build import parse_method_name
from longeval.run.engine import run
from longeval.run.host import Silent
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
    found = [ids for ids in (tokenizer(text).input_ids for text in texts) if len(ids) >= 64]
    result = carry_out(request_spec(lengths=(64,)), store, FakeBackend(lambda t, p, _: np.full(len(t), math.log(2))))
    num_bytes = sum(len(tokenizer.decode(ids[1:64]).encode()) for ids in found)
    assert values(result)["none", 64] == pytest.approx(2.0)
    assert values(result, "bits_per_byte")["none", 64] == pytest.approx(63 * len(found) / num_bytes)


def test_one_pass_a_document_serves_all_lengths_of_a_static_method(request_spec, store):
    backend = FakeBackend(log_position)
    carry_out(request_spec(pe=("yarn", "resonance_yarn")), store, backend)
    assert backend.windows == [(128, 1)] * 4
    # Of lengths that are asked for later, a shorter one shares the passes of the longest that is missing.
    more = carry_out(request_spec(pe=("yarn", "none"), lengths=(96, 128), min_tokens=128), store, backend)
    assert (more.computed, more.reused) == (3, 1)
    assert sorted(backend.windows[4:]) == [(96, 1)] * 2 + [(128, 1)] * 2


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
    found = {}
    for protocol in ("sliding", "sliding_window_mean", "stream"):
        record = carry_out(spec.replaced(protocol=protocol), store, FakeBackend(log_position)).records[0]
        found[protocol] = (math.log(record.value), record.tokens, record.n)
    (num_tokens,) = plan_ppl(spec.replaced(protocol="sliding")).work[0].corpus.selection.lengths
    # The first window scores positions 1 … 63; later ones 16 tokens at positions 48 … 63, the last one fewer.
    sizes = [min(16, num_tokens - scored) for scored in range(64, num_tokens, 16)]
    windows = [range(1, 64), *(range(48, 48 + size) for size in sizes)]
    nll = [[math.log(position + 1) for position in window] for window in windows]
    tokens = [value for window in nll for value in window]
    assert found["sliding"] == pytest.approx((np.mean(tokens), num_tokens - 1, len(windows)))
    assert found["sliding_window_mean"][0] == pytest.approx(np.mean([np.mean(window) for window in nll]))
    num_full = (num_tokens - 64) // 16 + 1
    assert found["stream"] == pytest.approx((np.mean(nll[0]), 63 * num_full, num_full))


class Spy(FakeBackend):
    """Remembers (tokens, first scored) of every window."""

    def __init__(self):
        super().__init__(log_position)
        self.heard = []

    def score(self, tokens_T, first_scored):
        self.heard.append((tokens_T.tolist(), first_scored))
        return super().score(tokens_T, first_scored)


@pytest.fixture
def model_with(tmp_path, tiny_llama, tiny_llama_bos):
    """Models whose tokenizers put nothing, BOS (id 0), or two tokens (1 and 2) in front of a text."""
    two = save_tiny_llama(tmp_path / "glm", prefix=("[gMASK]", "<sop>"))
    return {0: (str(tiny_llama),), 1: (str(tiny_llama_bos),), 2: (str(two),)}


@pytest.mark.parametrize(("num_prefix", "prefix"), [(1, [0]), (2, [1, 2])])
def test_what_a_tokenizer_puts_in_front_starts_every_window_and_is_never_scored(
    request_spec, store, model_with, num_prefix, prefix
):
    spec = request_spec(model=model_with[num_prefix], lengths=(64,), docs=1)
    backend = Spy()
    record = carry_out(spec, store, backend).records[0]
    without = carry_out(spec.replaced(bos=False), store, backend).records[0]
    (with_prefix, first), (plain, first_plain) = backend.heard
    assert with_prefix == prefix + plain[: 64 - num_prefix] and not set(prefix) & set(plain)
    assert (first, first_plain) == (num_prefix, 1)
    assert record.cell != without.cell and (record.params["bos"], without.params["bos"]) == (True, False)
    assert record.params.get("prefix") == (prefix if num_prefix > 1 else None)
    # The fake's loss of the token at position p is log(p + 1).
    scored = range(num_prefix, 64)
    assert record.value == pytest.approx(math.exp(np.mean([math.log(p + 1) for p in scored])))
    assert record.tokens == len(scored)
    backend = Spy()
    sliding = spec.replaced(protocol="sliding", stride=16)
    record = carry_out(sliding, store, backend).records[0]
    assert len(backend.heard) > 2
    assert all(tokens[:num_prefix] == prefix and first >= num_prefix for tokens, first in backend.heard)
    assert record.tokens == plan_ppl(sliding).work[0].corpus.selection.lengths[0]


def test_a_window_that_the_prefix_fills_is_refused(request_spec, model_with):
    with pytest.raises(LongEvalError, match="--lengths 2"):
        plan_ppl(request_spec(model=model_with[2], lengths=(2, 64)))


def test_special_tokens_in_documents_are_text_unless_asked(request_spec, store, tmp_path, tiny_llama):
    text = make_text(60).replace("context", "<s>", 3)
    file = tmp_path / "spelt.txt"
    file.write_text(text)
    backend = Spy()
    spec = request_spec(data=(str(file),), lengths=(64,))
    parsing = spec.replaced(parse_special=True)
    plain, parsed = (carry_out(one, store, backend).records[0] for one in (spec, parsing))
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    as_stock = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    as_text = tokenizer.encode(text).ids
    assert [tokens for tokens, _ in backend.heard] == [as_text[:64], as_stock[:64]] and as_stock.count(0) == 3
    assert plain.cell != parsed.cell and plain.params["data_digest"] != parsed.params["data_digest"]
    assert (plain.params.get("parse_special"), parsed.params["parse_special"]) == (None, True)
    for one, words in ((spec, "plain text"), (parsing, "control tokens")):
        assert [note for note in plan_ppl(one).notes if "3 times (<s>)" in note and words in note]
    assert not [note for note in plan_ppl(request_spec()).notes if "<s>" in note]


def test_documents_cut_short_are_counted_and_whole_ones_not(request_spec, store):
    def truncated(**changes):
        return carry_out(request_spec(docs=2, **changes), store, FakeBackend(log_position)).records[0].truncated

    lengths = plan_ppl(request_spec(lengths=(64,), docs=2)).work[0].corpus.selection.lengths
    assert lengths[0] != lengths[1]
    assert truncated(lengths=(64,)) == 2
    assert truncated(lengths=(min(lengths),)) == 1, "the shorter one fills its window exactly"
    assert truncated(lengths=(64,), protocol="sliding", stride=32) == 0
    assert truncated(lengths=(64,), protocol="stream", stride=64) == int(sum(lengths) % 64 != 0)


def test_the_digest_is_of_the_cells_length_also_where_the_last_window_is_shorter(request_spec, store):
    sliding = request_spec(pe=("dynamic_ntk",), lengths=(128,), docs=1, protocol="sliding", stride=100)
    prefix = request_spec(pe=("dynamic_ntk",), lengths=(128,), docs=1)
    backend = FakeBackend(log_position)
    digests = [carry_out(spec, store, backend).records[0].rope_digest for spec in (sliding, prefix)]
    assert backend.windows[-2][0] != 128, "the last sliding window should be a shorter one"
    assert digests[0] == digests[1]


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


def test_cell_ids_depend_on_weights_texts_and_tokenizers(request_spec, tiny_llama, tiny_llama_bos, documents, tmp_path):
    def cell_of(folder, **changes):
        return plan_ppl(request_spec(model=(str(folder),), lengths=(64,), **changes)).cells[0]

    before = cell_of(tiny_llama)
    text = documents.read_text()
    documents.write_text(text.replace("report", "letter"))
    assert cell_of(tiny_llama).id != before.id
    documents.write_text(text)
    assert cell_of(tiny_llama).id == before.id
    other = save_tiny_llama(tmp_path / "other", intermediate_size=40)
    assert cell_of(other).params["weights"] != before.params["weights"]
    # What --bos puts in front is named in tokenizer_config.json alone, which the tokenizer's digest doesn't cover.
    folder = shutil.copytree(tiny_llama, tmp_path / "named")
    with_bos = cell_of(folder, bos=True).id
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "a"}))
    assert cell_of(folder, bos=True).id != with_bos
    # What the tokenizer puts there itself is.
    folder = shutil.copytree(tiny_llama_bos, tmp_path / "own")
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["post_processor"]["special_tokens"]["<s>"]["ids"] = [7]
    path.write_text(json.dumps(plain))
    own, shipped = cell_of(folder), cell_of(tiny_llama_bos)
    assert (shipped.params.get("prefix"), own.params["prefix"]) == (None, [7])
    assert shipped.params["tokenizer"] != own.params["tokenizer"]


def test_attention_auto_and_data_named_twice_make_no_other_cells(request_spec, documents):
    ids = [cell.id for cell in plan_ppl(request_spec()).cells]
    for changes in ({"attn": "auto"}, {"data": (str(documents), str(documents))}):
        assert [cell.id for cell in plan_ppl(request_spec(**changes)).cells] == ids


def test_long_then_short_equals_short_then_long_in_one_model(tiny_llama):
    options = dict.fromkeys(("revision", "native", "bos", "device_map", "attn"))
    model = prepare(str(tiny_llama), **options, dtype="float32", device="cpu", trust_remote_code=False)
    table = model.rope.tables(parse_method_name("dynamic_ntk"), model.geometry, {})
    tokens_T = np.random.default_rng(0).integers(1, 300, 256).astype(np.int32)
    backend = load_backend(model)

    def score(length):
        backend.serve(table(length), length)
        return backend.score(tokens_T[:length], 1)

    long, short, short_again, long_again = (score(length) for length in (256, 80, 80, 256))
    np.testing.assert_array_equal(long, long_again)
    np.testing.assert_array_equal(short, short_again)


def test_a_request_is_written_once_also_with_lists_of_factors(request_spec, store, tmp_path):
    factors = {"short_factor": (1.0,) * 8, "long_factor": (2.0,) * 8}
    longrope = request_spec(pe=("longrope",), pe_args={"longrope": factors}, lengths=(128,))
    for spec in (longrope, longrope, request_spec(lengths=(64,))):
        carry_out(spec, store, FakeBackend(log_position))
    assert (tmp_path / "run" / "spec.yaml").read_text().count("command: ppl") == 2


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


def test_planning_tells_what_it_does(request_spec, tiny_llama, documents):
    told = []

    class Told(Silent):
        def preparing(self, what, done=0, total=0):
            told.append((what, done))

    plan_ppl(request_spec(), Told())
    tokenising = f"{documents}: tokenising documents for {tiny_llama}"
    assert told == [(f"reading {documents}", 0), (f"opening {tiny_llama}", 0), *((tokenising, n) for n in (1, 2, 3))]

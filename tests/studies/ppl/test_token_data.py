"""The data of the page's view of tokens, read back and compared with the texts and token values that are stored."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fake import FakeBackend
from known import carry_out, log_position
from page_views import keys, numbers, token_texts, values

from longeval.report.collect import collect
from longeval.store.keys import KEY_NLL
from longeval.store.texts import path_of
from longeval.studies.ppl.report import sections

HARD = (
    "One 🎉 two e\u0301 three\r\nfour שלום and 你好，世界 \u200d </s><b>\t'five' \U0001f469\u200d\U0001f680 \u0000 "
    + "end; more of the same words here and there, again and again; " * 6
)


@pytest.fixture
def hard(tmp_path):
    """Documents with characters of several tokens, of which the second is much shorter."""
    path = tmp_path / "hard.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (HARD, "short: é 🎉 " * 12, HARD[::-1] * 2)))
    return path


def view_data(store):
    (section,) = sections(collect([store.path]))
    (view,) = section.views
    assert view.kind == "tokens"
    return json.loads(json.dumps(view.load()))


def by_position(tokens_S, positions_S, table):
    """Values that tell tokens, positions and tables apart, some of them above what the stored numbers can hold."""
    return np.where(tokens_S == 7, 70.0, 0.01 * tokens_S + np.log(positions_S + 1.0) + table.inv_freq_F[-1])


@pytest.mark.parametrize("protocol", ["prefix", "sliding", "sliding_window_mean"])
@pytest.mark.parametrize("bos", [False, True])
def test_texts_and_values_are_those_that_are_stored(request_spec, store, hard, tiny_llama, protocol, bos):
    from transformers import AutoTokenizer

    asked = {} if protocol == "prefix" else {"stride": 24}
    changes = {"data": (str(hard),), "pe": ("none", "yarn"), "lengths": (32, 96), "protocol": protocol, "bos": bos}
    carry_out(request_spec(**changes, min_tokens=32, **asked), store, FakeBackend(by_position))
    data = view_data(store)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = [json.loads(line)["text"] for line in hard.read_text().splitlines()]
    nlls = {(c.records[0].pe, c.records[0].length): store.nll(c.cell) for c in store.cells()}
    assert data["methods"] == ["none", "yarn"] and len(data["documents"]) == 3
    for number, document in enumerate(data["documents"]):
        ids = tokenizer(texts[number], add_special_tokens=False, return_offsets_mapping=True)
        assert document["of"] == len(ids["input_ids"])
        assert document["text"] == texts[number][: ids["offset_mapping"][document["tokens"] - 1][1]]
        if protocol != "prefix":
            assert (document["tokens"], document["text"]) == (document["of"], texts[number])
        for text, (start, stop), (_, before) in zip(
            token_texts(document), ids["offset_mapping"], [(0, 0), *ids["offset_mapping"]], strict=False
        ):
            # The first of several tokens that are parts of one character has it, the others have nothing.
            assert text == ("" if stop == before else texts[number][start:stop])
        for place, series in enumerate(document["series"]):
            nll = nlls[data["methods"][series["method"]], series["length"]]
            found, seen = values(document, data["step"], place), 0
            for w in np.flatnonzero(nll.document_W == number):
                for t in range(nll.tokens_W[w]):
                    value, context = found[int(nll.start_W[w]) + t]
                    stored = float(nll.nll_S[nll.offsets_W[w] + t])
                    assert value == pytest.approx(min(stored, 65.535), abs=0.0005001)
                    assert context == nll.context_W[w] + t
                    seen += 1
            assert seen == len(found) > 0
        assert {(one["method"], one["length"]) for one in document["series"]} <= {
            (m, n) for m in (0, 1) for n in (32, 96)
        }
    first = data["documents"][0]["series"]
    assert [one["length"] for one in first] == [96, 96, 32, 32]
    # Under prefix a static table serves both lengths with one pass, so shorter ones hold no values of their own.
    assert [one.get("same") for one in first] == ([None, None, 0, 1] if protocol == "prefix" else [None] * 4)


def test_key_tokens_are_those_of_long_ppl(request_spec, store, tiny_llama):
    changes = {"metric": ("perplexity", "long_ppl"), "key_model": str(tiny_llama), "lengths": (32, 64)}
    args = {"long_ppl": {"context": 16, "step": 8, "alpha": 0.1, "beta": -5.6}}
    carry_out(request_spec(**changes, metric_args=args), store)
    data = view_data(store)
    (stored,) = (
        store.artefact(KEY_NLL, c.cell) for c in store.cells() if c.artefact is KEY_NLL and c.records[0].length == 64
    )
    assert data["keys"] == {"model": str(tiny_llama), "alpha": 0.1, "beta": -5.6, "context": 16, "step": 8}
    assert stored.num_keys > 3
    found = [keys(document)[1:] for document in data["documents"]]
    assert np.concatenate(found).tolist() == stored.key_S.tolist()


def test_what_cannot_be_shown_is_said(request_spec, store, hard):
    carry_out(request_spec(keep_text=False), store, FakeBackend(log_position))
    data = view_data(store)
    assert data["documents"] == [] and "--keep-text" in data["notes"][0]
    carry_out(request_spec(keep_text=True), store, FakeBackend(log_position))
    data = view_data(store)
    assert len(data["documents"]) == 2 and not any("--keep-text" in note for note in data["notes"])
    (name,) = store.names("texts")
    with open(store.local_path("texts", name), "r+b") as file:
        file.seek(200)
        file.write(b"damage")
    data = view_data(store)
    assert data["documents"] == [] and name in data["notes"][0] and "--keep-text" in data["notes"][0]


def test_texts_that_are_not_those_of_the_values_are_not_shown(request_spec, store):
    result = carry_out(request_spec(lengths=(64, 128)), store, FakeBackend(log_position))
    (digest,) = {record.params["data_digest"] for record in result.records}
    texts = store.texts(digest)
    moved = tuple(np.concatenate([ends_T[:1] * 0, ends_T[:-2], ends_T[-1:]]) for ends_T in texts.ends)
    with open(store.local_path(path_of(digest)), "wb") as file:
        file.write(dataclasses.replace(texts, ends=moved).to_bytes())
    data = view_data(store)
    assert data["documents"] == [] and len(data["notes"]) == 2 and all("left out" in note for note in data["notes"])


def test_streams_are_not_shown(request_spec, store):
    carry_out(request_spec(protocol="stream", stride=16, lengths=(64,)), store, FakeBackend(log_position))
    data = view_data(store)
    assert data["documents"] == [] and "stream" in data["notes"][0]


@pytest.mark.parametrize(("most", "shown", "is_cut"), [(10**6, 2, False), (2000, 1, False), (500, 1, True)])
def test_the_size_is_bounded(request_spec, store, monkeypatch, most, shown, is_cut):
    monkeypatch.setattr("longeval.studies.ppl.report.MOST_BYTES", most)
    carry_out(request_spec(pe=("none", "yarn")), store, FakeBackend(by_position))
    data = view_data(store)
    found = data["documents"]
    size = sum(len(x["ends"] + "".join(s.get("nll", "") for s in x["series"]) + x["text"]) for x in found)
    assert size <= most * 1.05 and len(found) == shown
    assert (found[0]["tokens"] < 128) is is_cut
    assert size > most * 0.8 or not is_cut
    told = " ".join(data["notes"])
    assert ("The first 1 of 2 documents" in told) is (shown == 1)
    assert ("very long" in told) is is_cut
    for document in found:
        assert len(numbers(document["ends"])) == document["tokens"] == len(token_texts(document))
        for place in range(len(document["series"])):
            assert (
                max(values(document, data["step"], place))
                == min(document["tokens"], document["series"][place]["length"]) - 1
            )

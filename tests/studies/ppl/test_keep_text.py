"""`--keep-text`: which texts a run folder keeps, and that they are those whose tokens were scored."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fake import FakeBackend
from known import carry_out, log_position

from longeval.studies.ppl import texts as kept_module
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.texts import is_kept


def kept(result, store):
    (digest,) = {record.params["data_digest"] for record in result.records}
    return store.texts(digest)


def test_the_texts_are_those_that_were_scored_each_once_for_all_cells(request_spec, store, documents):
    result = carry_out(request_spec(pe=("none", "yarn")), store, FakeBackend(log_position))
    found = kept(result, store)
    lines = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    assert found.texts == (lines[0], lines[2])  # the second has fewer tokens than the longest length
    assert store.names("texts") == [f"{found.digest}.npz"]
    for record in result.records:
        nll = store.nll(record.cell)
        found.check(nll)
        assert nll.bytes_W[0] == found.ends[0][record.length - 1] - found.ends[0][0]


def test_keeping_text_changes_no_cell_and_no_request(request_spec, store):
    on, off = request_spec(), request_spec(keep_text=False)
    assert [cell.id for cell in plan_ppl(on).cells] == [cell.id for cell in plan_ppl(off).cells]
    assert on.digest() == off.digest() and "keep_text" not in on.to_mapping()


def test_a_run_without_text_gets_it_later_without_the_model(request_spec, store):
    result = carry_out(request_spec(keep_text=False), store, FakeBackend(log_position))
    assert kept(result, store) is None and not store.has("texts")
    backend = FakeBackend(log_position)
    again = carry_out(request_spec(keep_text=True), store, backend)
    assert (again.computed, again.reused, backend.windows) == (0, 3, [])
    assert kept(again, store).check(store.nll(result.records[0].cell)) is None


def test_by_default_texts_of_the_hub_are_not_kept(request_spec):
    (one, *_) = plan_ppl(request_spec()).texts
    source = dataclasses.replace(plan_ppl(request_spec()).work[0].corpus.source, origin="hub OWNER/NAME@0123")
    for keep_text, expected in ((None, False), (True, True), (False, False)):
        assert is_kept(request_spec(keep_text=keep_text), source) is expected
    assert len(one.texts) == 2


@pytest.mark.parametrize(("room", "number"), [(10**6, 2), (3000, 1), (10, 0)])
def test_the_first_documents_are_kept_as_far_as_there_is_room(request_spec, store, monkeypatch, room, number):
    monkeypatch.setattr(kept_module, "MOST_BYTES", room)
    plan = plan_ppl(request_spec())
    sizes = [len(text.text.encode()) for text in plan.texts[0].texts.values()]
    assert 10 < sizes[0] < 3000 and (len(sizes) < 2 or sum(sizes) > 3000)
    result = carry_out(request_spec(), store, FakeBackend(log_position))
    found = kept(result, store)
    assert (0 if found is None else len(found.texts)) == number
    assert any("keeps the text of" in note for note in plan.notes) is (number < 2)

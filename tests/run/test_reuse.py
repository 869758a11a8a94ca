"""A request that grows in the same run folder computes only what is new, and gives what a fresh run gives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fake import FakeBackend
from known import log_position
from own_tasks import ANSWER, CHOICE, write_data, write_task
from tiny import make_text

from longeval.backends.base import capabilities
from longeval.errors import LongEvalError
from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.run.study import find_study
from longeval.store.artefact import artefact_of
from longeval.store.folder import Store
from longeval.studies.ppl.work import PplCell
from longeval.studies.tasks.request import TasksRequest


class Backend(FakeBackend):
    """Knows what its values depend on: tokens, positions, and the table."""

    name = "hf"  # what the cells of a request ask for

    def __init__(self, **options):
        def nll(tokens_S, positions_S, table):
            return log_position(tokens_S, positions_S, table) + tokens_S / 1000 + table.attention_factor

        super().__init__(nll, **options)


class Heard(Silent):
    """Keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@dataclasses.dataclass
class Ran:
    """What a run did."""

    result: object
    backend: Backend
    notes: list

    def taken(self):
        """Windows or samples that were taken from stored cells, in all."""
        by_cell = {record.cell: record.provenance.taken_from or {} for record in self.result.records}
        return sum(sum(counts.values()) for counts in by_cell.values())


def ran(request, store, **options):
    backend = Backend(choice=lambda context_T, tokens_S, _: -float(len(tokens_S)), answer=lambda *_: "report.")
    heard = Heard()
    plan = find_study(request.command).plan(request, Silent())
    result = run(plan, store, heard, load=lambda model: backend, **options)
    return Ran(result, backend, heard.notes)


def outcome(records):
    """Records without where, when and with what they were computed."""
    kept = [dataclasses.asdict(record) for record in records]
    for plain in kept:
        for name in ("provenance", "elapsed_s", "peak_memory_bytes"):
            del plain[name]
    return kept


def assert_as_fresh(grown, request, store, tmp_path):
    """Records and artefacts are those of a run in an empty folder."""
    empty = Store(str(tmp_path / "empty"))
    fresh = ran(request, empty)
    assert outcome(grown.result.records) == outcome(fresh.result.records)
    for record in fresh.result.records:
        own, other = (one.artefact(artefact_of(record), record.cell) for one in (store, empty))
        if isinstance(own, tuple):
            assert own == other
        else:
            for field in dataclasses.fields(own):
                np.testing.assert_array_equal(getattr(own, field.name), getattr(other, field.name))
    return fresh


@pytest.fixture
def many(tmp_path):
    """Four documents, of which the second has fewer than 128 tokens."""
    path = tmp_path / "many.jsonl"
    texts = [make_text(num_words, seed) for seed, num_words in enumerate((400, 60, 250, 300))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize(
    ("settings", "fewer", "more", "passes", "taken"),
    [
        ({"lengths": (64,)}, {"docs": 2}, {"docs": 4}, [(64, 1)] * 2, 2),
        # One pass of the longest window serves all lengths: each needs the documents that are new.
        ({"lengths": (32, 64, 128)}, {"docs": 1}, {"docs": 3}, [(128, 1)] * 2, 3),
        ({"lengths": (64,), "pe": ("none", "dynamic_ntk")}, {"docs": 4}, {"docs": 2}, [], 4),
        ({"lengths": (64,), "protocol": "sliding", "stride": 32}, {"seed": 0}, {"seed": 1}, [], None),
        # Another window's tokens aren't the same, though it begins at the same place of the same document.
        ({"docs": 1}, {"lengths": (64,)}, {"lengths": (96,)}, [(96, 1)], 0),
        ({"docs": 1, "lengths": (64,)}, {"pe": ("pi",)}, {"pe": ("ntk",)}, [(64, 1)], 0),
        ({"docs": 1, "lengths": (64,)}, {"bos": None}, {"min_tokens": 2}, [], 1),
    ],
    ids=["docs", "nested", "fewer", "seed", "length", "method", "min_tokens"],
)
def test_only_windows_that_are_new_are_run(request_spec, store, tmp_path, many, settings, fewer, more, passes, taken):
    base = {"data": (many,), **settings}
    first = ran(request_spec(**base | fewer), store)
    request = request_spec(**base | more)
    grown = ran(request, store)
    assert grown.backend.windows == passes
    assert grown.taken() == (len(first.backend.windows) if taken is None else taken)
    assert_as_fresh(grown, request, store, tmp_path)
    assert ran(request, store).result.computed == 0


def test_the_beginning_of_a_stream_is_the_same_where_documents_follow(request_spec, store, tmp_path, many):
    """Its windows cross documents, so that the last one of fewer documents has no equal."""
    request = request_spec(data=(many,), lengths=(64,), protocol="stream", stride=64, docs=4)
    first = ran(request.replaced(docs=2), store)
    grown = ran(request, store)
    fresh = assert_as_fresh(grown, request, store, tmp_path)
    assert grown.taken() == len(first.backend.windows) > 0
    assert len(grown.backend.windows) == len(fresh.backend.windows) - len(first.backend.windows)


def test_a_changed_document_is_scored_again(request_spec, store, tmp_path, many):
    request = request_spec(data=(many,), lengths=(64,))
    ran(request, store)
    lines = (tmp_path / "many.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"text": make_text(250, 77)})
    (tmp_path / "many.jsonl").write_text("\n".join(lines) + "\n")
    grown = ran(request, store)
    assert (grown.taken(), grown.backend.windows) == (3, [(64, 1)])
    assert_as_fresh(grown, request, store, tmp_path)


def test_fresh_takes_nothing(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64,), docs=4)
    ran(request.replaced(docs=2), store)
    again = ran(request, store, fresh=True)
    assert (again.taken(), len(again.backend.windows), again.notes) == (0, 4, [])


def test_a_cell_of_another_table_gives_nothing(request_spec, store, many):
    """Its parameters are the same, and the model holds another table than its record proves."""
    request = request_spec(data=(many,), lengths=(64,), docs=4)
    (stored,) = {record.cell for record in ran(request.replaced(docs=2), store).result.records}
    nll = store.nll(stored)
    store.save([dataclasses.replace(one, rope_digest="0" * 64) for one in store.load(stored).records], nll)
    grown = ran(request, store)
    assert (grown.taken(), len(grown.backend.windows)) == (0, 4)


def test_a_cell_that_needs_no_pass_is_held_against_the_planned_table_too(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64,), docs=2)
    (stored,) = {record.cell for record in ran(request.replaced(docs=4), store).result.records}
    assert ran(request, Store(store.path)).taken() == 2
    other = Store(store.path + "-other")
    ran(request.replaced(docs=4), other)
    records = [dataclasses.replace(one, rope_digest="0" * 64) for one in other.load(stored).records]
    other.save(records, other.nll(stored))
    assert ran(request, other).taken() == 0


def test_what_is_taken_keeps_the_versions_that_computed_it(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64,), docs=2)
    (stored,) = {record.cell for record in ran(request.replaced(docs=4), store).result.records}
    records = store.load(stored).records
    old = dataclasses.replace(records[0].provenance, commit="old", versions={"torch": "1.0"})
    store.save([dataclasses.replace(one, provenance=old) for one in records], store.nll(stored))
    grown = ran(request, store)
    taken = grown.result.records[0].provenance
    assert (taken.commit, taken.versions, taken.taken_from) == ("old", {"torch": "1.0"}, {stored: 2})
    assert (grown.result.computed, grown.result.taken) == (1, 1)


def test_cells_that_need_no_pass_do_not_fail_with_those_that_do(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64, 128), docs=2, min_tokens=128)
    ran(request.replaced(lengths=(128,), docs=3), store)

    def no_memory(model):
        raise MemoryError("none left")

    plan = find_study("ppl").plan(request, Silent())
    result = run(plan, store, Silent(), load=no_memory)
    assert {record.length: record.status for record in result.records} == {64: "failed", 128: "ok"}


def test_a_record_names_the_batches_that_its_values_came_from(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64,), docs=4, batch_size=1)
    ran(request.replaced(docs=3, batch_size=3), store)
    grown = ran(request, store)
    assert (grown.taken(), grown.result.records[0].params["batch_size"]) == (3, 3)
    fewer = ran(request.replaced(docs=2), store)
    assert (fewer.taken(), fewer.result.records[0].params["batch_size"]) == (2, 3)
    alone = ran(request.replaced(docs=3), Store(store.path + "-alone"))
    assert "batch_size" not in alone.result.records[0].params


def test_nothing_is_taken_that_a_server_answered(request_spec, store, many, monkeypatch):
    request = request_spec(data=(many,), lengths=(64,), docs=4)
    ran(request.replaced(docs=2), store)
    remote = dataclasses.replace(capabilities("hf"), remote=True)
    monkeypatch.setattr("longeval.run.reuse.capabilities", lambda name: remote)
    assert ran(request, store).taken() == 0


def test_a_folder_that_can_only_be_read_is_refused_where_cells_would_be_taken(request_spec, store, many, monkeypatch):
    request = request_spec(data=(many,), lengths=(64,), docs=2)
    ran(request.replaced(docs=4), store)

    def refuse(self):
        raise LongEvalError("--out: can't be written")

    monkeypatch.setattr(Store, "check_writable", refuse)
    with pytest.raises(LongEvalError, match="--out"):
        ran(request, store)


def test_files_of_earlier_versions_are_read_and_give_nothing(request_spec, store, many):
    request = request_spec(data=(many,), lengths=(64,), docs=4)
    (stored,) = {record.cell for record in ran(request.replaced(docs=2), store).result.records}
    old = dataclasses.replace(store.nll(stored), windows_W=None)
    store.save(store.load(stored).records, old)
    assert store.nll(stored).windows_W is None and store.finished(stored) is not None
    assert (ran(request, store).taken(), ran(request.replaced(docs=2), store).result.reused) == (0, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, ["--min-tokens 64", "--factor 1"]), ({"min_tokens": 32, "factor": 1.0}, [])],
    ids=["unset", "given"],
)
def test_a_longer_window_says_why_stored_ones_do_not_serve(request_spec, store, many, given, said):
    """The second document has fewer than 128 tokens, and s follows from the longest length."""
    request = request_spec(data=(many,), pe=("none", "yarn"), docs=2, lengths=(32, 64), **given)
    ran(request, store)
    grown = ran(request.replaced(lengths=(32, 64, 128)), store)
    flags = [flag for flag in ("--min-tokens 64", "--factor 1") if any(flag in note for note in grown.notes)]
    assert flags == said
    # none: the first document's two windows; yarn's table is another one. With both flags all cells are stored.
    assert (grown.taken(), grown.result.reused) == ((2, 0) if not given else (0, 4))


def test_who_asks_for_other_documents_is_not_told_how_to_keep_them(request_spec, store, many):
    request = request_spec(data=(many,), docs=2, lengths=(32, 64))
    ran(request, store)
    grown = ran(request.replaced(min_tokens=128), store)
    assert grown.taken() == 2 and not any("--min-tokens" in note for note in grown.notes)


def task_request(tmp_path, tiny_llama, limit):
    files = tmp_path / "files"
    if not files.exists():
        files.mkdir()
        data = write_data(files, words=(20, 60), questions=2)
        write_task(files, CHOICE, data, "which_word")
        write_task(files, ANSWER, data, "what_word")
    return TasksRequest(
        model=(str(tiny_llama),),
        pe=("none",),
        lengths=(256,),
        tasks=("which_word", "what_word"),
        include=(str(files),),
        dtype="float32",
        limit=limit,
    )


@pytest.mark.parametrize("change", [{"limit": 3}, {"seed": 5}, {"limit": 1}], ids=["more", "seed", "fewer"])
def test_only_samples_that_are_new_are_asked(tiny_llama, store, tmp_path, change):
    small = task_request(tmp_path, tiny_llama, 2)
    first = ran(small, store)
    grown = ran(small.replaced(**change), store)
    fresh = assert_as_fresh(grown, small.replaced(**change), store, tmp_path)
    num_new = max(0, change.get("limit", 2) - 2)
    assert len(grown.backend.asked) == len(fresh.backend.asked) - 2 * (change.get("limit", 2) - num_new)
    assert grown.taken() == 2 * (change.get("limit", 2) - num_new)
    assert len(first.backend.asked) == 4


def test_answers_come_back_from_a_file_as_they_were_given():
    from longeval.store.samples import Sample, samples_from_jsonl, samples_to_jsonl
    from longeval.studies.tasks.answers import _output, _stored

    fields = {"index": 0, "prompt_digest": "a", "tokens": 1, "truncated": False, "cut_tokens": 0, "target": ""}
    for given in (["text"], ["a", "b"], [(-0.1, True), (float("-inf"), False)], [-12.345678901234567]):
        sample = Sample(**fields, output=_output(None, given), scores={}, finish="eos")
        (back,) = samples_from_jsonl(samples_to_jsonl([sample]).encode())
        assert _stored(back) == (given, "eos")


def test_cells_that_differ_in_what_decides_a_window_share_nothing():
    assert not {"stride", "weights", "tokenizer", "attn", "bos", "method"} & set(PplCell.selected_by)

"""The training text: what is read of the sources, how it is cut, and which batches a step sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from longeval.data.documents import Text
from longeval.data.sources import Source
from longeval.data.tokens import tokenise
from longeval.errors import LongEvalError
from longeval.models.prepare import prepare
from longeval.run.host import Silent
from longeval.studies.finetune.augment import E2, Pose, Unaugmented
from longeval.studies.finetune.batch import Span
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.text import Batches, needed_tokens, read_text

BOS, EOS = 0, 7


class Tokenizer:
    """The tiny model's, which has no EOS, with another EOS."""

    def __init__(self, inner, eos_token_id):
        self._inner, self.eos_token_id = inner, eos_token_id

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, *arguments, **options):
        return self._inner(*arguments, **options)


@pytest.fixture(scope="module")
def model(tiny_llama_bos):
    prepared = prepare(str(tiny_llama_bos), dtype="float32", device="cpu")
    return dataclasses.replace(prepared, name="tiny", tokenizer=Tokenizer(prepared.tokenizer, EOS))


@pytest.fixture(scope="module")
def plain_model(model):
    """A model whose tokenizer has neither BOS nor EOS."""
    return dataclasses.replace(model, prefix=(), tokenizer=Tokenizer(model.tokenizer, None))


class Listed:
    """A source of texts that counts how many of them are read."""

    def __init__(self, *texts, name="listed"):
        self.texts, self.num_read = texts, 0
        self.source = Source(name=name, origin="memory", default_docs=None, documents=self._documents)

    def _documents(self):
        for number, text in enumerate(self.texts):
            self.num_read += 1
            yield Text.of_record(f"{self.source.name}#{number}", text)


def request(**changes):
    fields = {"model": ("tiny",), "pe": ("yarn",), "length": 64, "window": 8, "steps": 2, "batch_size": 2}
    return FinetuneRequest(**(fields | changes))


def read(model, *listed, augmentation=None, **changes):
    sources = [each.source for each in listed]
    return read_text(request(**changes), sources, model, augmentation or Unaugmented(), Silent())


def ids(model, text):
    return tokenise(Text(name="", text=text), model.tokenizer, model.tokenizer_digest, None).tokens().tolist()


def words(number, seed):
    return " ".join(np.random.default_rng(seed).choice(["the", "context", "grows", "x7"], number).tolist())


def batches(text, augmentation=None, *, seed=0, span=None, **changes):
    fields = {"augmentation": augmentation or Unaugmented(), "span": span or Span(8, 64, 32), "batch_size": 2}
    return Batches(text=text, seed=seed, **(fields | changes))


def test_documents_are_joined_with_bos_before_and_eos_behind_each(model):
    texts = ["one two three", "four", "five six"]
    text = read(model, Listed(*texts), steps=50)
    whole = [token for each in texts for token in (BOS, *ids(model, each), EOS)]
    assert text.tokens_N.tolist() == whole and text.tokens_N.dtype == np.int32
    assert [document.num_tokens for document in text.documents] == [len(ids(model, each)) + 2 for each in texts]
    assert [whole[start] for start in text.starts_D] == [BOS] * 3


def test_a_tokenizer_without_bos_and_eos_adds_nothing(plain_model):
    text = read(plain_model, Listed("one two three", "four five six"), steps=50)
    assert text.tokens_N.tolist() == ids(plain_model, "one two three") + ids(plain_model, "four five six")


def test_no_more_is_read_than_the_steps_need(model):
    listed = Listed(*(words(40, seed) for seed in range(9)))
    text = read(model, listed)
    assert len(text.tokens_N) == needed_tokens(request(), Unaugmented()) == 2 * 2 * 8
    assert listed.num_read == len(text.documents) == 1
    pose = Listed(*listed.texts)
    assert len(read(model, pose, augmentation=Pose()).tokens_N) == 5 * 32
    assert pose.num_read > 1
    assert len(read(model, Listed(*listed.texts), augmentation=Pose(text=2)).tokens_N) == 2 * 32


def test_no_more_documents_are_read_than_asked_for(model):
    listed = Listed(*(words(20, seed) for seed in range(9)))
    text = read(model, listed, docs=2, steps=500)
    assert len(text.documents) == listed.num_read == 2
    assert len(read(model, Listed(*listed.texts), docs="all", steps=500).documents) == 9


def test_every_source_gives_as_much_even_if_one_document_would_do(model):
    text = read(model, Listed(words(900, 1), name="a"), Listed(words(900, 2), name="b"), steps=10)
    assert [(document.source, document.num_tokens) for document in text.documents] == [("a", 80), ("b", 80)]
    assert text.tokens_N[80:160].tolist() == [BOS, *ids(model, words(900, 2))][:80]


def test_others_give_more_where_a_source_ends(model):
    short, *long = Listed("one", name="a"), Listed(words(900, 1), name="b"), Listed(words(900, 2), name="c")
    text = read(model, short, *long, steps=10)
    given = [document.num_tokens for document in text.documents]
    assert sum(given) == 160 and abs(given[1] - given[2]) <= 1
    assert given[0] == len(ids(model, "one")) + 2
    whole = [BOS, *ids(model, words(900, 1))]
    assert text.tokens_N[given[0] : given[0] + given[1]].tolist() == whole[: given[1]], "no token is left out"


def test_records_without_text_are_left_out(model):
    text = read(model, Listed("", words(50, 1), None))
    assert [document.name for document in text.documents] == ["listed#1"]
    with pytest.raises(LongEvalError, match="--data empty: "):
        read(model, Listed(words(50, 1)), Listed("", None, name="empty"))
    with pytest.raises(LongEvalError, match="--data none: "):
        read(model, Listed(name="none"))


def test_too_little_text_for_one_sequence(model):
    with pytest.raises(LongEvalError, match=r"--data listed: 5 tokens in 1 document, .* 8 tokens"):
        read(model, Listed("the context"), window=8)
    enough = Listed(words(20, 1))
    read(model, enough)
    with pytest.raises(LongEvalError, match=r"40 tokens \(5 windows of 8\).*pose.text"):
        read(model, enough, augmentation=Pose())


def test_the_digest_tells_texts_and_their_order_apart(model):
    def digest(*texts, **changes):
        return read(model, Listed(*texts), **changes).digest

    one = digest("one two three", "four five six", steps=50)
    assert one == digest("one two three", "four five six", steps=60)
    others = [
        digest("four five six", "one two three", steps=50),
        digest("one two three", "four five sic", steps=50),
        digest("one two three", "four five six", steps=1, batch_size=1),
    ]
    assert len({one, *others}) == 4


def test_the_digest_tells_how_documents_start_and_end_and_where_they_are_cut(model):
    def digest(model, **changes):
        return read(model, Listed(words(50, 1)), **({"steps": 50} | changes)).digest

    others = [
        digest(dataclasses.replace(model, prefix=(8,))),
        digest(dataclasses.replace(model, tokenizer=Tokenizer(model.tokenizer, 8))),
        digest(model, steps=1, batch_size=1),
        digest(model, steps=1, batch_size=2),
    ]
    assert len({digest(model), *others}) == 5


def test_what_is_read_twice_is_told(model):
    listed = Listed(words(50, 1))
    enough = read(model, listed)
    assert enough.notes == ()
    text = read(model, Listed(*listed.texts), steps=20)
    pieces = len(text.tokens_N) // 8
    assert any(f" {20 * 2 / pieces:.3g} times" in note for note in text.notes)
    assert any("1 of 2 documents repeat" in note for note in read(model, Listed("a b", "a b"), steps=90).notes)


def test_overlap_finds_texts_that_are_trained_on(model):
    text = read(model, Listed(words(50, 1), words(50, 2), words(50, 3)), steps=6)
    evaluated = [
        tokenise(Text(name=name, text=content), model.tokenizer, model.tokenizer_digest, None)
        for name, content in (("same", words(50, 2)), ("other", words(50, 9)), ("not read", words(50, 3)))
    ]
    assert len(text.documents) == 2
    assert text.overlap(evaluated) == ("same",)


def test_a_pass_reads_every_piece_once_and_each_pass_in_another_order(model):
    text = read(model, Listed(words(300, 1)), steps=9)
    made = batches(text, batch_size=3)
    pieces = {tuple(row) for row in text.tokens_N.reshape(-1, 8).tolist()}
    assert made.num_pieces == 18 == len(pieces)
    passes = []
    for epoch in range(3):
        rows = [tuple(row) for step in range(6) for row in made.batch(6 * epoch + step).tokens_BT.tolist()]
        assert set(rows) == pieces
        passes.append(tuple(rows))
    in_order = tuple(tuple(row) for row in text.tokens_N.reshape(-1, 8).tolist())
    assert len({*passes, in_order}) == 4
    other_seed = [tuple(row) for step in range(6) for row in batches(text, batch_size=3, seed=1).batch(step).tokens_BT]
    assert tuple(map(tuple, np.array(other_seed).tolist())) != passes[0]


def same(one, other):
    fields = ("tokens_BT", "positions_BT", "documents_BT")
    return one.factor == other.factor and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in fields if getattr(one, name) is not None
    )


@pytest.mark.parametrize("augmentation", [Unaugmented(), Pose(text=2), E2(max_factor=5)])
def test_a_batch_depends_on_text_seed_and_step_alone(model, augmentation):
    text = read(model, Listed(words(300, 1)), augmentation=augmentation, steps=9)
    made = batches(text, augmentation)
    forward = [made.batch(step) for step in range(5)]
    again = batches(read(model, Listed(words(300, 1)), augmentation=augmentation, steps=9), augmentation)
    assert all(same(again.batch(step), forward[step]) for step in (4, 0, 2))
    assert not same(forward[0], forward[1])
    assert not same(batches(text, augmentation, seed=1).batch(0), forward[0])


def test_every_sequence_of_every_step_draws_positions_of_its_own(model):
    text = read(model, Listed(words(900, 1)), augmentation=Pose(), steps=4, batch_size=8)
    made = batches(text, Pose(), batch_size=8, span=Span(8, 2**20, 32))
    batch = made.batch(0)
    drawn = [tuple(row) for each in (batch, made.batch(1)) for row in each.positions_BT.tolist()]
    assert len(set(drawn)) == 16
    assert batch.factor is None and batch.documents_BT is None


def test_pose_draws_its_tokens_from_one_piece(model):
    text = read(model, Listed(words(900, 1)), augmentation=Pose(), steps=4)
    batch = batches(text, Pose()).batch(0)
    pieces = text.tokens_N.reshape(-1, 40).tolist()
    for row in batch.tokens_BT.tolist():
        assert any(
            row == piece[:first] + piece[end - 8 + first : end]
            for piece in pieces
            for first in range(1, 5)
            for end in range(8, 41)
        )


def test_e2_draws_one_factor_for_a_step(model):
    text = read(model, Listed(words(900, 1)), steps=40)
    made = batches(text, E2(max_factor=5))
    factors = [made.batch(step).factor for step in range(40)]
    assert set(factors) == {1.0, 2.0, 3.0, 4.0, 5.0}
    for step, factor in enumerate(factors):
        assert made.batch(step).positions_BT.max() < factor * 32


def test_packed_documents_restart_their_positions(model):
    texts = ["one two three", "four", words(40, 1)]
    text = read(model, Listed(*texts), packing="documents", steps=3)
    made = batches(text, packing="documents", batch_size=made_pieces(text))
    batch = made.batch(0)
    starts = text.starts_D.tolist()
    stream = text.tokens_N.tolist()
    for tokens, positions, documents in zip(
        batch.tokens_BT.tolist(), batch.positions_BT.tolist(), batch.documents_BT.tolist(), strict=True
    ):
        start = next(at for at in range(0, len(stream), 8) if stream[at : at + 8] == tokens)
        expected = [max(index for index, own in enumerate(starts) if own <= start + t) for t in range(8)]
        assert documents == expected
        assert positions == [start + t - max(starts[expected[t]], start) for t in range(8)]
    assert np.unique(batch.documents_BT).tolist() == [0, 1, 2]
    assert batches(text).batch(0).documents_BT is None


def made_pieces(text):
    return len(text.tokens_N) // 8


@pytest.mark.parametrize("augmentation", [Pose(), E2()])
def test_packed_documents_can_not_be_augmented(model, augmentation):
    with pytest.raises(LongEvalError, match="--packing documents: "):
        read(model, Listed(words(300, 1)), augmentation=augmentation, packing="documents")
    text = read(model, Listed(words(300, 1)), augmentation=augmentation)
    with pytest.raises(LongEvalError, match="--packing documents: "):
        batches(text, augmentation, packing="documents")

"""The text that a training reads, and the batches that are made of it.

Documents are joined into one stream: the tokenizer's prefix (BOS) in front of each, and its EOS behind each if it has
one, as the published data of Wang et al. 2024 (`pg_books-tokenized-bos-eos`) has them. Several sources give equal
numbers of tokens, one after another; where one ends early, the others give more. The stream is cut into pieces, each of
which gives one sequence; in every pass over the text they come in another random order.

A batch is a pure function of text, seed and step, so that a training resumes without any state of its data, and all
methods see the same sequences with the same positions in the same order.

Shapes: N tokens of the stream, D documents, B sequences of a step, T tokens of a window.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from longeval.cache import cache_dir
from longeval.data.sources import Source
from longeval.data.special import spelt_note
from longeval.data.tokens import TokenisedDocument, tokenise
from longeval.errors import LongEvalError, prefix_errors
from longeval.models.prepare import PreparedModel
from longeval.plain import canonical_json
from longeval.run.overview import count
from longeval.run.study import Tell
from longeval.studies.finetune.augment import Augmentation
from longeval.studies.finetune.batch import Batch, Lengths
from longeval.studies.finetune.request import FinetuneRequest, Packing
from longeval.values import format_length

_FORMAT = "text-1"
"""Part of every digest. Change it when the same documents give another stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadDocument:
    """A document of the stream."""

    source: str
    """The name of its source."""
    name: str
    digest: str
    """See `TokenisedDocument.digest`."""
    num_tokens: int
    """Its tokens in the stream, BOS and EOS included; fewer than it has if it is the last of its source."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingText:
    """A stream of tokens."""

    tokens_N: npt.NDArray[np.int32]
    """Token ids, shape (N,)."""
    documents: tuple[ReadDocument, ...]
    """Its documents in order."""
    digest: str
    """SHA-256 over the documents, their tokens and order."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""

    @property
    def starts_D(self) -> npt.NDArray[np.int64]:
        """The index in the stream of each document's first token, shape (D,)."""
        lengths = [document.num_tokens for document in self.documents]
        return np.cumsum([0, *lengths[:-1]], dtype=np.int64)

    def overlap(self, documents: Iterable[TokenisedDocument]) -> tuple[str, ...]:
        """The names of those documents, tokenised for the same model, whose text is part of this one.

        Only equal texts are found: a digest says nothing of a document that differs in a character.
        """
        read = {document.digest for document in self.documents}
        return tuple(document.name for document in documents if document.digest in read)


def needed_tokens(request: FinetuneRequest, augmentation: Augmentation) -> int:
    """The tokens of text that all steps of a training read if nothing is read twice."""
    return request.steps * request.batch_size * augmentation.piece_tokens(request.window_tokens)


def read_text(
    request: FinetuneRequest, sources: Sequence[Source], model: PreparedModel, augmentation: Augmentation, tell: Tell
) -> TrainingText:
    """Reads as many documents as the steps of a training need, at most `--docs` of each source.

    Args:
        request: The request.
        sources: The sources of `--data`.
        model: The model whose tokenizer and prefix are used.
        augmentation: The augmentation, which decides how much text a sequence takes.
        tell: Hears of progress.

    Returns:
        The stream: exactly the needed tokens, or all that there are.

    Raises:
        LongEvalError: A document can't be read, a source has no text, or all of them are too short for one sequence.
    """
    check_packing(request.packing, augmentation)
    needed, piece = needed_tokens(request, augmentation), augmentation.piece_tokens(request.window_tokens)
    readers = [_Reader(source=source, request=request, model=model, tell=tell) for source in sources]
    missing, open_readers = needed, readers
    while missing and open_readers:
        share = -(-missing // len(open_readers))
        for reader in open_readers:
            missing -= reader.read(min(share, missing))
        open_readers = [reader for reader in open_readers if not reader.at_end]
    found = needed - missing
    documents = tuple(document for reader in readers for document in reader.documents())
    if found < piece:
        raise _too_short(request, readers, augmentation, found)
    decides = [_FORMAT, list(model.prefix), _eos(model), [[each.digest, each.num_tokens] for each in documents]]
    return TrainingText(
        tokens_N=np.concatenate([part for reader in readers for part in reader.parts]),
        documents=documents,
        digest=hashlib.sha256(canonical_json(decides).encode()).hexdigest(),
        notes=(*(note for reader in readers for note in reader.notes()), *_passes_note(needed, found, piece)),
    )


def check_packing(packing: Packing, augmentation: Augmentation) -> None:
    """Raises LongEvalError for positions that restart in each document beside an augmentation that moves them."""
    if packing == "documents" and augmentation.name != "none":
        raise LongEvalError(
            f"--packing documents: positions restart in each document, which --augment {augmentation.name} contradicts",
            "Use --packing continuous, or --augment none.",
        )


def _too_short(
    request: FinetuneRequest, readers: Sequence[_Reader], augmentation: Augmentation, found: int
) -> LongEvalError:
    """The error for sources that together have `found` tokens, which is less than a sequence is drawn from."""
    window, piece = request.window_tokens, augmentation.piece_tokens(request.window_tokens)
    names = ",".join(reader.source.name for reader in readers)
    num_documents = sum(len(reader.parts) for reader in readers)
    windows = "" if piece == window else f" ({piece // window} windows of {format_length(window)})"
    ways = ["longer --data", "a shorter --window"]
    ways += [] if request.docs in (None, "all") else ["more --docs"]
    ways += [] if piece == window else [f"--augment-arg {augmentation.name}.text=1, which draws from one window"]
    return LongEvalError(
        f"--data {names}: {found:,} tokens in {count(num_documents, 'document')}, but a sequence is drawn from "
        f"{piece:,} tokens{windows}",
        f"Give {', or '.join(ways)}.",
    )


def _passes_note(needed: int, found: int, piece: int) -> Iterator[str]:
    """A note if a training reads its text more than once."""
    passes = needed / (found // piece * piece)
    if passes > 1:
        drawn = f"its sequences are drawn from {needed:,} tokens, and the text has {found:,}"
        yield f"training reads the text {passes:.3g} times: {drawn}"


def _eos(model: PreparedModel) -> int | None:
    eos: int | None = model.tokenizer.eos_token_id
    return eos


@dataclass(kw_only=True, eq=False)
class _Reader:
    """Reads one source as far as asked."""

    source: Source
    request: FinetuneRequest
    model: PreparedModel
    tell: Tell
    at_end: bool = False
    parts: list[npt.NDArray[np.int32]] = field(default_factory=list)
    """The tokens of each document; the last may be cut."""

    def __post_init__(self) -> None:
        self._read: list[TokenisedDocument] = []
        self._empty = 0
        self._unread = self._with_text()
        self._rest = np.empty(0, dtype=np.int32)  # what the last document has beyond its part

    def read(self, tokens: int) -> int:
        """Reads so many more tokens, or what is left; returns their number."""
        missing = tokens
        while missing:
            if not len(self._rest):
                document = next(self._unread, None)
                if document is None:
                    self.at_end = True
                    break
                self._read.append(document)
                self._rest = self._framed(document)
                self.parts.append(self._rest[:0])
            taken, self._rest = self._rest[:missing], self._rest[missing:]
            self.parts[-1] = np.concatenate([self.parts[-1], taken])
            missing -= len(taken)
        return tokens - missing

    def documents(self) -> Iterator[ReadDocument]:
        """What was read, in order."""
        for document, part in zip(self._read, self.parts, strict=True):
            yield ReadDocument(
                source=self.source.name, name=document.name, digest=document.digest, num_tokens=len(part)
            )

    def notes(self) -> Iterator[str]:
        """Notes for the user on this source."""
        spelt = sum((Counter(document.spelt) for document in self._read), Counter[str]())
        if spelt:
            yield spelt_note(self.source.name, self.model.name, spelt, parsed=self.request.parse_special)
        if self._empty:
            yield f"{self.source.name}: {count(self._empty, 'document')} without text left out"
        repeated = len(self._read) - len({document.digest for document in self._read})
        if repeated:
            yield f"{self.source.name}: {repeated} of {count(len(self._read), 'document')} repeat another one"

    def _with_text(self) -> Iterator[TokenisedDocument]:
        """Yields the documents that have text, as many as `--docs` allows."""
        found, model = 0, self.model
        with prefix_errors("--data", unless=("--",)):
            for text in self.source.documents():
                what = f"{self.source.name}: tokenising documents for {model.name}"
                self.tell.preparing(what, found + self._empty + 1)
                document = tokenise(
                    text,
                    model.tokenizer,
                    model.tokenizer_digest,
                    cache_dir(),
                    parse_special=self.request.parse_special,
                )
                if not document.num_tokens:
                    self._empty += 1
                    continue
                found += 1
                yield document
                if found == self.request.docs:
                    return
        if not found:
            raise LongEvalError(
                f"--data {self.source.name}: no text in {count(self._empty, 'document')}",
                "Leave it out, or name the field that holds the text with --text-field.",
            )

    def _framed(self, document: TokenisedDocument) -> npt.NDArray[np.int32]:
        """The tokens of a document with the prefix and EOS."""
        eos = _eos(self.model)
        frame = (list(self.model.prefix), [] if eos is None else [eos])
        before, behind = (np.array(ids, dtype=np.int32) for ids in frame)
        tokens_T: npt.NDArray[np.int32] = np.concatenate([before, document.tokens(), behind])
        self.model.check_embedded([tokens_T], f"--data {self.source.name}: {document.name}")
        return tokens_T


_ORDER, _FACTOR, _PLACE = range(3)
"""What random numbers are drawn for."""


def _generator(seed: int, *purpose: int) -> np.random.Generator:
    """A generator of its own for each purpose. Nothing about the method goes into it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_pieces: int) -> npt.NDArray[np.int64]:
    """The order of the pieces in one pass over the text."""
    return _generator(seed, _ORDER, epoch).permutation(num_pieces)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batches:
    """The batches of one training, by step."""

    text: TrainingText
    augmentation: Augmentation
    lengths: Lengths
    seed: int
    batch_size: int
    """B, sequences of a step."""
    packing: Packing = "continuous"

    def __post_init__(self) -> None:
        check_packing(self.packing, self.augmentation)
        assert self.num_pieces >= 1

    @property
    def num_pieces(self) -> int:
        """Pieces of the text. What is left behind the last is not read."""
        return len(self.text.tokens_N) // self.augmentation.piece_tokens(self.lengths.window)

    def batch(self, step: int) -> Batch:
        """The batch of an optimiser step, the first of which is 0; the same whenever it is asked for."""
        factor = self.augmentation.step_factor(_generator(self.seed, _FACTOR, step))
        index_BT, positions_BT = np.empty((2, self.batch_size, self.lengths.window), dtype=np.int64)
        piece_tokens = self.augmentation.piece_tokens(self.lengths.window)
        for row in range(self.batch_size):
            epoch, place = divmod(step * self.batch_size + row, self.num_pieces)
            rng = _generator(self.seed, _PLACE, step, row)
            drawn = self.augmentation.place(rng, piece_tokens, self.lengths, factor)
            start = _order(self.seed, epoch, self.num_pieces)[place] * piece_tokens
            index_BT[row], positions_BT[row] = start + drawn.text_T, drawn.positions_T
        documents_BT = None
        if self.packing == "documents":
            starts_D = self.text.starts_D
            documents_BT = np.searchsorted(starts_D, index_BT, side="right") - 1
            positions_BT = index_BT - np.maximum(starts_D[documents_BT], index_BT[:, :1])
        return Batch(
            tokens_BT=self.text.tokens_N[index_BT].astype(np.int64),
            positions_BT=positions_BT,
            documents_BT=documents_BT,
            factor=factor,
        )

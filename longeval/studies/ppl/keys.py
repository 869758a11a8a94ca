"""LongPPL (Fang et al. 2024, arXiv 2410.23771): key tokens from one evaluator, and perplexity over them.

The evaluator (`--key-model`) reads each document once as a whole and once in short windows. What it says is stored in a
cell of its own, `KeyCell`, and serves every method and length of a study. LongPPL follows from that and from the token
NLLs of a perplexity cell, without a model: another α or β runs none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import capabilities
from longeval.cache import cache_dir
from longeval.data.documents import Text
from longeval.data.sources import Source
from longeval.data.tokens import Selection, TokenisedDocument, tokenise
from longeval.errors import LongEvalError
from longeval.metrics import derived
from longeval.metrics.long_ppl import KEY_TOKENS
from longeval.models.prepare import PreparedModel, prepare_all
from longeval.parameters import ParameterFlag
from longeval.rope.build import parse_method_name
from longeval.run.cell import cell_id
from longeval.run.cost import Window
from longeval.run.setups import dtype_of, setups
from longeval.run.study import Outcome, Tell, failed
from longeval.store.artefact import Artefact
from longeval.store.keys import ALPHA, BETA, KEYS, Keys, byte_starts
from longeval.store.plan import PlannedCell
from longeval.studies.ppl.protocols import PROTOCOLS, Protocol
from longeval.studies.ppl.request import PplRequest
from longeval.studies.ppl.work import DataSet, PplCell, PplWork, Scored, Texts
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPpl:
    """The parameters of LongPPL, `--metric-arg long_ppl.NAME=VALUE`; the defaults are the published ones."""

    alpha: float = ALPHA
    """A key token gains more than this from the long context, nats."""
    beta: float = BETA
    """A key token's log-probability with the long context is above this, nats."""
    context: int = 4096
    """The short context in tokens of the evaluator, which grows from here to `context + step − 1`."""
    step: int = 1024
    """By how many tokens the short window moves."""

    def __post_init__(self) -> None:
        for name in ("context", "step"):
            if getattr(self, name) < 1:
                raise LongEvalError(f"{name}={getattr(self, name)}: must be at least 1", "The paper has 4k and 1k.")


_METRIC_ARG = ParameterFlag(
    flag="--metric-arg",
    names_flag="--metric",
    noun="metric",
    example="long_ppl.alpha=2",
    known=("long_ppl",),
    kind=lambda name: LongPpl,
)


class Evaluated(NamedTuple):
    """A model on a data set, and the cells of which LongPPL is wanted."""

    model: PreparedModel
    corpus: DataSet
    cells: tuple[PplCell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyCell(PplCell):
    """What the evaluator says of the documents of one data set."""

    artefact: ClassVar[Artefact[Any] | None] = KEYS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvaluatorWork(PplWork):
    """The passes of the evaluator over one data set: one of each whole text, and the short windows."""

    def _finished(self, cell: PplCell, scored: Scored, texts: Texts, how: Mapping[str, Any], batch: int) -> Outcome:
        """See `PplWork`: both values of each token, in place of the values of windows."""
        device = how["provenance"].device
        if not all(np.isfinite(nll_S).all() for nll_S in scored.values()):
            return failed(cell, "the evaluator gives token values that are not finite", device)
        keys = _keys(self.corpus.selection, cell.windows, scored)
        if batch > 1 and "batch_size" in capabilities(cell.backend).heeds:
            cell = dataclasses.replace(cell, params=cell.params | {"batch_size": batch})
        common = cell.fields() | {
            "n": len(keys.documents),
            "nll_sum": float(keys.nll_long_S.sum(dtype=np.float64)),
            "tokens": len(keys.nll_long_S),
            "documents": len(keys.documents),
            "status": "ok",
            **how,
        }
        records = [value.record(metric.name, common) for metric, value in derived(KEYS, keys, None, cell.params)]
        return Outcome(records=tuple(records), found=keys, artefact=KEYS)


def _keys(selection: Selection, windows: Sequence[Window], scored: Scored) -> Keys:
    """Puts the values of all windows at their tokens; raises OSError if a document's tokens went away."""
    long, short, ends, first_D = [], [], [], []
    wholes = {window.document: place for place, window in enumerate(windows) if window.start == 0}
    for document, place in wholes.items():
        whole = windows[place]
        nll_short_T = scored[place].copy()
        for other, window in enumerate(windows):
            if window.document == document and other != place:
                begin = window.score_start - whole.score_start
                nll_short_T[begin : begin + window.num_scored] = scored[other]
        ends_T = selection.documents[document].byte_ends()
        assert ends_T is not None  # refused by the plan
        long.append(scored[place])
        short.append(nll_short_T)
        ends.append(ends_T[whole.score_start : whole.stop])
        first_D.append(int(byte_starts(ends_T)[whole.score_start]) if whole.score_start else 0)
    return Keys(
        nll_long_S=np.concatenate(long),
        nll_short_S=np.concatenate(short),
        ends_S=np.concatenate(ends),
        tokens_D=np.array([len(nll_S) for nll_S in long], dtype=np.int32),
        first_D=np.array(first_D, dtype=np.int64),
        documents=tuple(selection.documents[document].name for document in wholes),
    )


def key_windows(lengths: Sequence[int], asked: LongPpl, prefix: int) -> list[Window]:
    """The evaluator's windows: each whole text, then those with the short context.

    A short window has `context + step` tokens, prefix included, and scores the last `step` of them. The first of these
    is predicted from `context` tokens, the last from `context + step − 1`. The first `context + step` tokens of a text,
    prefix included, need no short window: in the whole text, too, they have no more context than that.

    Args:
        lengths: Tokens of each text, at least 1, and 2 without a prefix.
        asked: The parameters.
        prefix: Number of tokens in front of each window, fewer than `context`.
    """
    first, payload = 0 if prefix else 1, asked.context + asked.step - prefix
    wholes = [
        Window(document=document, start=0, stop=length, score_start=first, prefix=prefix)
        for document, length in enumerate(lengths)
    ]
    shorts = [
        Window(
            document=document,
            start=stop - payload,
            stop=min(stop, length),
            score_start=stop - asked.step,
            prefix=prefix,
        )
        for document, length in enumerate(lengths)
        for stop in range(payload + asked.step, length + asked.step, asked.step)
    ]
    return [*wholes, *shorts]


def asked_long_ppl(request: PplRequest, protocol: Protocol) -> LongPpl | None:
    """The parameters of LongPPL, or None where it isn't asked for.

    Raises:
        LongEvalError: A parameter is unknown or impossible, or the request can't have LongPPL.
    """
    if request.key_model is None:
        return None
    for name in request.metric_args:
        if name != "long_ppl":
            raise LongEvalError(f"--metric-arg {name}.…: {name} has no parameters", "Only long_ppl has some.")
    asked: LongPpl = _METRIC_ARG.make("long_ppl", request.metric_args.get("long_ppl", {}))
    if protocol.joined or protocol.name == "sliding_window_mean":
        why = "crosses documents" if protocol.joined else "takes means of windows"
        raise LongEvalError(
            f"--metric long_ppl: --protocol {protocol.name} {why}, and LongPPL is a mean over tokens of documents",
            "Use --protocol prefix or sliding.",
        )
    if capabilities(request.backend).remote:
        raise LongEvalError(
            f"--metric long_ppl: --backend {request.backend} has one model, and key tokens need another",
            "Use --backend hf or vllm.",
        )
    if asked.alpha >= 0 and request.protocol == "prefix" and request.lengths[-1] <= asked.context:
        raise LongEvalError(
            f"--lengths {format_length(request.lengths[-1])}: no token has more than the short context of "
            f"{format_length(asked.context)}, so none can be a key token",
            "Ask for longer --lengths, or a smaller --metric-arg long_ppl.context.",
        )
    return asked


def prepare_key_model(request: PplRequest, told: Callable[[str], None], *, dry_run: bool) -> PreparedModel:
    """Prepares the evaluator, under its own rope and with the precision and device of the request.

    Raises:
        LongEvalError: It can't be used.
    """
    try:
        (model,) = prepare_all(_of_key_model(request), capabilities(request.backend), told, dry_run=dry_run)
    except LongEvalError as error:
        problem = error.problem.removeprefix("--model ")
        problem = problem if problem.startswith("--") else f"--key-model {problem}"
        raise LongEvalError(problem, error.remedy) from error
    return model


def _of_key_model(request: PplRequest, longest: int | None = None) -> PplRequest:
    """The request of the evaluator: `none` in place of methods, and without settings of the evaluated models."""
    own = ("pe_args", "factor", "bos", "native", "scale_from", "layers", "pin_length", "revision", "adapter")
    assert request.key_model is not None
    return request.replaced(
        model=(request.key_model,),
        pe=("none",),
        lengths=request.lengths if longest is None else (longest,),
        metric=None,
        key_model=None,
        metric_args={},
        **{name: request.default(name) for name in own},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPplCell:
    """LongPPL of one perplexity cell."""

    id: str
    of: PplCell
    """The perplexity cell."""
    corpus: DataSet
    """What that scores."""
    keys: KeyCell
    """The evaluator's cell."""
    places: Mapping[str, int]
    """Digest of a document of the corpus → its place in `Keys.documents`."""
    asked: LongPpl

    def planned(self) -> PlannedCell:
        """The cell's entry in the stored plan."""
        return dataclasses.replace(self.of.planned(), cell=self.id)


class KeyPlan(NamedTuple):
    """What LongPPL adds to a plan."""

    work: list[EvaluatorWork]
    cells: list[LongPplCell]
    notes: list[str]


def plan_keys(
    request: PplRequest, asked: LongPpl, key_model: PreparedModel, evaluated: Sequence[Evaluated], tell: Tell
) -> KeyPlan:
    """Plans the passes of the evaluator over all texts that are scored, and LongPPL of each perplexity cell.

    Raises:
        LongEvalError: The texts are too long for the evaluator, or a tokenizer gives no offsets.
    """
    prefix = len(key_model.prefix)
    if asked.context <= prefix:
        raise LongEvalError(
            f"--metric-arg long_ppl.context={asked.context}: has no room for a token behind the {prefix} that the "
            f"tokenizer of {key_model.name} puts in front of a text",
            f"Ask for {prefix + 1} or more.",
        )
    work: list[EvaluatorWork] = []
    cells: list[LongPplCell] = []
    for name in dict.fromkeys(one.corpus.source.name for one in evaluated):
        own = [one for one in evaluated if one.corpus.source.name == name]
        texts = _scored_texts(own)
        documents: list[TokenisedDocument] = []
        for document, _ in texts.values():
            tell.preparing(f"{name}: tokenising documents for {key_model.name}", len(documents) + 1, len(texts))
            documents.append(
                tokenise(
                    document,
                    key_model.tokenizer,
                    key_model.tokenizer_digest,
                    cache_dir(),
                    parse_special=request.parse_special,
                )
            )
        lengths = [
            _num_tokens(tokens, num_bytes, key_model)
            for tokens, (_, num_bytes) in zip(documents, texts.values(), strict=True)
        ]
        # A text of one token has nothing to predict.
        kept = [place for place, length in enumerate(lengths) if length + prefix >= 2]
        if not kept:
            continue
        _check_reach(key_model, name, max(lengths) + prefix)
        chosen = [documents[place] for place in kept]
        one = _key_work(request, asked, key_model, own[0].corpus.source, chosen, [lengths[place] for place in kept])
        names = [*texts]
        order = {names[index]: place for place, index in enumerate(kept)}
        work.append(one)
        cells += [_long_ppl_cell(cell, on_data, one, order, asked) for on_data in own for cell in on_data.cells]
    return KeyPlan(work, cells, _notes(key_model, evaluated))


def _notes(key_model: PreparedModel, evaluated: Sequence[Evaluated]) -> list[str]:
    """What a user should know of the evaluator."""
    same = {one.model.name for one in evaluated if one.model.weights_digest == key_model.weights_digest}
    notes = [note for note in key_model.notes if key_model.name not in {one.model.name for one in evaluated}]
    notes += [
        f"--key-model {key_model.name}: has the weights of --model {name}. LongPPL degenerates where a model chooses "
        "its own key tokens (Fang et al. 2024): take a strong other model for comparisons"
        for name in sorted(same)
    ]
    return notes


def _scored_texts(evaluated: Sequence[Evaluated]) -> dict[str, tuple[Text, int]]:
    """The texts that models score, each once, with the bytes up to the last scored token of any of them."""
    texts: dict[str, tuple[Text, int]] = {}
    for one in evaluated:
        stops: dict[int, int] = {}
        for window in (window for cell in one.cells for window in cell.windows):
            stops[window.document] = max(window.stop, stops.get(window.document, 0))
        for document, stop in sorted(stops.items()):
            found = one.corpus.selection.documents[document]
            ends_T = _byte_ends(found, f"--model {one.model.name}")
            text = one.corpus.texts[found.digest]
            known, num_bytes = texts.get(text.text, (text, 0))
            texts[text.text] = known, max(num_bytes, int(ends_T[stop - 1]))
    return texts


def _byte_ends(document: TokenisedDocument, whose: str) -> npt.NDArray[np.int64]:
    """The byte ends of a document's tokens; raises LongEvalError if the tokenizer can't tell."""
    ends_T = document.byte_ends()
    if ends_T is None:
        raise LongEvalError(
            f"--metric long_ppl: the tokenizer of {whose} doesn't say where its tokens lie in a text, so key tokens of "
            "another tokenizer can't be found among them",
            "Use a model with a fast tokenizer (tokenizer.json).",
        )
    return ends_T


def _num_tokens(document: TokenisedDocument, num_bytes: int, key_model: PreparedModel) -> int:
    """How many tokens of the evaluator cover the first bytes of a document."""
    ends_T = _byte_ends(document, f"--key-model {key_model.name}")
    if key_model.unembedded:
        key_model.check_embedded([document.tokens()], f"--data {document.name}")
    last = min(int(np.searchsorted(ends_T, num_bytes)), len(ends_T) - 1)
    return int(np.searchsorted(ends_T, ends_T[last], side="right"))


def _check_reach(key_model: PreparedModel, data: str, longest: int) -> None:
    """Raises LongEvalError if texts are longer than what the evaluator reads as it comes."""
    reach = max(key_model.native_length, key_model.rope.shipped.reach)
    if longest > reach:
        raise LongEvalError(
            f"--key-model {key_model.name}: reads {reach} tokens, and the longest text of {data} that is scored has "
            f"{longest} of its tokens",
            "Ask for shorter --lengths under --protocol prefix, or take a key model with a longer context.",
        )


def _key_work(
    request: PplRequest,
    asked: LongPpl,
    model: PreparedModel,
    source: Source,
    documents: Sequence[TokenisedDocument],
    lengths: Sequence[int],
) -> EvaluatorWork:
    """The work of the evaluator on the first tokens of some documents."""
    digests = [f"{document.digest} {length}" for document, length in zip(documents, lengths, strict=True)]
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    windows = tuple(key_windows(lengths, asked, len(model.prefix)))
    longest = max(window.length for window in windows)
    (setup,) = setups(_of_key_model(request, longest), model, [parse_method_name("none")])
    params = {name: value for name, value in setup.params.items() if name != "seed"} | {
        "context": asked.context,
        "step": asked.step,
        "data_digest": digest,
        "data_origin": source.origin,
    }
    fields: dict[str, Any] = {
        "model": model.name,
        "factor": None,
        "length": longest,
        "data": source.name,
        "backend": request.backend,
        "dtype": dtype_of(request, model),
    }
    cell = KeyCell(
        id=cell_id("ppl_keys", fields | {"pe": "none"}, params),
        pe=setup.pe,
        params=params,
        windows=windows,
        truncated=sum(length < one.num_tokens for one, length in zip(documents, lengths, strict=True)),
        metric=KEY_TOKENS.name,
        skipped=0,
        **fields,
    )
    selection = Selection(
        documents=tuple(documents),
        skipped=0,
        without_text=0,
        longest_tokens=max(one.num_tokens for one in documents),
        identical=0,
        digest=digest,
    )
    return EvaluatorWork(
        cells=(cell,),
        model=model,
        corpus=DataSet(source=source, selection=selection, min_tokens=1),
        protocol=PROTOCOLS["prefix"],
        table=setup.table,
        static=setup.static,
    )


def _long_ppl_cell(
    cell: PplCell, evaluated: Evaluated, work: EvaluatorWork, order: Mapping[str, int], asked: LongPpl
) -> LongPplCell:
    """LongPPL of a perplexity cell. `order`: text → its place among the evaluator's documents."""
    (keys,) = work.cells
    assert isinstance(keys, KeyCell)
    decides = {"perplexity": cell.id, "keys": keys.id, "alpha": asked.alpha, "beta": asked.beta}
    return LongPplCell(
        id=cell_id("long_ppl", decides, {}),
        of=cell,
        corpus=evaluated.corpus,
        keys=keys,
        places={digest: order[text.text] for digest, text in evaluated.corpus.texts.items() if text.text in order},
        asked=asked,
    )

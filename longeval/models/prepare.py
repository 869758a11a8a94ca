"""A model as a plan needs it: everything about it except its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longeval.data.special import own_prefix, prefix_ids
from longeval.data.tokens import tokenizer_digest
from longeval.errors import LongEvalError
from longeval.models import load
from longeval.models.device import resolve_attention, resolve_device, resolve_device_map, resolve_dtype
from longeval.models.quantisation import Quantisation
from longeval.models.resolve import ModelRef, resolve, tokenizer_files, weights_digest
from longeval.models.scaling import ModelRope, model_rope
from longeval.models.tokenizer import tokenizer_notes
from longeval.request import ModelRequest
from longeval.rope.base import Geometry
from longeval.values import quantization_text

if TYPE_CHECKING:
    from longeval.backends.base import Capabilities


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedModel:
    """Configuration, tokenizer and identity of a model; `load` brings the weights."""

    name: str
    """As the user named it."""
    ref: ModelRef
    config: Any
    """transformers' PreTrainedConfig."""
    tokenizer: Any
    """transformers' tokenizer."""
    tokenizer_digest: str
    weights_digest: str
    prefix: tuple[int, ...]
    """Token ids that every window starts with: BOS, or whatever else the tokenizer puts in front of a text."""
    rope: ModelRope
    """Its position encoding: where methods start, and the scaling that it came with."""
    dtype: str
    """What the model computes in."""
    device: str
    device_map: str | None
    attn: str | None
    """Attention implementation of transformers; None: the model's default, or a backend that has its own."""
    trust_remote_code: bool
    quantisation: Quantisation | None = None
    """How the weights are quantised; None where they aren't, or a server has them."""
    unembedded: Mapping[int, str] = field(default_factory=dict)
    """Tokens that the tokenizer has and the model's embedding hasn't, by id: those that were added for padding, say."""

    @property
    def bos(self) -> bool:
        """Whether windows start with a prefix."""
        return bool(self.prefix)

    @property
    def has_usual_prefix(self) -> bool:
        """Whether windows start with nothing, or with the one BOS that the tokenizer's digest already tells of."""
        own = self.prefix == (self.tokenizer.bos_token_id,) and self.prefix == own_prefix(self.tokenizer)
        return not self.prefix or (own and bool(getattr(self.tokenizer, "is_fast", False)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        notes = (*self.rope.notes, *(f"{self.name}: {note}" for note in tokenizer_notes(self.tokenizer)))
        if self.quantisation is not None:
            notes = (*notes, f"{self.name}: weights are quantised: {quantization_text(self.quantisation.params)}")
        if _soft_cap(self.config) is None or self.attn != "eager":
            return notes
        capped = (
            f"{self.name} caps its attention logits softly: attention is eager, whose memory grows with the square of "
            "the length (--attn flex_attention or, on a GPU, flash_attention_2 need less; sdpa would leave the cap out)"
        )
        return (*notes, capped)

    @property
    def geometry(self) -> Geometry:
        """What methods start from, at factor 1."""
        return self.rope.geometry

    @property
    def native_length(self) -> int:
        """The native length L in tokens."""
        return self.geometry.native_length

    def check_embedded(self, inputs: Iterable[npt.NDArray[np.int32]], what: str) -> None:
        """Raises LongEvalError if token ids of `what` have no row in the model's embedding."""
        if not self.unembedded:
            return
        for tokens_T in inputs:
            for token in self.unembedded.keys() & set(tokens_T.tolist()):
                raise LongEvalError(
                    f"--model {self.name}: {what} holds the token {self.unembedded[token]!r} ({token}), and the "
                    f"model's embedding has {self.config.get_text_config().vocab_size} rows",
                    "The tokenizer is another model's, or got tokens that the model never learned.",
                )

    def load(self) -> Any:
        """Loads the weights: a transformers model in eval mode."""
        return load.load_model(
            self.ref,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            attn=self.attn,
            trust_remote_code=self.trust_remote_code,
        )

    def generation_settings(self) -> Any:
        """The GenerationConfig of transformers: the model's own file, or what its configuration implies."""
        return load.load_generation_settings(self.ref, self.config)


def prepare_all(
    spec: ModelRequest, backend: Capabilities, told: Callable[[str], None], *, dry_run: bool = False
) -> list[PreparedModel]:
    """Prepares the models of a request for its backend; with `dry_run` none of their own code runs.

    `told` hears what is being done.
    """
    models = []
    for name in spec.model:
        told(f"opening {name}")
        model = prepare(
            name,
            revision=spec.revision,
            native=spec.native,
            scale_from=spec.scale_from,
            layers=spec.layers,
            bos=spec.bos,
            dtype=spec.dtype,
            device=spec.device,
            device_map=spec.device_map,
            attn=spec.attn,
            trust_remote_code=spec.trust_remote_code,
            backend=backend,
            dry_run=dry_run,
        )
        models.append(model)
    return models


def prepare(
    name: str,
    *,
    revision: str | None = None,
    native: int | None = None,
    scale_from: str = "plain",
    layers: str = "global",
    bos: bool | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
    backend: Capabilities | None = None,
    dry_run: bool = False,
) -> PreparedModel:
    """Finds a model, reads its configuration and tokenizer; for the errors see `models.load` and `models.scaling`.

    With a `backend`, a model that this backend can't run as transformers does is an error too. With `dry_run`, code of
    the model's own doesn't run even where it is trusted.
    """
    remote = backend is not None and backend.remote
    runs_code = trust_remote_code and not dry_run
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    attn = resolve_attention(attn, device)
    device_map = resolve_device_map(device_map)
    ref = resolve(name, revision=revision)
    with _needing_code(withheld=trust_remote_code and dry_run):
        config = load.load_config(ref, trust_remote_code=runs_code)
        if backend is not None:
            backend.check_config(name, config)
        if backend is None or backend.transformers_attention:  # others have attention of their own, with the cap
            attn = _with_soft_cap(name, config, attn)
        rope = model_rope(name, config, native=native, scale_from=scale_from, layers=layers)
        quantisation = None
        if not remote:  # a server has weights of its own
            own_quantised = backend is not None and backend.own_quantised_weights
            load.check_weights(ref, config, own_quantised=own_quantised)
            quantisation, dtype = load.set_up_quantisation(
                ref, config, dtype=dtype, device=device, device_map=device_map, own_quantised=own_quantised
            )
            load.load_generation_settings(ref, config)  # so that all models are checked first
        tokenizer = load.load_tokenizer(ref, trust_remote_code=runs_code)
    if trust_remote_code and dry_run:
        load.tell_code(ref, "would run (not in a dry run)")
    prepared = PreparedModel(
        name=ref.name,
        ref=ref,
        config=config,
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(tokenizer, partial(tokenizer_files, ref)),
        weights_digest=weights_digest(ref),
        prefix=_prefix(name, tokenizer, bos),
        rope=rope,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn=attn,
        trust_remote_code=runs_code,
        quantisation=quantisation,
        unembedded={} if remote else _unembedded(name, tokenizer, config),
    )
    prepared.check_embedded([np.array(prepared.prefix, dtype=np.int32)], "what its windows start with")
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and max(prepared.prefix, default=0) >= rows:  # an id that the vocabulary doesn't know either
        raise LongEvalError(
            f"--model {name}: windows start with the token {max(prepared.prefix)}, and its embedding has {rows} rows",
            "Correct the post_processor in its tokenizer.json, or use --no-bos.",
        )
    return prepared


@contextlib.contextmanager
def _needing_code(*, withheld: bool) -> Iterator[None]:
    """Gives the error for a model that needs its own code a fitting remedy where that is trusted, but may not run."""
    try:
        yield
    except load.CodeError as error:
        if not withheld:
            raise
        remedy = f"Its plan needs {error.code}, which a dry run doesn't run: leave --dry-run out."
        raise LongEvalError(error.problem, remedy) from error


def _unembedded(name: str, tokenizer: Any, config: Any) -> dict[int, str]:
    """Tokens without a row in the model's embedding.

    Models exist whose padding token was added beyond it; that does no harm until a text has it. A vocabulary that is
    itself larger is another model's.

    Raises:
        LongEvalError: If the vocabulary, without added tokens, is larger than the embedding.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return {}
    beyond = {int(index): token for token, index in tokenizer.get_vocab().items() if index >= rows}
    own = beyond.keys() - tokenizer.added_tokens_decoder.keys()
    if own:
        raise LongEvalError(
            f"--model {name}: its tokenizer has a vocabulary of {max(own) + 1} tokens, and its embedding {rows} rows "
            "(vocab_size)",
            "The tokenizer is another model's, or config.json was edited.",
        )
    return beyond


def _soft_cap(config: Any) -> float | None:
    """The bound of a model's attention logits (Gemma 2), None where it has none."""
    cap: float | None = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return cap


def _with_soft_cap(name: str, config: Any, attn: str | None) -> str | None:
    """The attention implementation; eager by default where logits are capped, which SDPA can't do.

    transformers takes SDPA for such models as well and says nothing; Gemma 2 is then another model.
    """
    if _soft_cap(config) is None:
        return attn
    if attn == "sdpa":
        raise LongEvalError(
            f"--attn sdpa: leaves out the soft cap of the attention logits of {name}",
            "Leave --attn out, or use eager, flex_attention or flash_attention_2.",
        )
    return attn or "eager"


def _prefix(name: str, tokenizer: Any, asked: bool | None) -> tuple[int, ...]:
    """What windows start with: as asked, else what the tokenizer itself would put there."""
    if asked is None:
        return own_prefix(tokenizer)
    prefix = prefix_ids(tokenizer) if asked else ()
    if asked and not prefix:
        raise LongEvalError(f"--bos: the tokenizer of {name} has no BOS token", "Leave --bos out.")
    return prefix

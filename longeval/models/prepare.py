"""Prepares a model for a plan: its configuration, tokenizer, identity and position encoding, without its weights."""

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
from longeval.models.adapter import base_note
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
    """Configuration, tokenizer and identity of a model; `load` loads its weights."""

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
    """Token ids that every window starts with: BOS, or all tokens that the tokenizer puts before a text."""
    rope: ModelRope
    """Its position encoding, with the scaling that it comes with."""
    dtype: str
    """What the model computes in."""
    device: str
    device_map: str | None
    attn: str | None
    """Attention implementation of transformers; None: transformers' default, or a backend with its own attention."""
    trust_remote_code: bool
    quantisation: Quantisation | None = None
    """How the weights are quantised; None where they aren't, or a server has them."""
    unembedded: Mapping[int, str] = field(default_factory=dict)
    """Tokens of the tokenizer that have no row in the model's embedding (such as added padding tokens), by id."""

    @property
    def bos(self) -> bool:
        """Whether windows start with a prefix."""
        return bool(self.prefix)

    @property
    def has_usual_prefix(self) -> bool:
        """Whether windows start with nothing, or with only the BOS that the tokenizer's digest already covers."""
        own = self.prefix == (self.tokenizer.bos_token_id,) and self.prefix == own_prefix(self.tokenizer)
        return not self.prefix or (own and bool(getattr(self.tokenizer, "is_fast", False)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each."""
        notes = (*self.rope.notes, *(f"{self.name}: {note}" for note in tokenizer_notes(self.tokenizer)))
        if self.quantisation is not None:
            notes = (*notes, f"{self.name}: weights are quantised: {quantization_text(self.quantisation.params)}")
        if self.ref.adapter is not None and (note := base_note(self.ref.adapter, self.name, self.ref.location)):
            notes = (*notes, note)
        if _soft_cap(self.config) is None or self.attn != "eager":
            return notes
        capped = (
            f"{self.name} has a soft cap on its attention logits, so attention is eager, whose memory grows with the "
            "square of the length (--attn flex_attention or, on a GPU, flash_attention_2 need less; sdpa would ignore "
            "the cap)"
        )
        return (*notes, capped)

    @property
    def geometry(self) -> Geometry:
        """The geometry that methods start from, at factor 1."""
        return self.rope.geometry

    @property
    def native_length(self) -> int:
        """The native length L in tokens."""
        return self.geometry.native_length

    def check_embedded(self, inputs: Iterable[npt.NDArray[np.int32]], what: str) -> None:
        """Raises LongEvalError if a token id in `inputs` has no row in the model's embedding; `what` describes them."""
        if not self.unembedded:
            return
        for tokens_T in inputs:
            for token in self.unembedded.keys() & set(tokens_T.tolist()):
                raise LongEvalError(
                    f"--model {self.name}: {what} holds the token {self.unembedded[token]!r} ({token}), but the "
                    f"model's embedding has {self.config.get_text_config().vocab_size} rows",
                    "The tokenizer belongs to another model, or it has added tokens that the model never learned.",
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
        """The model's GenerationConfig; see `load_generation_settings`."""
        return load.load_generation_settings(self.ref, self.config)


def prepare_all(
    spec: ModelRequest, backend: Capabilities, told: Callable[[str], None], *, dry_run: bool = False
) -> list[PreparedModel]:
    """Prepares the models of a request for its backend; with `dry_run` none of their own code runs.

    `told` hears what is being done.
    """
    models = []
    for name in spec.model:
        told(f"opening {name}" + (f" with the adapter {spec.adapter}" if spec.adapter else ""))
        model = prepare(
            name,
            revision=spec.revision,
            adapter=spec.adapter,
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
    adapter: str | None = None,
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
    """Finds a model and reads its configuration and tokenizer.

    The arguments are settings of `ModelRequest`, `name` being one model. If a backend is given, it must be able to run
    the model. With `dry_run`, the model's own code doesn't run even if it is trusted.

    Raises:
        LongEvalError: The model can't be used; see `models.load` and `models.scaling`.
    """
    remote = backend is not None and backend.remote
    runs_code = trust_remote_code and not dry_run
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    attn = resolve_attention(attn, device)
    device_map = resolve_device_map(device_map)
    ref = resolve(name, revision=revision, adapter=adapter)
    with _needing_code(withheld=trust_remote_code and dry_run):
        config = load.load_config(ref, trust_remote_code=runs_code)
        if backend is not None:
            backend.check_config(name, config)
        if backend is None or backend.transformers_attention:  # other backends' own attention applies the cap
            attn = _with_soft_cap(name, config, attn)
        rope = model_rope(name, config, native=native, scale_from=scale_from, layers=layers)
        quantisation = None
        if not remote:  # a server has weights of its own
            own_quantised = backend is not None and backend.own_quantised_weights
            load.check_weights(ref, config, own_quantised=own_quantised)
            quantisation, dtype = load.set_up_quantisation(
                ref, config, dtype=dtype, device=device, device_map=device_map, own_quantised=own_quantised
            )
            _check_plain(ref, quantisation)
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
    prepared.check_embedded([np.array(prepared.prefix, dtype=np.int32)], "the start of its windows")
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and max(prepared.prefix, default=0) >= rows:  # an id that isn't in the vocabulary either
        raise LongEvalError(
            f"--model {name}: windows start with the token {max(prepared.prefix)}, but its embedding has {rows} rows",
            "Correct the post_processor in its tokenizer.json, or use --no-bos.",
        )
    return prepared


def _check_plain(ref: ModelRef, quantisation: Quantisation | None) -> None:
    """Raises LongEvalError for an adapter on weights that stay quantised, into which it can't be merged exactly."""
    if ref.adapter is not None and quantisation is not None and not quantisation.dequantised:
        raise LongEvalError(
            f"--adapter {ref.adapter.name}: the weights of {ref.name} are quantised ({quantisation.method}), so it "
            "can't be merged into them",
            "Put it on the model without quantisation, such as the one that this was made of.",
        )


@contextlib.contextmanager
def _needing_code(*, withheld: bool) -> Iterator[None]:
    """Changes the remedy of a CodeError if `withheld`: the code is trusted, but a dry run doesn't run it."""
    try:
        yield
    except load.CodeError as error:
        if not withheld:
            raise
        remedy = f"Its plan needs {error.code}, which a dry run doesn't run: leave --dry-run out."
        raise LongEvalError(error.problem, remedy) from error


def _unembedded(name: str, tokenizer: Any, config: Any) -> dict[int, str]:
    """Tokens without a row in the model's embedding, by id.

    Some models have an added padding token beyond their embedding, which is harmless unless a text contains it. If the
    vocabulary without added tokens is too large, it belongs to another model.

    Raises:
        LongEvalError: The vocabulary without added tokens is larger than the embedding.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return {}
    beyond = {int(index): token for token, index in tokenizer.get_vocab().items() if index >= rows}
    own = beyond.keys() - tokenizer.added_tokens_decoder.keys()
    if own:
        raise LongEvalError(
            f"--model {name}: its tokenizer has a vocabulary of {max(own) + 1} tokens, but its embedding has {rows} "
            "rows (vocab_size)",
            "The tokenizer belongs to another model, or vocab_size in config.json is wrong.",
        )
    return beyond


def _soft_cap(config: Any) -> float | None:
    """The soft cap of a model's attention logits (Gemma 2), or None."""
    cap: float | None = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return cap


def _with_soft_cap(name: str, config: Any, attn: str | None) -> str | None:
    """The attention implementation: by default eager for models with a soft cap, which SDPA doesn't support.

    transformers would silently use SDPA for them without the cap, which changes the results of Gemma 2.
    """
    if _soft_cap(config) is None:
        return attn
    if attn == "sdpa":
        raise LongEvalError(
            f"--attn sdpa: ignores the soft cap on the attention logits of {name}",
            "Leave --attn out, or use eager, flex_attention or flash_attention_2.",
        )
    return attn or "eager"


def _prefix(name: str, tokenizer: Any, asked: bool | None) -> tuple[int, ...]:
    """Token ids that windows start with: as the user asked, or else what the tokenizer puts before a text."""
    if asked is None:
        return own_prefix(tokenizer)
    prefix = prefix_ids(tokenizer) if asked else ()
    if asked and not prefix:
        raise LongEvalError(f"--bos: the tokenizer of {name} has no BOS token", "Leave --bos out.")
    return prefix

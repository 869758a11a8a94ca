"""Tokenizers over a sentencepiece vocabulary, in the form of the tokenizers library, with sentencepiece's own ids.

transformers rebuilds such a vocabulary by the name of a class: blanks at the start of a text, the prefix blank, the
normalisation and symbols that are defined by the user may then not be as the vocabulary's own file says.
Source: sentencepiece (`sentencepiece_model.proto`, `bpe_model.cc`): merges go by score, and only normal pieces are
merged; symbols defined by the user are found first; what can't be written is written in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Kinds of pieces that are told apart here, as both sentencepiece and GGUF number them."""
_BLANK = "▁"
"""How sentencepiece writes a space."""
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A vocabulary and how a text is written before it is cut into pieces."""

    tokens: Sequence[str]
    """By id."""
    kinds: Sequence[int]
    scores: Sequence[float]
    unknown: int | None
    """The id of what can't be written at all."""
    prefix: bool
    """Whether a text begins with a blank that it doesn't have."""
    merges: Sequence[tuple[str, str]] | None = None
    """First to last; None: as the scores say."""
    unigram: bool = False
    """Whether the likeliest pieces are taken instead of merging."""
    byte_fallback: bool = True
    """Whether what can't be written is written in bytes."""
    charsmap: bytes = b""
    """sentencepiece's compiled normalisation."""
    trims: bool = False
    """Whether blanks at both ends are dropped, and several in a row become one."""


def backend_of(pieces: Pieces) -> Any:
    """Returns the `tokenizers.Tokenizer` of a vocabulary, with its special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    # A user's symbol is found in the text itself, where blanks are blanks.
    tokens = [
        token.replace(_BLANK, " ") if kind == USER_DEFINED else token
        for token, kind in zip(pieces.tokens, pieces.kinds, strict=True)
    ]
    unknown = None if pieces.unknown is None else tokens[pieces.unknown]
    if pieces.unigram:
        scored = list(zip(tokens, pieces.scores, strict=True))
        tokenizer = Tokenizer(models.Unigram(scored, pieces.unknown, pieces.byte_fallback))
    else:
        merges = _merges_by_score(pieces) if pieces.merges is None else list(pieces.merges)
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=pieces.byte_fallback)
        )
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")] if pieces.trims else []
    steps += [normalizers.Prepend(_BLANK)] if pieces.prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])
    back = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if pieces.prefix else back)
    add_special(tokenizer, tokens, pieces.kinds)
    return tokenizer


def add_special(tokenizer: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Adds control tokens as special tokens, and a user's own symbols as tokens that no rule divides."""
    from tokenizers import AddedToken

    for kind in (CONTROL, USER_DEFINED):
        is_special = kind == CONTROL
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=is_special)
                for token, own in zip(tokens, kinds, strict=True)
                if own == kind
            ]
        )


def read_pieces(model: bytes) -> Pieces:
    """Reads the content of a `tokenizer.model` that sentencepiece reads.

    Raises:
        ValueError: If it is of another kind than BPE and unigram.
    """
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise ValueError("a sentencepiece model that cuts texts into words or characters")
    return Pieces(
        tokens=[piece.piece for piece in proto.pieces],
        kinds=[piece.type for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
        unknown=trainer.unk_id,
        prefix=normalizer.add_dummy_prefix,
        unigram=trainer.model_type == _UNIGRAM,
        byte_fallback=trainer.byte_fallback,
        charsmap=normalizer.precompiled_charsmap,
        trims=normalizer.remove_extra_whitespaces,
    )


def _merges_by_score(pieces: Pieces) -> list[tuple[str, str]]:
    """The merges that the scores imply: every pair of pieces that makes a piece, best piece first."""
    normal = {
        token: score
        for token, kind, score in zip(pieces.tokens, pieces.kinds, pieces.scores, strict=True)
        if kind == NORMAL
    }
    ranked = [
        (-score, -cut, token[:cut], token[cut:])
        for token, score in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]

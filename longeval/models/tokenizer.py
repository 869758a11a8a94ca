"""A model's tokenizer, doing what the model's own files say.

transformers builds a tokenizer by the name of a class, which `tokenizer_config.json` or the model's type gives, and
takes only vocabulary and merges from `tokenizer.json`: normalisation and splitting are those of the class. Under the
name of another class (DeepSeek's files say LlamaTokenizerFast, SmolLM2's GPT2Tokenizer) a text then loses its blanks,
or its numbers are cut in another way. So here the file itself is always taken: `tokenizer.json` as it is, or a
sentencepiece model as sentencepiece reads it. Special tokens and chat template are settings of `tokenizer_config.json`,
which hold as in transformers.

A sentencepiece vocabulary becomes a tokenizer of the tokenizers library with sentencepiece's own ids. Source:
sentencepiece (`sentencepiece_model.proto`, `bpe_model.cc`): merges go by score, and only normal pieces are merged;
symbols defined by the user are found first; what can't be written is written in bytes.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longeval.cache import cache_dir, files_digest
from longeval.files import lasting_folder, put_folder, working_folder, write_whole
from longeval.models.folder import read_config

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_KEPT = ("model_input_names", "padding_side", "truncation_side")
"""Settings whose defaults are those of a class; none of them changes a token."""

UNSTATED = "longeval_rule_unstated"
"""Key in the `tokenizer_config.json` of a converted GGUF that doesn't say how it splits a text."""
_MENDED = "longeval_mended"
"""Attribute of a tokenizer that isn't as transformers builds it."""

PROBE = (
    "Hello world",
    "  Two  blanks at first,\n\n\tlines \r\n and  tabs\t\tlast  ",
    "12345678 3.14159 1,000 x2 ²½ ٣",
    "naïve ÉCOLE straße e\u0301 ﬁ Ａ 漢字かな 한국어 हिन्दी Ελλάδα עברית \u00a0\u200b",
    "def f(x):\n    return {'a': x+1}  # don't, I'LL <b>&amp;</b> //\\\\ ```",
    "🙂👍🏽👩‍💻 … “quoted” — [1] $5 50% @me #tag HELLO hello",
)
"""Texts in which tokenizers differ."""


def open_tokenizer(source: dict[str, Any], *, trust_remote_code: bool, config: Any) -> Any:
    """Returns a model's transformers tokenizer.

    Args:
        source: transformers' arguments that say where the model is.
        trust_remote_code: Whether Python code that comes with the model may run; a tokenizer of its own is as it is.
        config: The model's PreTrainedConfig.

    Raises:
        ValueError: If there is no vocabulary, or none whose ids are known for certain; or whatever transformers raises.
    """
    tokenizer = _by_files(_by_class(source, trust_remote_code, config), source)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None) is not None:
        model.dropout = None  # it is for training: texts would be split at random
    return tokenizer


def _by_class(source: dict[str, Any], trust_remote_code: bool, config: Any) -> Any:
    """The tokenizer that transformers makes by the name of a class, or of the file where it can't."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(**source, config=config, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers has no class of its own
        if trust_remote_code or "trust_remote_code" in str(error) or _file(source, _JSON) is None:
            raise
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(**source)
        setattr(tokenizer, _MENDED, True)
        return tokenizer


def _by_files(by_class: Any, source: dict[str, Any]) -> Any:
    """The tokenizer that the model's files say, given the one that transformers made."""
    import transformers

    generic = transformers.PreTrainedTokenizerFast
    if type(by_class).__module__.partition(".")[0] != "transformers":
        return by_class
    if _file(source, _JSON) is not None:
        if type(by_class) is generic:
            return by_class
        tokenizer = _like(by_class, generic.from_pretrained(**source))
        setattr(tokenizer, _MENDED, not _alike(by_class, tokenizer))
        return tokenizer
    if (path := _file(source, _MODEL)) is not None:
        return _as_sentencepiece(by_class, path)
    if isinstance(by_class, generic) and getattr(by_class, "vocab_file", None) is None:
        raise ValueError(f"it has no vocabulary: {_JSON} is missing, and so is what {type(by_class).__name__} reads")
    return by_class


def is_stock(tokenizer: Any) -> bool:
    """Whether transformers, and engines that use it, read this tokenizer alike from the model's files."""
    return not getattr(tokenizer, _MENDED, False)


def tokenizer_notes(tokenizer: Any) -> tuple[str, ...]:
    """Returns notes for the user on a tokenizer, one line each."""
    if not getattr(tokenizer, "init_kwargs", {}).get(UNSTATED):
        return ()
    return (
        "its file doesn't state tokenizer.ggml.pre: texts are split by llama.cpp's default rule, which may not be the "
        "one that the model was made with",
    )


def class_that_splits_otherwise(folder: str) -> str | None:
    """Returns the class that stock transformers makes of a model's folder if it splits texts otherwise than the file.

    None where it does as `tokenizer.json` says, and where there is no such file or none that can be read.
    """
    import transformers
    from tokenizers import Tokenizer

    path = os.path.join(folder, _JSON)
    if not os.path.isfile(path):
        return None
    try:
        stock = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        own = Tokenizer.from_file(path)
    except Exception:  # tokenizers has no class of its own; whoever loads the folder is told
        return None
    own.no_truncation()
    own.no_padding()
    same = _ids(stock) == [own.encode(text, add_special_tokens=False).ids for text in PROBE]
    return None if same else type(stock).__name__


def _file(source: dict[str, Any], name: str) -> str | None:
    """The path of one of the model's files; None if it has no such file."""
    from transformers.utils.hub import cached_file

    where = dict(source)
    folder = where.pop("pretrained_model_name_or_path")
    if os.path.isdir(folder):
        path = os.path.join(folder, name)
        return path if os.path.isfile(path) else None
    found = cached_file(
        folder,
        name,
        **where,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else str(found)


def _like(by_class: Any, tokenizer: Any) -> Any:
    """Gives the file's tokenizer the settings and special tokens of a class, which don't change how it splits."""
    for name in _KEPT:
        setattr(tokenizer, name, getattr(by_class, name, getattr(tokenizer, name)))
    vocabulary = tokenizer.get_vocab()
    by_default = {
        name: token
        for name in _SPECIAL
        if getattr(tokenizer, name) is None and (token := getattr(by_class, name, None)) in vocabulary
    }
    if by_default:
        tokenizer.add_special_tokens(by_default)
    return tokenizer


def _alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers encode and decode the probe alike, and end a text with the same token."""

    def made(tokenizer: Any) -> list[Any]:
        ids = [tokenizer(text, add_special_tokens=special).input_ids for text in PROBE for special in (True, False)]
        return [tokenizer.eos_token_id, *ids, *(tokenizer.decode(tokens) for tokens in ids)]

    try:
        return made(one) == made(other)
    except Exception:  # a class that fails over the file; the libraries have none of their own
        return False


def _as_sentencepiece(by_class: Any, path: str) -> Any:
    """Returns the tokenizer if its ids are those of sentencepiece, else a new one with those ids.

    Raises:
        ValueError: If none here has them.
    """
    import sentencepiece
    import transformers

    with open(path, "rb") as file:
        content = file.read()
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:  # another kind of file of that name
        return by_class
    expected = model.encode(list(PROBE))
    if _ids(by_class) == expected:
        return by_class
    added = {token: own for token, own in by_class.added_tokens_decoder.items() if token >= model.get_piece_size()}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend_of(read_pieces(content)),
        added_tokens_decoder=added,
        **{name: token for name in _SPECIAL if (token := getattr(by_class, name)) is not None},
        chat_template=getattr(by_class, "chat_template", None),
        model_max_length=by_class.model_max_length,
        add_bos_token=getattr(by_class, "add_bos_token", False),
        add_eos_token=getattr(by_class, "add_eos_token", False),
    )
    if _ids(tokenizer) != expected:
        raise ValueError(f"{type(by_class).__name__} splits texts in another way than its {_MODEL}")
    tokenizer = _like(by_class, tokenizer)
    setattr(tokenizer, _MENDED, True)
    return tokenizer


def _ids(tokenizer: Any) -> list[list[int]]:
    """The token ids that a tokenizer gives the texts of the probe."""
    return [tokenizer(text, add_special_tokens=False).input_ids for text in PROBE]


def tokenizer_folder(tokenizer: Any) -> str:
    """Saves a transformers tokenizer, once for each content, for programs that load theirs from a folder.

    vLLM gets one where transformers would build another tokenizer from the model's own files. RULER's generators call
    `AutoTokenizer.from_pretrained(…, trust_remote_code=True)`: without `auto_map` and Python files in the folder, there
    is no foreign code that this could run.

    Returns:
        Absolute path, `cache_dir()/tokenizers/<digest>`; or a temporary folder if the cache can't be written.
    """
    try:
        return _save(tokenizer, os.path.join(cache_dir(), "tokenizers"))
    except OSError:
        return _save(tokenizer, _instead_of_cache())


@functools.cache
def _instead_of_cache() -> str:
    return lasting_folder()


def _save(tokenizer: Any, parent: str) -> str:
    """Saves beside the final place and moves the folder there as a whole; another process may have been quicker."""
    os.makedirs(parent, mode=0o700, exist_ok=True)
    with working_folder(parent) as work:
        made = os.path.join(work, "tokenizer")
        tokenizer.save_pretrained(made)
        _remove_code(made)
        digest = files_digest(made, os.listdir(made))
        folder = os.path.join(parent, digest[:16])

        def is_whole(place: str) -> bool:
            return os.path.isdir(place) and files_digest(place, os.listdir(place)) == digest

        put_folder(made, folder, is_whole=is_whole)
        return folder


def _remove_code(folder: str) -> None:
    """Removes Python files from a tokenizer's folder, and what names classes in them."""
    for name in os.listdir(folder):
        if name.endswith(".py"):
            os.unlink(os.path.join(folder, name))
    path = os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(path):
        config = read_config(path, folder)
        config.pop("auto_map", None)
        write_whole(path, json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True).encode())


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

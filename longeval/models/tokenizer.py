"""Opens a model's tokenizer so that it follows the model's own files.

transformers chooses a tokenizer class by its name in `tokenizer_config.json` or by the model's type. It takes only
vocabulary and merges from `tokenizer.json`; normalisation and splitting are those of the class. If the class is wrong
(DeepSeek's files name LlamaTokenizerFast, SmolLM2's GPT2Tokenizer), texts lose their spaces or numbers are split
differently. So here the files always decide: `tokenizer.json` is used unchanged, and a sentencepiece model is read as
sentencepiece reads it. Special tokens and chat template come from `tokenizer_config.json`, as in transformers.

A sentencepiece vocabulary becomes a tokenizer of the tokenizers library with the same ids. Source: sentencepiece
(`sentencepiece_model.proto`, `bpe_model.cc`): merges are ordered by score, and only normal pieces are merged;
user-defined symbols are found first; text outside of the vocabulary is encoded as bytes.
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
"""Settings that are copied from transformers' class; none of them changes how a text is tokenised."""

UNSTATED = "longeval_rule_unstated"
"""Key in the `tokenizer_config.json` of a converted GGUF whose file doesn't state how texts are split."""
_CORRECTED = "longeval_corrected"
"""Attribute of a tokenizer that differs from the one that transformers builds."""

PROBE = (
    "Hello world",
    "  Two  blanks at first,\n\n\tlines \r\n and  tabs\t\tlast  ",
    "12345678 3.14159 1,000 x2 ²½ ٣",
    "naïve ÉCOLE straße e\u0301 ﬁ Ａ 漢字かな 한국어 हिन्दी Ελλάδα עברית \u00a0\u200b",
    "def f(x):\n    return {'a': x+1}  # don't, I'LL <b>&amp;</b> //\\\\ ```",
    "🙂👍🏽👩‍💻 … “quoted” — [1] $5 50% @me #tag HELLO hello",
)
"""Texts that show differences between tokenizers."""


def open_tokenizer(source: dict[str, Any], *, trust_remote_code: bool, config: Any) -> Any:
    """Returns a model's transformers tokenizer; `source` has transformers' arguments for the location of the model.

    A tokenizer that is defined by the model's own code is not changed.

    Raises:
        ValueError: There is no vocabulary, or its ids can't be determined for certain.
        Exception: Any error of transformers.
    """
    tokenizer = _by_files(_by_class(source, trust_remote_code, config), source)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None) is not None:
        model.dropout = None  # BPE dropout is for training; it would split texts at random
    return tokenizer


def _by_class(source: dict[str, Any], trust_remote_code: bool, config: Any) -> Any:
    """The tokenizer that transformers makes by class name, or if that fails, from `tokenizer.json`."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(**source, config=config, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises plain Exception
        if trust_remote_code or "trust_remote_code" in str(error) or _file(source, _JSON) is None:
            raise
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(**source)
        setattr(tokenizer, _CORRECTED, True)
        return tokenizer


def _by_files(by_class: Any, source: dict[str, Any]) -> Any:
    """The tokenizer that follows the model's files; `by_class` is the one that transformers made."""
    import transformers

    generic = transformers.PreTrainedTokenizerFast
    if type(by_class).__module__.partition(".")[0] != "transformers":
        return by_class
    if _file(source, _JSON) is not None:
        if type(by_class) is generic:
            return by_class
        tokenizer = _with_settings_of(by_class, generic.from_pretrained(**source))
        setattr(tokenizer, _CORRECTED, not _encode_alike(by_class, tokenizer))
        return tokenizer
    if (path := _file(source, _MODEL)) is not None:
        return _as_sentencepiece(by_class, path)
    if isinstance(by_class, generic) and getattr(by_class, "vocab_file", None) is None:
        raise ValueError(f"it has no vocabulary: {_JSON} is missing, and so are the files of {type(by_class).__name__}")
    return by_class


def is_stock(tokenizer: Any) -> bool:
    """Whether transformers, and engines that use it, build the same tokenizer from the model's files."""
    return not getattr(tokenizer, _CORRECTED, False)


def tokenizer_notes(tokenizer: Any) -> tuple[str, ...]:
    """Returns notes for the user on a tokenizer, one line each."""
    if not getattr(tokenizer, "init_kwargs", {}).get(UNSTATED):
        return ()
    return (
        "its file doesn't state tokenizer.ggml.pre: texts are split by llama.cpp's default rule, which may differ from "
        "the one that the model was trained with",
    )


def class_that_splits_otherwise(folder: str) -> str | None:
    """Returns the name of stock transformers' tokenizer class for a folder if it doesn't follow `tokenizer.json`.

    Returns:
        The name; None if texts are split as `tokenizer.json` says, or if the folder has no readable `tokenizer.json`.
    """
    import transformers
    from tokenizers import Tokenizer

    path = os.path.join(folder, _JSON)
    if not os.path.isfile(path):
        return None
    try:
        stock = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        own = Tokenizer.from_file(path)
    except Exception:  # tokenizers raises plain Exception; loading the folder reports the error
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


def _with_settings_of(by_class: Any, tokenizer: Any) -> Any:
    """Gives `tokenizer` the settings and special tokens of `by_class`, which don't change how texts are split."""
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


def _encode_alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers encode and decode the texts of PROBE in the same way and have the same EOS token."""

    def made(tokenizer: Any) -> list[Any]:
        ids = [tokenizer(text, add_special_tokens=special).input_ids for text in PROBE for special in (True, False)]
        return [tokenizer.eos_token_id, *ids, *(tokenizer.decode(tokens) for tokens in ids)]

    try:
        return made(one) == made(other)
    except Exception:  # a class that fails with the file; the libraries raise plain Exception
        return False


def _as_sentencepiece(by_class: Any, path: str) -> Any:
    """Returns `by_class` if its ids equal sentencepiece's, otherwise a new tokenizer whose ids do.

    Raises:
        ValueError: The ids of the new tokenizer differ too.
    """
    import sentencepiece
    import transformers

    with open(path, "rb") as file:
        content = file.read()
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:  # the file is not a sentencepiece model
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
        raise ValueError(f"{type(by_class).__name__} splits texts differently from its {_MODEL}")
    tokenizer = _with_settings_of(by_class, tokenizer)
    setattr(tokenizer, _CORRECTED, True)
    return tokenizer


def _ids(tokenizer: Any) -> list[list[int]]:
    """A tokenizer's ids for each text of PROBE."""
    return [tokenizer(text, add_special_tokens=False).input_ids for text in PROBE]


def tokenizer_folder(tokenizer: Any) -> str:
    """Saves a transformers tokenizer into a folder, for programs that load a tokenizer from a folder.

    vLLM gets such a folder if transformers would build a different tokenizer from the model's own files. RULER's
    generators call `AutoTokenizer.from_pretrained(…, trust_remote_code=True)`; the folder has no `auto_map` and no
    Python files, so this runs no foreign code.

    Returns:
        Absolute path, `cache_dir()/tokenizers/<digest>`, or a temporary folder if the cache can't be written.
    """
    try:
        return _save(tokenizer, os.path.join(cache_dir(), "tokenizers"))
    except OSError:
        return _save(tokenizer, _instead_of_cache())


@functools.cache
def _instead_of_cache() -> str:
    return lasting_folder()


def _save(tokenizer: Any, parent: str) -> str:
    """Saves into a temporary folder and renames it to its digest; another process may already have done so."""
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
    """Removes Python files and `auto_map`, which names classes in them, from a tokenizer's folder."""
    for name in os.listdir(folder):
        if name.endswith(".py"):
            os.unlink(os.path.join(folder, name))
    path = os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(path):
        config = read_config(path, folder)
        config.pop("auto_map", None)
        write_whole(path, json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True).encode())


NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Kinds of pieces, as both sentencepiece and GGUF number them; other kinds are treated like normal ones."""
_BLANK = "▁"
"""sentencepiece's character for a space."""
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A sentencepiece vocabulary with its rules of normalisation."""

    tokens: Sequence[str]
    """Tokens by id."""
    kinds: Sequence[int]
    scores: Sequence[float]
    unknown: int | None
    """Id of the unknown token."""
    prefix: bool
    """Whether a space is added before a text."""
    merges: Sequence[tuple[str, str]] | None = None
    """Merges in order; None: they follow from the scores."""
    unigram: bool = False
    """Whether this is a unigram model instead of BPE."""
    byte_fallback: bool = True
    """Whether text outside of the vocabulary is encoded as bytes."""
    charsmap: bytes = b""
    """sentencepiece's compiled normalisation."""
    trims: bool = False
    """Whether spaces at both ends are removed and repeated spaces become one."""


def backend_of(pieces: Pieces) -> Any:
    """Returns the `tokenizers.Tokenizer` of a vocabulary, with its special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    # User-defined symbols are searched in the original text, which has plain spaces.
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
    """Adds control tokens as special tokens, and user-defined symbols as tokens that are never divided."""
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
    """Reads the content of a sentencepiece `tokenizer.model`.

    Raises:
        ValueError: It is neither a BPE nor a unigram model.
    """
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise ValueError("a sentencepiece model of words or characters, which is not supported")
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
    """The merges that follow from the scores: every pair of pieces that forms a piece, in the order of its score."""
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

"""A model's tokenizer, doing what the model's own files say.

transformers builds a tokenizer by the name of a class, which `tokenizer_config.json` or the model's type gives, and
takes only vocabulary and merges from `tokenizer.json`: normalisation and splitting are those of the class. Under the
name of another class (DeepSeek's files say LlamaTokenizerFast, SmolLM2's GPT2Tokenizer) a text then loses its blanks,
or its numbers are cut in another way. So here the file itself is always taken: `tokenizer.json` as it is, or a
sentencepiece model as sentencepiece reads it. Special tokens and chat template are settings of `tokenizer_config.json`,
which hold as in transformers.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from longeval.cache import cache_dir, files_digest
from longeval.files import lasting_folder, put_folder, working_folder, write_whole
from longeval.models.folder import read_config
from longeval.models.sentencepiece import backend_of, read_pieces

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


def open_tokenizer(source: dict[str, Any], *, trust_remote_code: bool, config: Any = None) -> Any:
    """Returns a model's transformers tokenizer.

    Args:
        source: transformers' arguments that say where the model is.
        trust_remote_code: Whether Python code that comes with the model may run; a tokenizer of its own is as it is.
        config: The model's PreTrainedConfig; None: it is read.

    Raises:
        ValueError: If there is no vocabulary, or none whose ids are known for certain; or whatever transformers raises.
    """
    tokenizer = _opened(source, trust_remote_code, config)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None) is not None:
        model.dropout = None  # it is for training: texts would be split at random
    return tokenizer


def _opened(source: dict[str, Any], trust_remote_code: bool, config: Any) -> Any:
    """Does what `open_tokenizer` does, but leaves the dropout of merges in, which splits texts at random."""
    import transformers

    generic = transformers.PreTrainedTokenizerFast
    try:
        by_class = transformers.AutoTokenizer.from_pretrained(
            **source, config=config, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizers has no class of its own
        if trust_remote_code or "trust_remote_code" in str(error) or _file(source, _JSON) is None:
            raise
        by_class = generic.from_pretrained(**source)  # a class that can't be made of the file, which is what counts
        setattr(by_class, _MENDED, True)
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

    Args:
        tokenizer: With `save_pretrained`.

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
        put_folder(
            made,
            folder,
            aside=os.path.join(work, "damaged"),
            is_whole=lambda place: os.path.isdir(place) and files_digest(place, os.listdir(place)) == digest,
        )
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

"""What a server generated, cut as every backend cuts it."""

from __future__ import annotations

from typing import Any

from longeval.backends.base import GenerateRequest, Generation
from longeval.backends.ending import Ending
from longeval.backends.openai.dialect import Body, UnreadableError, answer_ids


def ended(choice: Body, usage: Any, ending: Ending, request: GenerateRequest, tokenizer: Any) -> Generation:
    """An answer from what a server sent.

    With token ids it is what the other backends would have made of these tokens. From text alone, stop texts are looked
    for in it again, and where the server says `stop` without saying why, a stop text is taken to be the reason if any
    was given.

    Args:
        choice: Of the server's answer.
        usage: Of the server's answer; None where it has none.
        ending: Of the request.
        request: What was asked.
        tokenizer: transformers' tokenizer of the model.

    Raises:
        UnreadableError: The server ended the answer for a reason of its own, or sent none.
    """
    text, why, by = choice.get("text"), choice.get("finish_reason"), choice.get("stop_reason")
    if not isinstance(text, str) or why not in ("stop", "length"):
        raise UnreadableError(f"the server ended an answer with {why!r}, neither stop nor length")
    tokens = answer_ids(choice)
    if len(tokens) > request.max_new_tokens or not all(0 <= token < 2**31 for token in tokens):
        raise UnreadableError(f"the server sent token ids that can't be an answer of {request.max_new_tokens} tokens")
    for count in range(1, len(tokens) + 1):
        answer = ending.answer(tokens[:count])
        if answer is not None:
            return answer
    cut = first_stop(text, request.stop)
    num_tokens = len(tokens) or _counted(usage, text, tokenizer)
    if why == "length" and cut == text:
        if num_tokens < request.max_new_tokens and (tokens or _told(usage) is not None):
            limit = request.max_new_tokens
            raise UnreadableError(f"the server ended an answer after {num_tokens} of {limit} tokens, by its own limit")
        return Generation(text, num_tokens, "length")
    # Without a text: an end token that our tokenizer doesn't call so, of the model's generation settings.
    by_text = isinstance(by, str) or (bool(request.stop) and not tokens)
    if tokens:
        # vLLM finds stop texts while it decodes token by token, which shows half a character differently.
        cut = tokenizer.decode(tokens if by_text else tokens[:-1], skip_special_tokens=True)
    return Generation(cut, num_tokens, "stop" if by_text else "eos")


def first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop text that would have been seen first while it was written."""
    seen = min((place + len(stop) for stop in stops if (place := text.find(stop)) >= 0), default=None)
    if seen is None:
        return text
    return text[: min(place for stop in stops if (place := text.find(stop, 0, seen)) >= 0)]


def _told(usage: Any) -> int | None:
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _counted(usage: Any, text: str, tokenizer: Any) -> int:
    """Tokens generated, as the server says, else as many as the text has."""
    told = _told(usage)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if told is None else told

"""PosGen's rules once more, told as the paper tells them: by what stands before a token, not by indices."""

from __future__ import annotations


def wrong_tokens(tokens, task, *, modulus, j, k):
    """Indices of tokens that aren't what the rule gives, from the tokens before them.

    `tokens` is one sequence as a list of ints. `semi_recursive` has a pointer that starts at the first token and moves
    on by one after every second new token.
    """
    wrong, pointer, since = [], 0, 0
    for index in range(j + k, len(tokens)):
        before = tokens[:index]
        latest = before[index - k :]
        if task == "recursive":
            summed = before[-(j + k) :]
        elif task == "cot":
            summed = before[:j] + latest
        else:
            assert task == "semi_recursive"
            summed = before[pointer : pointer + j] + latest
            since += 1
            if since == 2:
                pointer, since = pointer + 1, 0
        total = 0
        for token in summed:
            total = (total + token) % modulus
        if tokens[index] != total:
            wrong.append(index)
    return wrong

"""The PosGen model once more, for one seed and one sequence, in plain float64 numpy; nothing of longeval is used."""

from __future__ import annotations

import numpy as np


def logits(weights, tokens, cos_TF, sin_TF, config):
    """(positions, vocabulary) for the tokens that the model reads; weights are those of one seed."""
    weights = {name: np.asarray(weight, dtype=np.float64) for name, weight in weights.items()}
    stream = [weights["embedding"][token] for token in tokens]
    for layer in range(config.layers):
        part = {
            name.split(".")[-1]: weight for name, weight in weights.items() if name.startswith(f"{layer}.attention")
        }
        normed = [norm(x) * part["norm"] for x in stream]
        stream = [x + y for x, y in zip(stream, attention(normed, part, cos_TF, sin_TF, config), strict=True)]
        part = {name.split(".")[-1]: weight for name, weight in weights.items() if name.startswith(f"{layer}.mlp")}
        stream = [x + np.maximum(norm(x) * part["norm"] @ part["in"], 0) @ part["out"] for x in stream]
    stream = [norm(x) * weights["norm"] for x in stream]
    if not config.tied:
        return np.stack([x @ weights["head"] for x in stream])
    scale = 1 / np.sqrt(config.d_model) if config.init == "t5" else 1.0
    return np.stack([scale * weights["embedding"] @ x for x in stream])


def norm(x):
    return x / np.sqrt(np.mean(x**2) + 1e-6)


def attention(normed, part, cos_TF, sin_TF, config):
    heads, size = config.heads, config.head_dim
    columns = [x @ part["qkv"] for x in normed]
    answers = []
    for now in range(len(normed)):
        joined = []
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            query = rotated(columns[now][: heads * size][at], cos_TF[now], sin_TF[now])
            scores = []
            for past in range(now + 1):
                key = rotated(columns[past][heads * size : 2 * heads * size][at], cos_TF[past], sin_TF[past])
                scores.append(query @ key * (size**-0.5 if config.attention_scale else 1.0))
            shares = np.exp(np.array(scores) - max(scores))
            shares /= shares.sum()
            joined.append(sum(s * columns[past][2 * heads * size :][at] for past, s in enumerate(shares)))
        answers.append(np.concatenate(joined) @ part["out"])
    return answers


def rotated(x, cos_F, sin_F):
    """Feature j as the complex number of dimensions j and j+F, turned (and stretched) by cos + i·sin."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * (cos_F + 1j * sin_F)
    return np.concatenate([turned.real, turned.imag])

"""A Llama forward pass in float64 numpy, written from the papers: what injection is held to independently.

Rotation is done with complex numbers (Su et al. 2021, eq. 34 in complex form), not with transformers' rotate-half.
"""

from __future__ import annotations

import numpy as np


def rms_norm(x_TD, weight_D, eps):
    return x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + eps) * weight_D


def rotate(x_THD, angle_TF, attention_factor):
    """Feature j is the pair (j, j + F) in this layout."""
    half = x_THD.shape[-1] // 2
    z_THF = x_THD[..., :half] + 1j * x_THD[..., half:]
    z_THF = z_THF * np.exp(1j * angle_TF[:, None, :]) * attention_factor
    return np.concatenate([z_THF.real, z_THF.imag], axis=-1)


def llama_nll(model, tokens_T, angle_TF, attention_factor=1.0):
    """NLLs of tokens 1 … T−1 of a transformers Llama, given the angle of every position and feature."""
    config = model.config
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}
    x_TD = weights["model.embed_tokens.weight"][tokens_T]
    num_tokens, head_dim = len(tokens_T), config.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        w = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items() if f".layers.{layer}." in k}
        h_TD = rms_norm(x_TD, w["input_layernorm.weight"], config.rms_norm_eps)
        q_THD = (h_TD @ w["self_attn.q_proj.weight"].T).reshape(num_tokens, -1, head_dim)
        k_THD = (h_TD @ w["self_attn.k_proj.weight"].T).reshape(num_tokens, -1, head_dim)
        v_THD = (h_TD @ w["self_attn.v_proj.weight"].T).reshape(num_tokens, -1, head_dim)
        q_THD = rotate(q_THD, angle_TF, attention_factor)
        k_THD = rotate(k_THD, angle_TF, attention_factor)
        out_THD = np.empty_like(q_THD)
        for head in range(config.num_attention_heads):
            scores_TT = q_THD[:, head] @ k_THD[:, head // groups].T / np.sqrt(head_dim)
            scores_TT[np.triu_indices(num_tokens, 1)] = -np.inf
            p_TT = np.exp(scores_TT - scores_TT.max(-1, keepdims=True))
            out_THD[:, head] = p_TT / p_TT.sum(-1, keepdims=True) @ v_THD[:, head // groups]
        x_TD = x_TD + out_THD.reshape(num_tokens, -1) @ w["self_attn.o_proj.weight"].T
        h_TD = rms_norm(x_TD, w["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate_TI = h_TD @ w["mlp.gate_proj.weight"].T
        hidden_TI = gate_TI / (1 + np.exp(-gate_TI)) * (h_TD @ w["mlp.up_proj.weight"].T)
        x_TD = x_TD + hidden_TI @ w["mlp.down_proj.weight"].T
    logits_TV = rms_norm(x_TD, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T
    top_T1 = logits_TV.max(-1, keepdims=True)
    log_sum_T = np.log(np.exp(logits_TV - top_T1).sum(-1)) + top_T1[:, 0]
    return (log_sum_T - logits_TV[np.arange(num_tokens), np.roll(tokens_T, -1)])[:-1]

"""A tiny Llama with untied head, batches for it, and torch's own plain training loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from longeval.store.losses import Losses
from longeval.studies.finetune.batch import Batch
from longeval.studies.finetune.checkpoint import Checkpoints
from longeval.studies.finetune.lora import adapt, merged, save_adapter
from longeval.studies.finetune.processes import Processes
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.train import learning_rate, train

VOCABULARY = 50


def request(**changes) -> FinetuneRequest:
    fields = {"model": ("m",), "pe": ("yarn",), "length": 64, "window": 24, "steps": 3, "batch_size": 4, "lr": 1e-2}
    return FinetuneRequest(**(fields | changes))


def tiny(dtype=torch.float32, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    return LlamaForCausalLM(LlamaConfig(**(config | changes))).to(dtype).eval().requires_grad_(False)


def batches(num_sequences: int = 4, num_tokens: int = 24, *, documents: bool = False):
    def batch(step: int) -> Batch:
        rng = np.random.default_rng(step)
        tokens_BT = rng.integers(0, VOCABULARY, (num_sequences, num_tokens))
        positions_BT = np.tile(np.arange(num_tokens), (num_sequences, 1))
        documents_BT = None
        if documents:
            documents_BT = (positions_BT >= rng.integers(4, num_tokens - 4, (num_sequences, 1))).astype(np.int64)
            starts_B = documents_BT.argmax(axis=1)[:, None]
            positions_BT = np.where(documents_BT == 1, positions_BT - starts_B, positions_BT)
        return Batch(tokens_BT=tokens_BT, positions_BT=positions_BT, documents_BT=documents_BT)

    return batch


def ones(tokens_BT, positions_BT, documents_BT):
    mask = torch.ones_like(tokens_BT) if documents_BT is None else None
    return {"input_ids": tokens_BT, "position_ids": positions_BT, "attention_mask": mask, "use_cache": False}


def run(model, asked: FinetuneRequest, folder: Path | str, given=None, **changes) -> Losses:
    settings = {
        "seed": 0,
        "micro_batch": 4,
        "precision": "float32",
        "serve": lambda batch: None,
        "arguments": ones,
        "checkpoints": Checkpoints(str(folder), keep=2, every=asked.checkpoint_every),
    }
    return train(model, given or batches(asked.batch_size), asked, **(settings | changes))


def plain_loop(model, asked: FinetuneRequest, given=None) -> list[float]:
    """Torch's own parts: cross-entropy of all logits at once, clip_grad_norm_, AdamW. Returns the losses."""
    model.requires_grad_(True).train()
    betas = (asked.beta1, asked.beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=betas, weight_decay=asked.weight_decay, foreach=False
    )
    losses = []
    for step in range(asked.steps):
        batch = (given or batches(asked.batch_size))(step)
        tokens_BT = torch.from_numpy(batch.tokens_BT)
        logits_BTV = model(
            input_ids=tokens_BT,
            position_ids=torch.from_numpy(batch.positions_BT),
            attention_mask=None if batch.documents_BT is not None else torch.ones_like(tokens_BT),
            use_cache=False,  # with a cache, transformers reads no borders
        ).logits[:, :-1]
        labels_BT = tokens_BT[:, 1:].clone()
        if batch.documents_BT is not None:
            labels_BT[torch.from_numpy(np.diff(batch.documents_BT) != 0)] = -100
        loss = cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        if asked.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), asked.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, asked)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval().requires_grad_(False)
    return losses


def furthest(model, other) -> float:
    """The largest difference between the weights of two models."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


def program(*arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `main` in a process of its own, or by a launcher."""
    root = Path(__file__).parents[3]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, __file__, *arguments]
    return subprocess.run(
        command, env=os.environ | paths | environment, capture_output=True, text=True, check=False, timeout=300
    )


def main(folder: str, weights: str, stop: str, changes: str = "{}", dropout: str = "0.2") -> None:
    """A program that trains, as one of several processes if launched so; it is killed after step `stop`.

    It writes the final weights and the losses. `changes` to the request are JSON.
    """
    import json
    import signal

    from safetensors.torch import save_file

    def told(step):
        if step.step == int(stop):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.use_deterministic_algorithms(True)
    asked = request(**({"steps": 6, "checkpoint_every": 2} | json.loads(changes)))
    processes = Processes()
    model = tiny(attention_dropout=float(dropout))
    if asked.uses_lora:
        torch.manual_seed(5)
        model = adapt(model, asked)
    log = run(model, asked, folder, told=told, processes=processes, micro_batch=1)
    assert processes.is_sharded == hasattr(next(model.parameters()), "full_tensor")
    if asked.uses_lora:
        adapter = processes.gather(model.state_dict())
        if processes.is_main:
            save_adapter(model, f"{weights}-adapter", base="base", weights=adapter if processes.is_sharded else None)
        model = merged(model)
    whole = processes.gather(model.state_dict())
    if processes.is_main:
        save_file(whole, weights)
        sys.stdout.write(f"{log.loss} {log.gradient_norm} processes: {processes.number}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

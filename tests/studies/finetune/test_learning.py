"""Augmentation lets a model learn an answer that lies beyond its window, and PoSE needs its mask for that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from longeval.studies.finetune.attend import forward_arguments
from longeval.studies.finetune.augment import make_augmentation
from longeval.studies.finetune.batch import Lengths
from longeval.studies.finetune.checkpoint import Checkpoints
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.text import Batches, ReadDocument, TrainingText
from longeval.studies.finetune.train import train

LENGTHS = Lengths(window=24, target=128, native=24)
STEPS, BATCH, VALUES, ASKS = 300, 64, 8, 8


def sequences(number, length, seed):
    """Random values, then a question, whose answer is the first value: a place and not a content."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VALUES, (number, length))
    tokens[:, -2], tokens[:, -1] = ASKS, tokens[:, 0]
    return tokens


def with_mask(tokens_BT, positions_BT, documents_BT):
    """As in every training; here the documents only say that nothing but the answer is predicted."""
    return forward_arguments(tokens_BT, positions_BT, None)


def without_mask(tokens_BT, positions_BT, documents_BT):
    return with_mask(tokens_BT, positions_BT, None) | {"attention_mask": None}


def accuracy(folder, augment, arguments):
    """Accuracy of the answer in the window and at the target length, after training in the window."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=LENGTHS.target, **sizes))
    model.eval().requires_grad_(False)
    tokens = sequences(STEPS * BATCH, LENGTHS.window, seed=1).astype(np.int32).ravel()
    document = ReadDocument(source="made", name="made", digest="", num_tokens=len(tokens))
    batches = Batches(
        text=TrainingText(tokens_N=tokens, documents=(document,), digest=""),
        augmentation=make_augmentation(augment, {"text": 1} if augment == "pose" else {}),
        lengths=LENGTHS,
        seed=0,
        batch_size=BATCH,
    )
    last_two_T = np.minimum(np.arange(LENGTHS.window), LENGTHS.window - 2)

    def batch(step):
        made = batches.batch(step)
        return dataclasses.replace(made, documents_BT=np.broadcast_to(last_two_T, made.tokens_BT.shape))

    request = FinetuneRequest.read(
        {"model": "m", "pe": "none", "length": 128, "window": 24, "steps": STEPS, "batch_size": BATCH, "lr": 2e-3}
    )
    train(
        model,
        batch,
        request,
        seed=0,
        micro_batch=BATCH,
        precision="float32",
        serve=lambda batch: None,
        arguments=arguments,
        checkpoints=Checkpoints(folder),
    )
    return [answered(model, length) for length in LENGTHS[:2]]


def answered(model, length):
    tokens = torch.from_numpy(sequences(256, length, seed=2))
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -2]
    return float((logits.argmax(-1) == tokens[:, -1]).float().mean())


@pytest.mark.slow
def test_only_augmentation_with_its_mask_reaches_beyond_the_window(tmp_path):
    plain = accuracy(str(tmp_path), "none", with_mask)
    posed = accuracy(str(tmp_path), "pose", with_mask)
    assert plain[0] > 0.95 and posed[0] > 0.95
    assert posed[1] > 0.95
    assert plain[1] < 0.6
    assert accuracy(str(tmp_path), "pose", without_mask)[1] < 0.6

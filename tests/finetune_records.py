"""Made-up trainings of `longeval finetune`, with the losses that they leave, and the cells that measure them."""

import hashlib

from records import make_provenance, make_records

from longeval.metrics import derived
from longeval.store.folder import Store
from longeval.store.losses import LOSSES, Losses
from longeval.store.nll import NLL
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record

BASE_WEIGHTS = "e" * 64
SPEC = "command: finetune\nmodel: toy\npe: [yarn, resonance_yarn]\nlength: 128\nsteps: 2\ndata: [texts]\n"


def make_losses(losses, *, tokens=1000, plain=None):
    """Losses by step, whose learning rate falls in a line; each step reads `tokens` and takes two seconds."""
    count = len(losses)
    return Losses(
        steps=tuple(range(1, count + 1)),
        loss=tuple(map(float, losses)),
        lr=tuple(2e-5 * (count - step) / count for step in range(count)),
        gradient_norm=(1.0,) * count,
        seconds=(2.0,) * count,
        tokens=(tokens,) * count,
        plain_loss=plain,
    )


def trained_weights(model, pe, augment, seed):
    """A digest for the weights of a trained model."""
    return hashlib.sha256(f"{model} {pe} {augment} {seed}".encode()).hexdigest()


def make_training(pe="yarn", losses=None, *, augment="none", seed=0, error=None, **changes):
    """The record of one training: its loss, or that it failed."""
    given = dict(changes)
    model = given.get("model", "toy")
    params = {
        "native_length": 64,
        "theta": 10000.0,
        "head_dim": 64,
        "method": {},
        "weights": BASE_WEIGHTS,
        "tokenizer": "f" * 64,
        "window": 128 if augment == "none" else 32,
        "augment": augment,
        "augment_args": {},
        "packing": "continuous",
        "steps": 2 if losses is None else len(losses.steps),
        "batch_size": 4,
        "lr": 2e-5,
        "schedule": "linear",
        "warmup_steps": 1,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.01,
        "clip": 1.0,
        "loss_name": "ce",
        "loss_args": {},
        "train": "full",
        "lora_rank": None,
        "lora_alpha": None,
        "seed": seed,
        "text_digest": "d" * 64,
        "text_tokens": 100_000,
        "text_documents": 12,
    } | given.pop("params", {})
    fields = {
        "model": model,
        "pe": pe,
        "factor": 2.0,
        "length": 128,
        "data": "texts",
        "task": None,
        "protocol": None,
        "backend": "hf",
        "dtype": "float32",
    } | given
    identity = repr((sorted(fields.items()), sorted(params.items(), key=lambda item: item[0])))
    common = {"cell": hashlib.sha256(identity.encode()).hexdigest()[:16]} | fields
    common["provenance"] = make_provenance(command="longeval finetune --model toy --pe yarn,resonance_yarn")
    if losses is None:
        return [Record(**common, params=params, metric="loss", value=None, status="failed", error=error)]
    name = pe + (f"-{augment}" if augment != "none" else "") + (f"-seed{seed}" if seed else "")
    outcome = {
        "saved_as": f"models/{name}",
        "trained_weights": trained_weights(model, pe, augment, seed),
        "num_parameters": 1_000_000,
        "num_trained": 1_000_000 if params["train"] == "full" else 10_000,
    }
    common |= {"params": outcome | params, "status": "ok", "elapsed_s": sum(losses.seconds), "rope_digest": "a" * 64}
    common["peak_memory_bytes"] = 3 << 30
    ((metric, value),) = derived(LOSSES, losses, None, params)
    return [value.record(metric.name, common)]


def measured_before(pe, length, nll, **changes):
    """Records of the base model under a method."""
    return make_records(pe, length, nll, **changes)


def measured_after(training, length, nll, *, folder="runs/ft", **changes):
    """Records of a trained model, which ships its scaling."""
    params = {"weights": training.params["trained_weights"], "shipped_rope": "yarn, factor 2"}
    params |= changes.pop("params", {})
    model = f"{folder}/{training.params['saved_as']}"
    return make_records("none", length, nll, model=model, params=params, **changes)


def make_finetune_run(path, cells, asked=()):
    """Writes a run folder: `cells` are (records, losses or NLLs or None); the plan has them and the records `asked`."""
    store = Store(str(path))
    store.write_text("spec.yaml", SPEC)
    records = [records[0] for records, _ in cells] + list(asked)
    names = ("cell", "model", "pe", "factor", "length", "data", "task", "protocol", "backend")
    planned = tuple(
        PlannedCell(
            params={name: record.params[name] for name in ("augment", "seed") if "augment" in record.params},
            **{name: getattr(record, name) for name in names},
        )
        for record in records
    )
    store.remember_plan(PlannedRequest(command="finetune", digest="0" * 16, cells=planned))
    for found, artefact in cells:
        kind = LOSSES if found[0].metric == "loss" else NLL
        store.save(found, artefact, kind)
    return str(path)

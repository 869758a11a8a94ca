"""Sentences on trainings: what they were and took together, and every setting of a section."""

from __future__ import annotations

from typing import Any

from longeval.report.document import Bullets, Prose, code, joined, prose
from longeval.report.facts import codes, method_facts, model_fact, unique
from longeval.report.numbers import count_range, counted, format_factor, numbers_text
from longeval.report.tables import error_text
from longeval.store.records import Record
from longeval.studies.finetune.report.trainings import TrainingSet
from longeval.values import format_duration, format_length

_PACKING = {
    "continuous": "joined without regard to documents: a token sees every token before it in its window",
    "documents": "packed by documents: a token sees the tokens of its own document only, whose positions start at 0",
}

_AUGMENTATIONS = {
    "pose": "the positions of a window skip, so that they reach the target length (PoSE, Zhu et al. 2023)",
    "e2": "the positions of a window are scaled and shifted at random in each step (E²-LLM, Liu et al. 2024)",
}

_SCHEDULES = {
    "linear": "then falls linearly to 0",
    "cosine": "then falls to 0 as half a cosine",
    "constant": "then stays there",
}

_LOSSES = {
    "ce": "the mean cross-entropy of all tokens",
    "longce": "cross-entropy in which tokens that need a long context count more (LongCE, Fang et al. 2024)",
}

_TRAIN = {
    "full": "all weights",
    "lora": "a LoRA adapter",
    "lora_plus": "a LoRA adapter, and embeddings and norms whole (LoRA+ of LongLoRA)",
}


def opening(trained: TrainingSet) -> Prose:
    """Which trainings there were, on how many tokens, and what they cost together."""
    done = [record for record in trained.records if record.status == "ok"]
    params = trained.params
    native = params.get("native_length")
    from_native = "" if native is None else f" from its native {format_length(native)} tokens"
    return prose(
        "{} of `{}`,{} to {}, on {}: {}{}; {}. {} took {} of {} of {} tokens.{}{}",
        counted(len(trained.records), "training"),
        trained.model,
        from_native,
        format_length(trained.length),
        codes(trained.data.split(",")),
        codes(unique(variant.row.label for variant in trained.variants)),
        _augmented(trained),
        _seeds(trained.seeds),
        "Each" if len(trained.records) > 1 else "It",
        counted(params["steps"], "step"),
        counted(params["batch_size"], "sequence"),
        format_length(params["window"]),
        _together(done),
        _failed(trained),
    )


def _augmented(trained: TrainingSet) -> str:
    if trained.augmentations == ["no augmentation"]:
        return ""
    names = ["without augmentation" if name == "no augmentation" else f"with {name}" for name in trained.augmentations]
    return f", {' and '.join(names)}"


def _seeds(seeds: list[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {numbers_text(seeds)}"


def _together(done: list[Record]) -> str:
    """How many tokens the trainings read, in which time, where, and with how much memory."""
    tokens = sum(record.tokens or 0 for record in done)
    if not tokens:
        return ""
    took = sum(record.elapsed_s or 0.0 for record in done)
    time = f" in {format_duration(took)}" if took else ""
    devices = unique(record.provenance.device for record in done if record.provenance.device)
    where = f" on {'; '.join(devices)}" if devices else ""
    peaks = [record.peak_memory_bytes for record in done if record.peak_memory_bytes]
    memory = f", with at most {max(peaks) / 2**30:.2f} GiB of memory" if peaks else ""
    subject = "Together they" if len(done) > 1 else "It"
    return f" {subject} read {tokens:,} tokens{time}{where}{memory}."


def _failed(trained: TrainingSet) -> Prose:
    """A sentence on trainings without a model."""
    failed = [record for record in trained.records if record.status != "ok"]
    if not failed:
        return ""
    reasons = unique(error_text(record) for record in failed)
    which = f"{len(failed)} of them" if len(trained.records) > 1 else "It"
    return prose(" {} failed and left no model: {}.", which, "; ".join(reasons))


def setting_facts(trained: TrainingSet) -> Bullets:
    """The settings of a section as a list."""
    params = trained.params
    facts: list[Prose] = [*_text(trained)]
    facts.append(
        f"Sequences: windows of {format_length(params['window'])} tokens for the target length "
        f"{format_length(trained.length)}, {params['batch_size']} a step, {_seeds(trained.seeds)}."
    )
    facts += _augmentation_facts(trained)
    facts += [_optimiser(params), _loss(params), _weights(params)]
    first = trained.records[0]
    facts.append(model_fact(trained.model, params.get("native_length"), first))
    facts += method_facts([variant.row for variant in trained.variants])
    if params.get("weights"):
        facts.append(prose("Digest of the weights that all started from: `{}`.", params["weights"]))
    return Bullets(items=tuple(facts))


def _text(trained: TrainingSet) -> list[Prose]:
    records = trained.records
    tokens = count_range([record.params.get("text_tokens") for record in records])
    documents = count_range([record.params.get("text_documents") for record in records])
    packing = _PACKING.get(str(trained.params.get("packing")), str(trained.params.get("packing")))
    names = codes(trained.data.split(","))
    facts: list[Prose] = [prose("Text: {}, {} tokens of {} documents, {}.", names, tokens, documents, packing)]
    digests = unique(str(digest) for record in records if (digest := record.params.get("text_digest")))
    if digests:
        facts.append(
            prose(f"Digest{'' if len(digests) == 1 else 's'} of the text: {{}}.", joined(", ", map(code, digests)))
        )
    return facts


def _augmentation_facts(trained: TrainingSet) -> list[Prose]:
    facts: list[Prose] = []
    for variant in trained.variants:
        name = str(variant.first.params["augment"])
        meaning = _AUGMENTATIONS.get(name)
        if meaning is not None:
            arguments = variant.first.params.get("augment_args") or {}
            given = ", ".join(f"{key} {value}" for key, value in arguments.items())
            facts.append(f"{variant.augment}: {meaning}{f'; {given}' if given else ''}.")
    return [*dict.fromkeys(facts)]


def _optimiser(params: dict[str, Any]) -> str:
    clip = f"gradients clipped to norm {params['clip']:g}" if params.get("clip") else "gradients not clipped"
    return (
        f"Optimiser: AdamW, β₁ {params['beta1']:g}, β₂ {params['beta2']:g}, weight decay "
        f"{params['weight_decay']:g}, {clip}; {counted(params['steps'], 'step')}. The learning rate rises to "
        f"{format_factor(params['lr'])} in {counted(params['warmup_steps'], 'step')}, "
        f"{_SCHEDULES.get(params['schedule'], params['schedule'])}."
    )


def _loss(params: dict[str, Any]) -> str:
    name = str(params.get("loss_name"))
    given = ", ".join(f"{key} {value}" for key, value in (params.get("loss_args") or {}).items())
    return f"Loss: {_LOSSES.get(name, name)}{f'; {given}' if given else ''}."


def _weights(params: dict[str, Any]) -> str:
    name = str(params.get("train"))
    rank = "" if params.get("lora_rank") is None else f", r {params['lora_rank']}, α {params['lora_alpha']:g}"
    return f"Trained: {_TRAIN.get(name, name)}{rank}."

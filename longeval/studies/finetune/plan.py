"""Turns a request of `finetune` into trainings, one cell and one work each.

Everything that can be wrong is found here, before weights are loaded: models, methods and their configurations are
tried, texts are read and compared with those of the evaluation, memory is estimated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from longeval.data.sources import open_source
from longeval.errors import LongEvalError, check_word, prefix_errors
from longeval.export.encoding import Encoding, encode_for
from longeval.models.adapter import check_peft
from longeval.models.device import process_rank, resolve_device, resolve_dtype
from longeval.models.prepare import PreparedModel, prepare
from longeval.request import StudyRequest
from longeval.rope.build import ALL, MethodName, usable
from longeval.run.cost import model_size
from longeval.run.host import Host
from longeval.run.overview import CellList, Overview, count, format_gib
from longeval.run.setups import method_names
from longeval.run.study import Plan, Tell, Work
from longeval.store.folder import Store
from longeval.store.records import Record
from longeval.studies.finetune import evaluate
from longeval.studies.finetune.augment import Augmentation, make_augmentation
from longeval.studies.finetune.batch import Lengths
from longeval.studies.finetune.cells import FinetuneCell, ModelTraining, make_training
from longeval.studies.finetune.estimate import (
    Launch,
    choose,
    memory_bytes,
    memory_lines,
    step_flops,
    step_seconds,
)
from longeval.studies.finetune.loss import make_loss
from longeval.studies.finetune.processes import check_shared
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.saved import check_config, rope_type, saved_rope_type, training_of
from longeval.studies.finetune.text import TrainingText, read_text
from longeval.studies.finetune.work import Dtype, FinetuneWork
from longeval.values import format_duration, format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetunePlan(Plan):
    """A plan of trainings."""

    cells: tuple[FinetuneCell, ...]
    work: tuple[FinetuneWork, ...]
    models: tuple[PreparedModel, ...]
    dtype: Dtype
    """The precision of products."""

    @property
    def trainings(self) -> list[ModelTraining]:
        """All trainings, in the order in which they are made."""
        return [work.training for work in self.work]

    def stored(self, store: Store, ids: Sequence[str] | None = None) -> dict[str, tuple[Record, ...]]:
        """See `Plan`. A training whose model was removed is made again."""
        found = super(FinetunePlan, self).stored(store, ids)
        for training in self.trainings:
            if training.id in found and training_of(store.local_path(training.saved_as)) != training.id:
                found.pop(training.id, None)
        return found

    def check_folder(self, store: Store) -> None:
        """See `Plan`. Models of other trainings are never overwritten."""
        for training in self.trainings:
            path = store.local_path(training.saved_as)
            if training_of(path) not in (None, training.id):
                raise LongEvalError(
                    f"--out {store.path}: {training.saved_as} is the model of a training with other settings",
                    "Choose another --out, or remove that folder.",
                )
            saved, wanted = saved_rope_type(path), rope_type(training.encoding, stock=self.request.stock)
            if saved not in (None, wanted):
                with_it = "with" if self.request.stock else "without"
                raise LongEvalError(
                    f"--out {store.path}: {training.saved_as} is saved with rope type {saved}, and {with_it} --stock "
                    f"it would be {wanted}",
                    "Choose another --out, or remove that folder to train the model again.",
                )

    def clear(self, store: Store, busy: Container[str]) -> None:
        """See `Plan`. Removes models and checkpoints of these trainings."""
        for training in self.trainings:
            if training.cell.id in busy:
                continue
            for part in (training.saved_as, f"adapters/{training.name}", f"checkpoints/{training.id}"):
                shutil.rmtree(store.local_path(part), ignore_errors=True)

    def before(self) -> list[StudyRequest]:
        """See `Plan`."""
        if not self.request.evaluates or process_rank():
            return []
        found: list[StudyRequest] = []
        for model in self.models:
            encodings = [training.encoding for training in self.trainings if training.model is model]
            found += evaluate.before(self.request, model, encodings, self.dtype)
        return found

    def after(self, store: Store) -> list[StudyRequest]:
        """See `Plan`. Trainings that failed have no model."""
        requests: list[StudyRequest] = []
        for model in self.models if self.request.evaluates and not process_rank() else ():
            folders = [
                f"{store.path}/{training.saved_as}"
                for training in self.trainings
                if training.model is model and training_of(store.local_path(training.saved_as)) == training.id
            ]
            requests += evaluate.after(self.request, model, folders, self.dtype)
        return requests

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """See `Plan`."""
        rows = tuple(
            (
                training.encoding.name.canonical,
                "–" if training.cell.factor is None else f"{training.cell.factor:g}",
                str(training.seed),
                training.saved_as,
                "yes" if training.id in stored else "–",
            )
            for training in self.trainings
        )
        costs = [line for model in self.models for line in self._cost(host, model, left)]
        if self.request.evaluates:
            what = f"perplexity on {', '.join(self.request.eval_data)}"
            tasks = f", {', '.join(self.request.tasks)}" if self.request.tasks else ""
            costs.append(f"Afterwards the trained models are measured as those above: {what}{tasks}.")
        return Overview(
            columns=("method", "s", "seed", "model", "stored"),
            words=frozenset({"method", "model"}),
            sections=(CellList(title=None, rows=rows),),
            costs=tuple(costs),
            title=self._title(),
        )

    def _title(self) -> str:
        request = self.request
        window = format_length(request.window_tokens)
        return f"Trainings: {count(request.steps, 'step')} of {request.batch_size} × {window} tokens"

    def _cost(self, host: Host, model: PreparedModel, left: Sequence[Work]) -> list[str]:
        """What is left to do with a model, what it takes, and the memory of other windows and ways to train."""
        request, size = self.request, host.size(model)
        works = [work for work in left if isinstance(work, FinetuneWork) and work.training.model is model]
        steps = sum(len(work.costs(host)) for work in works)
        per_step = request.batch_size * request.window_tokens
        resources = choose(request, model, size, self.dtype)
        lines = [
            f"{model.name} ({self.dtype}, {model.device}): {count(len(works), 'training')} of "
            f"{request.steps * per_step:,} tokens, {count(steps, 'step')} left with {steps * per_step:,}"
        ]
        if works:
            flops = step_flops(request, model, size, resources)
            duration = steps * step_seconds(request, model, size, self.dtype, resources)
            memory = format_gib(memory_bytes(request, model, size, self.dtype, resources))
            number = Launch.launched().number
            how = f"{count(resources.micro_batch, 'sequence')} in a pass"
            how += ", gradient checkpointing" if resources.checkpointing else ""
            lines.append(
                f"{flops:.2g} operations a step; estimated {format_duration(duration)} and {memory}"
                f"{f' on each of {number} devices' if number > 1 else ''} ({how})"
            )
        return [*lines, *memory_lines(request, model, size, self.dtype, resources)]


def check_folder(requests: Sequence[FinetuneRequest], store: Store) -> None:
    """Raises LongEvalError for a run folder that is not on this machine: models are written into it."""
    if requests:
        store.local_path()


def plan_finetune(request: FinetuneRequest, tell: Tell) -> FinetunePlan:
    """Checks a request and lays out its trainings; raises LongEvalError for anything that is wrong with it."""
    if request.uses_lora:
        check_peft("--lora")
    make_loss(request)
    check_shared(request.batch_size, Launch.launched().number)
    device = resolve_device(request.device)
    if Launch.launched().number > 1 and ":" in request.device:
        raise LongEvalError(
            f"--device {request.device}: is one device, and each process of the launcher needs its own",
            "Leave --device out, or give cuda.",
        )
    dtype: Dtype = "bfloat16" if resolve_dtype(request.dtype, device) == "bfloat16" else "float32"
    names = method_names(request.pe, request.pe_args, request.factor)
    augmentations = _augmentations(request)
    with prefix_errors("--data", unless=("--",)):
        sources = [open_source(name, text_field=request.text_field) for name in request.data]
    models = []
    for name in request.model:
        tell.preparing(f"opening {name}")
        models.append(_prepare(request, name))
    notes = [note for model in models for note in model.notes]
    if ALL in request.pe:
        names, left_out = usable(
            request.pe, request.pe_args, lambda name: [_encoding(request, model, name) for model in models]
        )
        request = request.replaced(pe=[name.canonical for name in names])
        notes += [left_out] if left_out else []
    work: list[FinetuneWork] = []
    for model in models:
        encodings = [_encoding(request, model, name) for name in names]
        for encoding in encodings:
            check_config(model, encoding, stock=request.stock)
        resources = choose(request, model, model_size(model), dtype)
        lengths = Lengths(window=request.window_tokens, target=request.length, native=model.native_length)
        for augmentation in augmentations:
            for method in names:
                augmentation.check(lengths, method)
                notes += augmentation.notes(lengths, method)
            text = read_text(request, sources, model, augmentation, tell)
            notes += text.notes
            if request.evaluates:
                evaluate.check_untrained(request, model, text, tell)
            work += [
                FinetuneWork(training=training, resources=resources, dtype=dtype)
                for training in _trainings(request, model, encodings, augmentation, text, dtype)
            ]
        notes += _notes(model, encodings)
    _check_names(request, work)
    return FinetunePlan(
        request=request,
        cells=tuple(one.training.cell for one in work),
        work=tuple(work),
        notes=tuple(dict.fromkeys(notes)),
        models=tuple(models),
        dtype=dtype,
    )


def _augmentations(request: FinetuneRequest) -> list[Augmentation]:
    """The augmentations, whose parameters must not be ignored."""
    for name in request.augment_args:
        check_word("--augment-arg", name, request.augment)
    return [make_augmentation(name, request.augment_args.get(name, {})) for name in request.augment]


def _prepare(request: FinetuneRequest, name: str) -> PreparedModel:
    """Opens a model whose weights can be trained."""
    model = prepare(
        name,
        revision=request.revision,
        native=request.native,
        scale_from=request.scale_from,
        layers=request.layers,
        bos=request.bos,
        dtype="float32",
        device=request.device,
        attn=request.attn,
    )
    if model.quantisation is not None and not model.quantisation.dequantised:
        raise LongEvalError(
            f"--model {name}: its weights are quantised, and training needs plain ones",
            "Give the model in float32, bfloat16 or float16, or as a GGUF that can be dequantised.",
        )
    return model


def _encoding(request: FinetuneRequest, model: PreparedModel, name: MethodName) -> Encoding:
    """A method on a model, whose table must be the same for all lengths, as a configuration holds one."""
    if model.rope.length_dependent(name):
        static = name.canonical.replace("dynamic_", "")
        raise LongEvalError(
            f"--pe {name.canonical}: its table depends on the length of each sequence, and a trained model holds one",
            f"Train with {static}, the same formula for one length."
            if static != name.canonical
            else "Train with another method, such as resonance_yarn.",
        )
    arguments = name.arguments(request.pe_args)
    return encode_for(model.rope, name, request.length, factor=request.factor, arguments=arguments)


def _trainings(
    request: FinetuneRequest,
    model: PreparedModel,
    encodings: Sequence[Encoding],
    augmentation: Augmentation,
    text: TrainingText,
    dtype: Dtype,
) -> Iterator[ModelTraining]:
    """The trainings of one model and augmentation, method by method."""
    for encoding in encodings:
        for seed in request.seed_values():
            parts = [
                os.path.basename(model.name.rstrip("/")) if len(request.model) > 1 else "",
                encoding.name.canonical,
                augmentation.name if len(request.augment) > 1 or augmentation.name != "none" else "",
                f"seed{seed}" if request.seeds > 1 else "",
            ]
            name = "-".join(filter(None, parts))
            yield make_training(request, model, encoding, augmentation, text, seed, name=name, dtype=dtype)


def _check_names(request: FinetuneRequest, work: Sequence[FinetuneWork]) -> None:
    """Raises LongEvalError if models of two trainings would be saved in the same folder."""
    by_folder: dict[str, str] = {}
    for training in (one.training for one in work):
        other = by_folder.setdefault(training.saved_as, training.model.name)
        if other != training.model.name:
            raise LongEvalError(
                f"--model {','.join(request.model)}: what is trained from {other} and from {training.model.name} would "
                f"have the same name, {training.saved_as}",
                "Train them one by one, each into its own --out.",
            )


def _notes(model: PreparedModel, encodings: Sequence[Encoding]) -> list[str]:
    """What a user should know of the methods before anything starts."""
    stretching = [encoding for encoding in encodings if encoding.name.method.uses_factor]
    idle = [encoding.name.canonical for encoding in stretching if encoding.factor == 1.0]
    native = format_length(model.native_length)
    return [f"{', '.join(idle)}: s = 1, nothing is stretched (the native length is {native})"] if idle else []

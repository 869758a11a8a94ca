"""The processes that train together: one, or those that `accelerate launch` started, with DDP or FSDP2.

Each process takes its share of a batch's sequences. DDP keeps whole weights in every process. FSDP2 keeps a part of
each weight, and of its gradient and moments, in every process, and gathers a layer's weights where they are used.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from longeval.errors import LongEvalError
from longeval.studies.finetune.batch import Batch


def check_shared(batch_size: int, number: int) -> None:
    """Raises LongEvalError unless so many processes can share a batch's sequences equally."""
    if batch_size % number:
        raise LongEvalError(
            f"--batch-size {batch_size}: can't be shared equally by {number} processes",
            f"Give a multiple of {number}.",
        )


class Processes:
    """This process among those that train together; without a launcher it is alone.

    Raises:
        LongEvalError: The launcher set up something else than DDP or FSDP2.
    """

    def __init__(self) -> None:
        self._accelerator: Any = None
        self._fsdp: Any = None
        """accelerate's settings of FSDP2, where weights are sharded."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        from accelerate import Accelerator
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs

        # The others wait while the main process measures the model before its training.
        patient = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7))
        self._accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",  # the training casts by itself
            kwargs_handlers=[patient],
        )
        kind = self._accelerator.distributed_type
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":  # accelerate ignores it on CPUs
            self._fsdp = FullyShardedDataParallelPlugin()
        known = (DistributedType.MULTI_GPU, DistributedType.MULTI_XPU, DistributedType.MULTI_CPU, DistributedType.FSDP)
        if kind not in known or (self._fsdp is not None and self._fsdp.fsdp_version != 2):
            raise LongEvalError(
                f"accelerate launch: {kind.value} of this version is not supported here",
                "Use DDP (--multi_gpu) or FSDP2 (--use_fsdp --fsdp_version 2).",
            )

    @property
    def number(self) -> int:
        """How many processes there are."""
        return 1 if self._accelerator is None else int(self._accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self._accelerator is None else int(self._accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self._fsdp is not None

    def device(self, asked: str) -> str:
        """The device of this process, where the user asked for `asked`: each process of a launcher has its own."""
        return asked if self._accelerator is None else str(self._accelerator.device)

    def passes(self, batch: Batch, size: int) -> list[npt.NDArray[np.int64]]:
        """The places in a batch of this process's sequences, for each pass of at most `size` sequences."""
        own = np.arange(self.rank, len(batch.tokens_BT), self.number)
        return [own[start : start + size] for start in range(0, len(own), size)]

    def wrap(self, module: nn.Module, layers: frozenset[str]) -> Any:
        """Prepares a module for training by all processes; its forward must be called from then on.

        Args:
            module: The model with its loss, with gradients switched on for what is trained.
            layers: Names of the classes of its layers, which FSDP2 gathers one at a time.
        """
        if self._accelerator is None:
            return module
        if not self.is_sharded:
            device = self._accelerator.device
            places = None if device.type == "cpu" else [device]
            return nn.parallel.DistributedDataParallel(
                module, device_ids=places, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        settings: dict[str, Any] = {
            "offload_policy": self._fsdp.cpu_offload,
            "mp_policy": self._fsdp.mixed_precision_policy or MixedPrecisionPolicy(),
            "mesh": init_device_mesh(self._accelerator.device.type, (self.number,)),
        }
        for layer in [part for part in module.modules() if type(part).__name__ in layers]:
            fully_shard(layer, reshard_after_forward=self._fsdp.reshard_after_forward, **settings)
        return fully_shard(module, **settings)

    def accumulating(self, wrapped: Any, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """The context of one pass of a step: processes exchange gradients in the last one only."""
        if self.is_sharded:
            wrapped.set_requires_gradient_sync(last)
        elif self._accelerator is not None and not last:
            no_sync: contextlib.AbstractContextManager[None] = wrapped.no_sync()
            return no_sync
        return contextlib.nullcontext()

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self._accelerator is not None:
            dist.all_reduce(sums)
        return sums

    def from_main(self, value: Any) -> Any:
        """The main process's value of a small object."""
        if self._accelerator is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors from the parts of all processes, by name; empty in all but the main process.

        All processes must call it with the same names in the same order. What is whole already is not copied.
        """
        found = {}
        for name, tensor in tensors.items():
            whole = tensor.detach()
            if isinstance(whole, DTensor):
                whole = whole.full_tensor()
                whole = whole.cpu() if self.is_main else whole
            if self.is_main:
                found[name] = whole.contiguous()
        return found

    @torch.no_grad()
    def fill(self, tensor: torch.Tensor, whole: torch.Tensor | None) -> None:
        """Fills a tensor, or this process's part of it, from the whole one that the main process has."""
        if isinstance(tensor, DTensor):
            source = torch.empty(tensor.shape, dtype=tensor.dtype) if whole is None else whole
            part = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(part)
            return
        if whole is not None:
            tensor.copy_(whole)
        if self._accelerator is not None:
            dist.broadcast(tensor, src=0)

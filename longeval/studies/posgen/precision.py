"""The precision of matrix products: float32 as IEEE has it, TF32 or bfloat16 where asked. Weights stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from longeval.errors import LongEvalError

Precision = Literal["float32", "tf32", "bf16"]


def check_precision(precision: str, device: str) -> None:
    """Raises LongEvalError for an unknown precision, or TF32 where there is none: it would silently be float32."""
    if precision not in get_args(Precision):
        raise LongEvalError(f"--precision {precision}: unknown", f"Use one of {', '.join(get_args(Precision))}.")
    if precision == "tf32" and not device.startswith("cuda"):
        raise LongEvalError(
            f"--tf32: needs an NVIDIA GPU, the device is {device}", "Leave it out: float32 is the default."
        )


def product_dtype(precision: Precision) -> torch.dtype | None:
    """What `model.forward` casts to for its products; None leaves the weights' own."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Lets float32 products be TF32 or not, whatever the process had, and puts that back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""bfloat16 in numpy, which has no such type: float32 values rounded to the nearest one, ties to even.

The same rounding as torch's `.to(torch.bfloat16)`: the upper 16 bits of a float32, with 8 significant bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LOWER_HALF = np.uint32(16)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Bit patterns of the nearest bfloat16 numbers, 0 … 65535, in the shape of `values`, which must be finite."""
    bits = values.view(np.uint32)
    # Just under a half of the last bit that stays, or exactly a half where that bit is odd: ties go to even.
    return (bits + np.uint32(0x7FFF) + ((bits >> _LOWER_HALF) & np.uint32(1))) >> _LOWER_HALF


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 numbers, held as float32, in the shape of `values`, which must be finite."""
    return (bfloat16_bits(values) << _LOWER_HALF).view(np.float32)

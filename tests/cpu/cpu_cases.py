"""What the tests of the CPU kernels share: sizes that reach every branch, and how memory holds the numbers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from numba_pool import cpu
from numba_pool.dlpack import FLAT_TENSORS

# N, C, H, W, oH, oW. Every case is computed in both directions, contiguous and channels_last.
CASES = {
    # Windows that are runs of memory.
    "one element": (1, 1, 1, 1, 1, 1),
    "runs of a vector": (3, 5, 4, 4, 1, 1),
    "runs of a vector and an element": (2, 3, 1, 17, 1, 1),
    "runs of wide vectors": (2, 3, 8, 24, 1, 1),
    "runs of vectors of both kinds and some elements": (2, 3, 13, 11, 1, 1),
    "runs too short for a vector": (2, 3, 3, 5, 1, 1),
    "tiny planes that are runs": (5, 300, 2, 2, 1, 1),
    "runs of several rows": (2, 3, 12, 20, 4, 1),
    "a run as long as a part": (1, 2, 4, cpu.PART // 4, 1, 1),
    "a run longer by an element": (1, 2, 1, cpu.PART + 1, 1, 1),
    "a run of a prime length, in parts": (1, 1, 2 * cpu.PART + 17, 1, 1, 1),
    "runs in equal parts": (1, 2, 40, cpu.PART // 8, 1, 1),
    "long runs": (1, 2, 256, 256, 1, 1),
    # Planes in lanes, as many as fit a vector and one more or less; in channels_last, as many channels of a pixel.
    **{f"{n} planes": (1, n, 9, 11, 4, 5) for n in (15, 16, 17, 63, 64, 65, 257)},
    "small planes, two widths and heights": (3, 50, 8, 8, 5, 5),
    "small planes, equal windows": (3, 50, 8, 6, 4, 2),
    "small planes, larger results": (3, 23, 5, 4, 11, 9),
    "planes several deep": (1, 1000, 2, 3, 2, 2),
    "groups of planes several deep": (1, 2100, 3, 4, 2, 3),
    "the largest of the small planes": (1, 20, 32, 31, 33, 32),
    "beyond the small planes": (1, 20, 32, 31, 33, 33),
    "small planes of large windows": (1, 20, 32, 30, 7, 6),
    "small planes, windows as large as may be": (1, 20, 32, 30, 8, 6),
    "a small plane for one element": (2, 20, 1, 1, 7, 8),
    # Lines in lanes.
    "equal windows": (2, 3, 12, 8, 3, 2),
    "equal wide windows": (1, 2, 36, 60, 2, 3),
    "windows that overlap": (1, 3, 7, 10, 4, 3),
    "primes": (2, 5, 31, 29, 7, 11),
    "one less": (2, 3, 18, 17, 17, 16),
    "one output row": (2, 17, 9, 20, 1, 7),
    "one output column": (2, 3, 20, 9, 7, 1),
    "one input row": (3, 4, 1, 50, 1, 7),
    "one input column": (3, 4, 50, 1, 7, 1),
    "one row to several": (2, 3, 1, 64, 2, 2),
    "windows over 64": (1, 2, 150, 331, 2, 3),
    "larger than the input": (2, 3, 3, 5, 7, 16),
    "larger and smaller": (2, 3, 5, 40, 9, 6),
    "lines that repeat": (2, 3, 4, 6, 12, 18),
    "one line for hundreds": (1, 2, 1, 2, 400, 50),
    "one element for many": (1, 2, 1, 1, 40, 33),
    **{f"lines of {oW} results": (2, 17, 8, 64, 2, oW) for oW in (1, 2, 3, 15, 17, 65)},
    "groups of lines": (2, 8, 64, 65, 13, 7),
    "lines several deep": (2, 3, 100, 10, 40, 7),
    "groups of lines several deep": (3, 5, 100, 10, 50, 7),
    "blocks of columns": (1, 2, 5, 3000, 2, 1100),
    "blocks of columns, larger results": (1, 2, 3, 1100, 5, 2500),
    "blocks of columns, groups of lines": (1, 9, 40, 1500, 20, 96),
    "blocks of one column": (1, 2, 3, 5000, 2, 2),
    "blocks of columns, few channels": (1, 3, 4, 700, 3, 90),
    "blocks of columns, many of the few channels": (1, 15, 4, 90, 3, 70),
    "tall windows in parts": (1, 3, cpu.PART + 3, 3, 2, 2),
    "large windows in parts": (1, 2, 300, 41, 2, 3),
    "parts of unequal size": (1, 2, 101, 211, 1, 2),
    "parts of shares": (1, 2, 3, 2, cpu.PART + 5, 5),
    "tall and narrow": (1, 2, 2 * cpu.PART + 3, 1, 2, 1),
    "low and wide": (1, 2, 2, 2 * cpu.PART + 809, 1, 2),
    "one row of very wide windows": (1, 1, 1, 200_000, 1, 2),
    "few rows of very wide windows": (1, 1, 3, 200_000, 2, 2),
    "enough for threads": (2, 8, 64, 48, 9, 7),
    **{f"{C} channels": (1, C, 5, 9, 3, 4) for C in range(2, 15)},
    "few channels, parts": (1, 3, 2 * cpu.PART_ROWS + 3, 9, 1, 4),
    "few channels, lines that repeat": (2, 7, 3, 4, 9, 6),
    # Pixels: at least sixteen channels, or columns that are kept.
    **{f"pixels of {C} channels": (2, C, 6, 10, 4, 5) for C in (16, 17, 24, 64, 65, 100)},
    "pixels of very many channels": (1, 2100, 2, 3, 3, 2),
    "pixels, few to a window": (2, 24, 9, 11, 4, 5),
    "pixels, wide windows": (2, 17, 9, 40, 3, 4),
    "pixels, rows first": (2, 20, 30, 12, 4, 5),
    "pixels, larger results": (1, 40, 3, 5, 7, 9),
    "pixels, lines that repeat": (1, 37, 2, 3, 8, 20),
    "a row of pixels": (2, 17, 1, 64, 1, 8),
    "a column of pixels": (2, 17, 64, 1, 8, 1),
    "a pixel for a whole plane": (2, 40, 1, 1, 45, 30),
    "pixels, global": (2, 24, 12, 11, 1, 1),
    "pixels, global, in parts": (1, 20, 60, 50, 1, 1),
    "pixels, rows first, in parts": (1, 17, 700, 5, 2, 2),
    "pixels, wide windows, in parts": (1, 16, 300, 40, 2, 2),
    "columns that are kept": (2, 3, 19, 70, 4, 70),
    "columns that are kept, as many as lanes": (2, 1, 19, 16, 4, 16),
    "columns that are kept, larger results": (2, 3, 5, 24, 7, 24),
    "columns that are kept, in parts": (1, 2, 3 * cpu.PART_PIXELS + 9, 64, 1, 64),
    "too few columns to keep": (2, 1, 19, 15, 4, 15),
}


class Encoding(NamedTuple):
    """How memory holds numbers of a type, and how finely; half types are held as integers of the same bits."""

    dtype: torch.dtype
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    epsilon: float
    tiny: float
    exact: type = np.float64  # what the reference computes in


ENCODINGS = {
    "float32": Encoding(torch.float32, lambda x: x.astype(np.float32), lambda x: x.astype(float), 2.0**-23, 2.0**-149),
    "float64": Encoding(
        torch.float64, lambda x: x.astype(float), lambda x: x.copy(), 2.0**-52, 0.0, exact=np.longdouble
    ),
    "float16": Encoding(
        torch.float16,
        lambda x: x.astype(np.float16).view(np.int16),
        lambda bits: bits.view(np.float16).astype(float),
        2.0**-10,
        2.0**-24,
    ),
    "bfloat16": Encoding(
        torch.bfloat16,
        # Cutting the low half off is rounding enough: what is left is the input.
        lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        lambda bits: (bits.astype(np.uint32) << 16).view(np.float32).astype(float),
        2.0**-7,
        2.0**-133,
    ),
}

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int16": torch.float16, "uint16": torch.bfloat16}


def launch(direction, src, dst, planes, H, W, oH, oW, C, threads):
    """Run a direction of the CPU kernels, `cpu.forward` or `cpu.backward`, on the tensors that flat arrays hold."""
    dtype = _DTYPES[src.dtype.name]
    tensors = (torch.from_numpy(array).view(dtype) for array in (src, dst))
    direction(*tensors, FLAT_TENSORS[dtype], planes, H, W, oH, oW, C, threads)


def in_memory_order(array, channels_last):
    """Return an NCHW array in the order of memory, and how many planes and channels the kernels are told."""
    N, C = array.shape[:2]
    return (array.transpose(0, 2, 3, 1), N, C) if channels_last else (array, N * C, 1)


def directions(case):
    """Return for both directions its name, the height and width that it reads, and those that it writes."""
    H, W, oH, oW = case[2:]
    return ("forward", (H, W), (oH, oW)), ("backward", (oH, oW), (H, W))

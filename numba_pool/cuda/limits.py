"""What a block of threads has, and how large elements are: the integers on which the plan and the kernels agree."""

from typing import NamedTuple

# The widest load or store of a thread on devices before compute capability 10.
PACK_BYTES = 16

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class BlockLimits(NamedTuple):
    """What a block has, or may take.

    Attributes
    ----------
    threads : int
        Its threads.
    shared_bytes : int
        Bytes of shared memory for elements and their sums.
    lines, columns : int
        Entries of its tables of lines and of columns.
    part_elements : int
        The most elements of a window that it sums; a larger window is cut into parts.
    warp : int
        Threads that copy a row together.
    """

    threads: int
    shared_bytes: int
    lines: int
    columns: int
    part_elements: int
    warp: int


# 36 KB of sums and 10 KB of tables: four blocks of 256 threads share a multiprocessor of 228 KB (H100, H200), three one
# of 164 KB (A100).
LIMITS = BlockLimits(threads=256, shared_bytes=36 * 1024, lines=256, columns=512, part_elements=32768, warp=32)


def full_width(dtype):
    """Return how many elements of `dtype` fill a pack."""
    return PACK_BYTES // ITEMSIZE[dtype]


def sum_dtype(dtype):
    """Return the type in which elements of `dtype` are summed."""
    return "float64" if dtype == "float64" else "float32"


def shared_size(dtype, limits):
    """Return how many sums of `dtype` fit in a block's shared memory."""
    return limits.shared_bytes // ITEMSIZE[sum_dtype(dtype)]


def strip_columns(dtype, limits):
    """Return how many columns of the source a block of ``strips`` reaches; the first may lie anywhere in its pack."""
    return (limits.threads - 1) * full_width(dtype) + 1

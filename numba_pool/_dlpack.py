"""The bridge between torch and NumPy: DLPack, one memory for two libraries.

The only room that knows what DLPack cannot say: that a tensor requires a gradient or has its negative bit set, and
bfloat16.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack


class _DLTensor(ctypes.Structure):
    """The head of a DLPack capsule: ``DLTensor`` of ``dlpack.h``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

# What memory holds, as NumPy and the kernels see it: half types travel as 16-bit integers, told apart by their sign.
ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.int16),
    torch.bfloat16: np.dtype(np.uint16),
}

# So their capsules say "integers" on the way to NumPy, which does not know bfloat16, and the truth on the way back.
# DLPack's dtypes are a code, here with 16 bits and one lane.
_SHORT = 16 << 8 | 1 << 16
_TO_NUMPY = {torch.float16: 0 | _SHORT, torch.bfloat16: 1 | _SHORT}
_TO_TORCH = {torch.float16: 2 | _SHORT, torch.bfloat16: 4 | _SHORT}

# NumPy before 2.4 leaves out the strides of C-contiguous arrays, which tell the memory formats apart where both are the
# same memory.
_LEAVES_STRIDES_OUT = np.lib.NumpyVersion(np.__version__) < "2.4.0"


def _head(capsule):
    return _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))


# The core of `from_dlpack`, which first asks of what kind its argument is.
_from_capsule = getattr(torch._C, "_from_dlpack", from_dlpack)


class _Exporter:
    """Hands a tensor's memory to NumPy: what ``Tensor.__dlpack__`` does, less the checks that `as_array`'s callers
    made."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor

    # The arguments by name, which costs less than a dictionary of them.
    def __dlpack__(self, *, stream=None, dl_device=None, copy=None, max_version=None):
        capsule = to_dlpack(self.tensor)
        dtype = _TO_NUMPY.get(self.tensor.dtype)
        if dtype is not None:
            _head(capsule).dtype = dtype
        return capsule

    def __dlpack_device__(self):
        return (1, 0)  # kDLCPU


def as_array(tensor: Tensor) -> np.ndarray:
    """Return the memory of a CPU tensor as a flat array, without a copy, in the order of memory.

    Float16 comes as int16 and bfloat16 as uint16.
    The tensor must be contiguous or channels_last, with its negative bit resolved.
    """
    return np.from_dlpack(_Exporter(tensor)).ravel("K")


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, np.ndarray]:
    """Return a new tensor, and its memory as a flat array.

    NumPy allocates: it asks for huge pages where the array is large, and torch does not; a large result is written
    several times faster into huge pages.

    Raises
    ------
    RuntimeError
        If there is not so much memory, as torch's own allocator does.
    """
    in_memory = (shape[0], *shape[2:], shape[1]) if channels_last else shape
    try:
        array = np.empty(in_memory, ARRAY_DTYPES[dtype])
    except (MemoryError, ValueError) as error:
        raise RuntimeError(f"adaptive_avg_pool2d: cannot allocate a result of shape {list(shape)}: {error}") from None
    memory = array.ravel()
    if channels_last:
        array = array.transpose(0, 3, 1, 2)
    capsule = array.__dlpack__()
    if dtype in _TO_TORCH:
        _head(capsule).dtype = _TO_TORCH[dtype]
    if channels_last and _LEAVES_STRIDES_OUT and array.flags.c_contiguous:
        _, C, H, W = shape
        strides = (ctypes.c_int64 * 4)(H * W * C, 1, W * C, C)
        _head(capsule).strides = ctypes.addressof(strides)
    return _from_capsule(capsule), memory


def address(tensor: Tensor) -> int:
    """Return where the memory of `tensor` begins, on its device, as its DLPack capsule says."""
    capsule = to_dlpack(tensor)
    head = _head(capsule)
    return head.data + head.byte_offset

"""The bridge between torch and compiled code: DLPack, one memory for both.

The only module that knows how the four dtypes travel, two of which NumPy or Numba do not have.
What DLPack cannot say, that a tensor requires a gradient or has its negative bit set, its callers know.
"""

import ctypes
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import NativeValue, models, register_model, unbox
from numba.np.arrayobj import populate_array
from torch import Tensor
from torch.utils.dlpack import to_dlpack


class DLTensor(ctypes.Structure):
    """What DLPack says of a tensor: ``DLTensor`` of ``dlpack.h``."""

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


class _ExchangeAPI(ctypes.Structure):
    """What libraries of DLPack 1.3 and later offer to compiled code: ``DLPackExchangeAPI`` of ``dlpack.h``."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("prev_api", ctypes.c_void_p),
        ("managed_tensor_allocator", ctypes.c_void_p),
        ("managed_tensor_from_py_object_no_sync", ctypes.c_void_p),
        ("managed_tensor_to_py_object_no_sync", ctypes.c_void_p),
        ("dltensor_from_py_object_no_sync", ctypes.c_void_p),
        ("current_work_stream", ctypes.c_void_p),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _find_api():
    """Return torch's table of such functions, where it has one (since 2.10)."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    api = capsule and _ExchangeAPI.from_address(_capsule_pointer(capsule, b"dlpack_exchange_api"))
    return api if api and api.major == 1 else None


_api = _find_api()

# A C function that fills a `DLTensor` from a tensor, and returns 0 if it could.
_Describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)


@_Describe
def _describe_by_capsule(tensor, head_address):
    """Fill the head at an address from a capsule: the way of torch before 2.10, and several times slower."""
    try:
        capsule = to_dlpack(tensor)
        ctypes.memmove(head_address, _capsule_pointer(capsule, b"dltensor"), ctypes.sizeof(DLTensor))
        # The capsule will free its sizes and strides. A flat tensor needs only how many elements there are: a list of
        # one size, kept in the head itself where the strides were.
        head = DLTensor.from_address(head_address)
        head.ndim, head.shape, head.strides = 1, head_address + DLTensor.strides.offset, tensor.numel()
    except BaseException:  # Ctrl-C too: ctypes would only print it, and the caller take the head for filled
        return -1
    return 0


_describe = _describe_by_capsule
if _api is not None and _api.dltensor_from_py_object_no_sync:
    _describe = _Describe(_api.dltensor_from_py_object_no_sync)

# What memory holds, as NumPy and the kernels see it: half types travel as 16-bit integers, told apart by their sign.
_ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.int16),
    torch.bfloat16: np.dtype(np.uint16),
}

# And as DLPack calls it: a code (kDLFloat, kDLBfloat), the bits and one lane.
DLPACK_DTYPES = {
    torch.float32: 2 | 32 << 8 | 1 << 16,
    torch.float64: 2 | 64 << 8 | 1 << 16,
    torch.float16: 2 | 16 << 8 | 1 << 16,
    torch.bfloat16: 4 | 16 << 8 | 1 << 16,
}


class FlatTensor(types.Array):
    """Numba's type of a CPU tensor that a compiled function sees as a flat array, in the order of memory.

    The tensor must be contiguous or channels_last, with its negative bit resolved.
    """

    def __init__(self, dtype: torch.dtype):
        self.tensor_dtype = dtype
        super().__init__(from_dtype(_ARRAY_DTYPES[dtype]), 1, "C", name=f"FlatTensor({dtype})")

    @property
    def of_sums(self) -> "FlatTensor":
        """The type that sums of such elements are kept in."""
        return FLAT_TENSORS[torch.float64 if self.tensor_dtype is torch.float64 else torch.float32]

    def empty(self, size: int) -> Tensor:
        """Return a new tensor of this type, with so many elements."""
        return torch.empty(size, dtype=self.tensor_dtype)


register_model(FlatTensor)(models.ArrayModel)

FLAT_TENSORS = {dtype: FlatTensor(dtype) for dtype in _ARRAY_DTYPES}

# Compiled code that is kept on disk finds the function by this name, as its address is another in each process.
_DESCRIBE = "numba_pool_describe"
llvmlite.binding.add_symbol(_DESCRIBE, ctypes.cast(_describe, ctypes.c_void_p).value)

_int32, _int64 = ir.IntType(32), ir.IntType(64)
_pointer, _sizes = ir.IntType(8).as_pointer(), _int64.as_pointer()
_DLTENSOR = ir.LiteralStructType([_pointer, _int32, _int32, _int32, _int32, _sizes, _sizes, _int64])


@unbox(FlatTensor)
def _unbox_flat_tensor(typ, tensor, c):
    """Write the code that makes a tensor an argument."""
    builder = c.builder
    head = cgutils.alloca_once(builder, _DLTENSOR, zfill=True)
    function = ir.FunctionType(_int32, [tensor.type, head.type])
    status = builder.call(cgutils.get_or_insert_function(builder.module, function, _DESCRIBE), [tensor, head])
    fields = builder.load(head)
    data, _, _, ndim, dtype, shape, _, byte_offset = (
        builder.extract_value(fields, i) for i in range(len(_DLTENSOR.elements))
    )
    fits = builder.icmp_unsigned("==", dtype, _int32(DLPACK_DTYPES[typ.tensor_dtype]))
    for needed in (cgutils.is_null(builder, status), cgutils.is_not_null(builder, data)):
        fits = builder.and_(fits, needed)

    size = cgutils.alloca_once_value(builder, _int64(1))
    with cgutils.for_range(builder, builder.select(fits, builder.zext(ndim, _int64), _int64(0))) as loop:
        length = builder.load(builder.gep(shape, [loop.index]))
        builder.store(builder.mul(builder.load(size), length), size)

    array = c.context.make_array(typ)(c.context, builder)
    itemsize = _int64(typ.dtype.bitwidth // 8)
    data = builder.bitcast(builder.gep(data, [byte_offset]), array.data.type)
    populate_array(array, data, [builder.load(size)], [itemsize], itemsize, meminfo=None)
    unfit = builder.not_(fits)
    # Torch's own exception says more, where there is one.
    with builder.if_then(unfit, likely=False), builder.if_then(cgutils.is_null(builder, c.pyapi.err_occurred())):
        c.pyapi.err_set_string("PyExc_TypeError", f"expected a tensor of {typ.tensor_dtype} that has memory")
    return NativeValue(array._getvalue(), is_error=unfit)


def address(tensor: Tensor) -> int:
    """Return where the memory of `tensor` begins, on its device, as DLPack says."""
    head = DLTensor()
    if _describe(tensor, ctypes.addressof(head)):
        raise RuntimeError(f"numba_pool: DLPack cannot describe a tensor of {tensor.dtype} on {tensor.device}")
    return head.data + head.byte_offset

"""The bridge between torch and compiled code: DLPack, one memory for both of them.

The only room that knows how the four dtypes travel, two of which NumPy or Numba do not have.
What DLPack cannot say, that a tensor requires a gradient or has its negative bit set, its callers know.
"""

import ctypes
import math
import mmap
from functools import cache

import llvmlite.binding
import torch
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import NativeValue, box, models, register_model, unbox
from numba.np.arrayobj import populate_array
from torch import Tensor

from ._cache import keep_compiled


class _DLTensor(ctypes.Structure):
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


class _ManagedTensor(ctypes.Structure):
    """A tensor that changes hands, and the function that frees it: ``DLManagedTensorVersioned`` of ``dlpack.h``."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _DLTensor),
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


def _exchange_api():
    """Return torch's table of C functions, in the version whose fields are known here."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    address = pointer_of(capsule, b"dlpack_exchange_api") if capsule is not None else None
    while address:
        api = _ExchangeAPI.from_address(address)
        if api.major == 1:
            return api
        address = api.prev_api
    raise ImportError(f"numba_pool needs version 1 of DLPack's exchange API, which torch {torch.__version__} has not")


_api = _exchange_api()

# A C function that fills a `_DLTensor` from a tensor, and returns 0 if it could.
_describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(_api.dltensor_from_py_object_no_sync)


def _address_of(function):
    return ctypes.cast(function, ctypes.c_void_p).value


# Compiled code that is kept on disk finds these by name, as their addresses are others in each process.
_DESCRIBE, _TO_TENSOR, _ALLOCATE = "numba_pool_describe", "numba_pool_to_tensor", "numba_pool_allocate"
llvmlite.binding.add_symbol(_DESCRIBE, _api.dltensor_from_py_object_no_sync)
llvmlite.binding.add_symbol(_TO_TENSOR, _api.managed_tensor_to_py_object_no_sync)
llvmlite.binding.add_symbol(_ALLOCATE, _address_of(ctypes.pythonapi.PyMem_RawMalloc))

# What memory holds, as the kernels see it: half types travel as 16-bit integers, told apart by their sign.
_ELEMENTS: dict[torch.dtype, types.Type] = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.float16: types.int16,
    torch.bfloat16: types.uint16,
}

# And as DLPack calls it: a code (kDLFloat, kDLBfloat), the bits and one lane.
_DLPACK_DTYPES = {
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
        super().__init__(_ELEMENTS[dtype], 1, "C", name=f"FlatTensor({dtype})")

    @property
    def of_sums(self) -> "FlatTensor":
        """The type that sums of such elements are kept in."""
        return FLAT_TENSORS[torch.float64 if self.tensor_dtype is torch.float64 else torch.float32]

    def empty(self, size: int) -> Tensor:
        """Return a new tensor of this type, with so many elements."""
        return Blank((size,), self.tensor_dtype).empty()


register_model(FlatTensor)(models.ArrayModel)

FLAT_TENSORS = {dtype: FlatTensor(dtype) for dtype in _ELEMENTS}

_int32, _int64 = ir.IntType(32), ir.IntType(64)
_pointer, _sizes = ir.IntType(8).as_pointer(), _int64.as_pointer()
_HEAD = ir.LiteralStructType([_pointer, _int32, _int32, _int32, _int32, _sizes, _sizes, _int64])
_MANAGED = ir.LiteralStructType([_int32, _int32, _pointer, _pointer, _int64, _HEAD])


@unbox(FlatTensor)
def _unbox_flat_tensor(typ, tensor, c):
    """Write the code that makes a tensor an argument: about 0.1 us, where ``np.from_dlpack`` takes 2."""
    builder = c.builder
    head = cgutils.alloca_once(builder, _HEAD, zfill=True)
    describe = ir.FunctionType(_int32, [tensor.type, head.type])
    status = builder.call(cgutils.get_or_insert_function(builder.module, describe, _DESCRIBE), [tensor, head])
    fields = builder.load(head)
    data, _, _, ndim, dtype, shape, _, byte_offset = (
        builder.extract_value(fields, i) for i in range(len(_HEAD.elements))
    )
    fits = builder.icmp_unsigned("==", dtype, _int32(_DLPACK_DTYPES[typ.tensor_dtype]))
    for needed in (cgutils.is_null(builder, status), cgutils.is_not_null(builder, data)):
        fits = builder.and_(fits, needed)

    size = cgutils.alloca_once_value(builder, _int64(1))
    with cgutils.for_range(builder, builder.select(fits, builder.zext(ndim, _int64), _int64(0))) as loop:
        length = builder.load(builder.gep(shape, [loop.index]))
        builder.store(builder.mul(builder.load(size), length), size)

    array = c.context.make_array(typ)(c.context, builder)
    begin = builder.bitcast(builder.gep(data, [byte_offset]), array.data.type)
    itemsize = _int64(typ.dtype.bitwidth // 8)
    populate_array(array, begin, [builder.load(size)], [itemsize], itemsize, meminfo=None)

    unfit = builder.not_(fits)
    # Torch's own exception says more, where there is one.
    with builder.if_then(unfit, likely=False), builder.if_then(cgutils.is_null(builder, c.pyapi.err_occurred())):
        c.pyapi.err_set_string("PyExc_TypeError", f"expected a tensor of {typ.tensor_dtype} that has memory")
    return NativeValue(array._getvalue(), is_error=unfit)


class _NewTensor(types.Type):
    """Numba's type of a `_ManagedTensor`: taken from the address of a pattern, and given back as a tensor."""


_new_tensor = _NewTensor("NewTensor")
register_model(_NewTensor)(models.OpaqueModel)

# Tensors of torch's own are aligned to as many bytes.
_ALIGNMENT = 64


class _Pattern(ctypes.Structure):
    """What a new tensor is to be, and how many bytes to allocate for it and for its head."""

    _fields_ = [("managed", _ManagedTensor), ("size", ctypes.c_size_t)]


@unbox(_NewTensor)
def _unbox_new_tensor(typ, address, c):
    """Write the code that allocates a tensor: a block of memory, which begins with a copy of the pattern."""
    builder = c.builder
    pattern = builder.bitcast(c.pyapi.long_as_voidptr(address), ir.LiteralStructType([_MANAGED, _int64]).as_pointer())
    managed, size = (builder.extract_value(builder.load(pattern), i) for i in range(2))
    allocate = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_pointer, [_int64]), _ALLOCATE)
    block = builder.call(allocate, [size])
    failed = cgutils.is_null(builder, block)
    with builder.if_else(failed) as (then, otherwise):
        with then:
            c.pyapi.err_set_none("PyExc_MemoryError")
        with otherwise:
            behind = builder.add(
                builder.ptrtoint(block, _int64), _int64(ctypes.sizeof(_ManagedTensor) + _ALIGNMENT - 1)
            )
            data = builder.inttoptr(builder.and_(behind, _int64(-_ALIGNMENT)), _pointer)
            builder.store(builder.insert_value(managed, data, (5, 0)), builder.bitcast(block, _MANAGED.as_pointer()))
    return NativeValue(block, is_error=failed)


@box(_NewTensor)
def _box_new_tensor(typ, managed, c):
    """Write the code that hands a tensor over to torch."""
    builder = c.builder
    tensor = cgutils.alloca_once(builder, _pointer, zfill=True)
    to_tensor = ir.FunctionType(_int32, [_pointer, tensor.type])
    builder.call(cgutils.get_or_insert_function(builder.module, to_tensor, _TO_TENSOR), [managed, tensor])
    return builder.load(tensor)


@njit
def _make(tensor):
    """Return a new tensor: what there is to do is done where Numba takes the argument and gives the result back."""
    return tensor


keep_compiled(_make)


@cache
def _compiled_make():
    return _make.compile((_new_tensor,))


class Blank:
    """A CPU tensor that is yet to be made.

    Compiled code allocates, in half the time that ``torch.empty`` takes, and asks for huge pages where the tensor is
    large, which torch does not: a large result is written several times faster into huge pages.

    Parameters
    ----------
    shape : tuple of int
        Its size; with `channels_last`, ``(N, C, H, W)``.
    dtype : torch.dtype
        float32, float64, float16 or bfloat16.
    channels_last : bool
        Whether it is channels_last in memory, else contiguous.
    """

    # In bytes, from where on pages are asked for, as NumPy does.
    _HUGE = 1 << 22

    def __init__(self, shape, dtype, channels_last=False):
        self._make = _compiled_make()
        self._shape = shape
        in_memory = (0, 2, 3, 1) if channels_last else range(len(shape))
        strides = {axis: math.prod(shape[inner] for inner in in_memory[k + 1 :]) for k, axis in enumerate(in_memory)}
        sizes = ctypes.c_int64 * len(shape)
        self._sizes, self._strides = sizes(*shape), sizes(*(strides[axis] for axis in range(len(shape))))
        self._bytes = math.prod(shape) * dtype.itemsize
        pattern = self._pattern = _Pattern()
        pattern.size = min(self._bytes + ctypes.sizeof(_ManagedTensor) + _ALIGNMENT, 2**64 - 1)  # which nobody gives
        pattern.managed.major = 1
        pattern.managed.deleter = _address_of(ctypes.pythonapi.PyMem_RawFree)
        head = pattern.managed.dl_tensor
        head.device_type, head.ndim, head.dtype = 1, len(shape), _DLPACK_DTYPES[dtype]
        head.shape, head.strides = ctypes.addressof(self._sizes), ctypes.addressof(self._strides)
        self._address = ctypes.addressof(pattern)

    def empty(self) -> Tensor:
        """Return the tensor, new each time; what is in it, nobody knows.

        Raises
        ------
        RuntimeError
            If there is not so much memory, as torch's own allocator does.
        """
        try:
            tensor = self._make(self._address)
        except MemoryError:
            raise RuntimeError(
                f"adaptive_avg_pool2d: cannot allocate a result of shape {list(self._shape)}: {self._bytes} bytes"
            ) from None
        if self._bytes >= self._HUGE:
            _ask_for_huge_pages(tensor.data_ptr(), self._bytes)
        return tensor


def _ask_for_huge_pages(begin, size):
    if hasattr(mmap, "MADV_HUGEPAGE"):  # on Linux
        page = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(page), ctypes.c_size_t(begin + size - page), mmap.MADV_HUGEPAGE)


def address(tensor: Tensor) -> int:
    """Return where the memory of `tensor` begins, on its device, as DLPack says."""
    head = _DLTensor()
    if _describe(tensor, ctypes.addressof(head)):
        raise RuntimeError(f"numba_pool: DLPack cannot describe a tensor of {tensor.dtype} on {tensor.device}")
    return head.data + head.byte_offset

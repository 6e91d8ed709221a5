"""Tiny tensors: one compiled call finds out what is to be done with a tensor, makes the result and fills it.

What Python does around a kernel takes several times as long as the windows of a tiny tensor: sizes and strides are
read, a plan is looked up, a tensor made, and a dozen arguments are taken apart.
So what is known of a call is written down, once, in a record that compiled code reads: words of 64 bits.
A call forward and backward takes three quarters to four fifths of the time.
"""

import ctypes
from functools import partial
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import intp, njit, typeof
from numba.core import cgutils, types
from numba.extending import NativeValue, box, intrinsic, models, register_model, unbox
from torch import Tensor

from . import _dlpack
from ._cache import compiled, keep_compiled

# The words of a record.
NEXT = 0  # where another record is, or 0
SOURCE = 1  # a `DLTensor`: what a source must be
TARGET = 7  # a `DLManagedTensor`: what the target is to be
BLOCK = 17  # how many bytes this takes, and the target's elements
FILL = 18  # where `fill` is, compiled for the kernel
KERNEL = 19  # where that is
ELEMENTS = 20  # how many the source has, and the target
ARGUMENTS = 22  # of the kernel, beside source and target

# The words of a `DLTensor`, where some hold two fields.
DATA, DEVICE, NDIM_AND_DTYPE, SHAPE, STRIDES, BYTE_OFFSET = range(6)

# A `DLManagedTensor` has so many, and ends with a `DLTensor`.
MANAGED = 10
DLTENSOR = 4

# Tensors of torch's own are aligned to as many bytes.
ALIGNMENT = 64

_int64 = ir.IntType(64)
_words = _int64.as_pointer()

# Compiled code that is kept on disk finds the function by this name.
_SYMBOL = "numba_pool_allocate"
llvmlite.binding.add_symbol(_SYMBOL, ctypes.cast(ctypes.pythonapi.PyMem_RawMalloc, ctypes.c_void_p).value)
allocate = types.ExternalFunction(_SYMBOL, intp(intp))


class _Address(types.Type):
    """Numba's type of an address whose type says more than that it is a number."""

    bitwidth = 64


class _Source(_Address):
    """Python passes a tensor, compiled code gets the address of its `DLTensor`: of zeros, where DLPack has none."""


class _Answer(_Address):
    """Compiled code returns the address of a `DLManagedTensor` or 0, Python gets the call and the target or None."""


class _Record(_Address):
    """Of a record whose kernel takes tensors of one type, and beside them what is in a tuple of another."""

    def __init__(self, tensor_type, arguments):
        self.tensor_type, self.arguments = tensor_type, arguments
        super().__init__(f"Record({tensor_type}, {arguments})")


for _type in (_Source, _Answer, _Record):
    register_model(_type)(models.IntegerModel)
_source, _answer = _Source("Source"), _Answer("Answer")


@unbox(_Source)
def _unbox_source(typ, tensor, c):
    head = cgutils.alloca_once(c.builder, _dlpack.HEAD, zfill=True)
    failed = cgutils.is_not_null(c.builder, _dlpack.describe(c, tensor, head))
    with cgutils.if_unlikely(c.builder, failed):
        c.pyapi.err_clear()
        c.builder.store(_dlpack.HEAD(None), head)
    return NativeValue(c.builder.ptrtoint(head, _int64))


@box(_Answer)
def _box_answer(typ, address, c):
    builder = c.builder
    answer = cgutils.alloca_once_value(builder, c.pyapi.get_null_object())
    with builder.if_else(cgutils.is_null(builder, address)) as (none, some):
        with none:
            builder.store(c.pyapi.make_none(), answer)
        with some:
            managed = builder.inttoptr(address, _dlpack.MANAGED.as_pointer())
            call = builder.load(cgutils.gep_inbounds(builder, managed, 0, 2))  # its manager_ctx
            target = _dlpack.to_tensor(c, managed)
            with builder.if_then(cgutils.is_not_null(builder, target)):
                builder.store(c.pyapi.tuple_pack([call, target]), answer)
                c.pyapi.decref(target)
    return builder.load(answer)


@intrinsic
def as_type(typingctx, address, typ):
    """Return an address as one of another type."""
    return typ.instance_type(address, typ), lambda context, builder, signature, arguments: arguments[0]


@intrinsic
def word(typingctx, address, i):
    """Return word `i` of those at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(builder.gep(builder.inttoptr(arguments[0], _words), [arguments[1]]))

    return intp(intp, intp), codegen


@intrinsic
def set_word(typingctx, address, i, value):
    """Set word `i` of those at an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[2], builder.gep(builder.inttoptr(arguments[0], _words), [arguments[1]]))
        return context.get_dummy_value()

    return types.none(intp, intp, intp), codegen


def _call(context, builder, address, arguments, argument_types):
    """Write the call of a compiled function at an address, and pass on what it raises."""
    pointer = context.call_conv.get_function_type(types.none, argument_types).as_pointer()
    function = builder.inttoptr(address, pointer)
    status, _ = context.call_conv.call_function(builder, function, types.none, argument_types, arguments)
    with cgutils.if_unlikely(builder, status.is_error):
        context.call_conv.return_status_propagate(builder, status)
    return context.get_dummy_value()


@intrinsic
def call_fill(typingctx, address, source, target, record):
    """Call `fill`, as compiled for the kernel of a record."""
    argument_types = (intp, intp, intp)

    def codegen(context, builder, signature, arguments):
        return _call(context, builder, arguments[0], arguments[1:], argument_types)

    return types.none(intp, *argument_types), codegen


@intrinsic
def call_kernel(typingctx, source, target, record):
    """Call the kernel of a record for the elements at two addresses."""
    tensor_type = record.tensor_type
    argument_types = (tensor_type, tensor_type, *record.arguments)

    def codegen(context, builder, signature, arguments):
        words = builder.inttoptr(arguments[2], _words)
        tensors = []
        for i in range(2):
            data = builder.inttoptr(arguments[i], cgutils.voidptr_t)
            size = builder.load(builder.gep(words, [_int64(ELEMENTS + i)]))
            tensors.append(_dlpack.flat_array(context, builder, tensor_type, data, size))
        written = context.get_value_type(record.arguments).as_pointer()
        others = builder.load(builder.bitcast(builder.gep(words, [_int64(ARGUMENTS)]), written))
        kernel = builder.load(builder.gep(words, [_int64(KERNEL)]))
        values = [*tensors, *cgutils.unpack_tuple(builder, others)]
        return _call(context, builder, kernel, values, argument_types)

    return types.none(source, target, record), codegen


@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def fill(source, target, record):
    """Fill the elements at one address from those at another."""
    call_kernel(source, target, record)


@njit
def are_same(a, b, n):
    """Say whether `n` words at two addresses are the same."""
    i = 0
    while i < n and word(a, i) == word(b, i):
        i += 1
    return i == n


@njit
def is_for(record, source):
    """Say whether a record is for such a source."""
    needed = record + 8 * SOURCE
    ndim = word(needed, NDIM_AND_DTYPE) & 0xFFFFFFFF
    return (
        word(source, NDIM_AND_DTYPE) == word(needed, NDIM_AND_DTYPE)
        and word(source, DEVICE) & 0xFFFFFFFF == word(needed, DEVICE)  # its type; there is one CPU
        and are_same(word(source, SHAPE), word(needed, SHAPE), ndim)
        and are_same(word(source, STRIDES), word(needed, STRIDES), ndim)
        and word(source, DATA) != 0
    )


@njit(nogil=True)
def answer(record, tensor):
    """Return the call for a tensor, and its target, filled; None if no record is for it, or memory is short."""
    source = as_type(tensor, intp)
    while record != 0 and not is_for(record, source):
        record = word(record, NEXT)
    block = allocate(word(record, BLOCK)) if record != 0 else 0
    if block != 0:
        for i in range(MANAGED):
            set_word(block, i, word(record, TARGET + i))
        target = (block + 8 * MANAGED + ALIGNMENT - 1) & -ALIGNMENT
        set_word(block, DLTENSOR + DATA, target)
        call_fill(word(record, FILL), word(source, DATA) + word(source, BYTE_OFFSET), target, record)
    return as_type(block, _answer)


keep_compiled(answer, fill)

# Compiled code may read a record at any time, in any thread. So they are kept for good, and are only so many.
MOST_RECORDS = 1024
_kept: list[Any] = []


def remember(
    call: object, kernel, arguments: tuple, source: Tensor, target: Tensor, others: partial | None
) -> partial | None:
    """Return a function that does a call again.

    Parameters
    ----------
    call : object
        What the function returns beside the target.
    kernel : numba dispatcher
        What fills the target.
    arguments : tuple of int, numpy.ndarray and tuples of these
        What the kernel gets beside source and target. The arrays must stay as they are.
    source, target : torch.Tensor
        The two of this call, on the CPU: those of the next one are as long, in memory too.
    others : callable, optional
        A function for sources of other sizes, strides or dtypes, which the new one will do the work of.

    Returns
    -------
    callable or None
        Called with a tensor, it returns `call` and the target, or None: for a source unlike these, and where memory is
        short. It does not see whether the tensor's negative bit is set.
        None, if there are as many functions as there may be, or this version of torch has not what they need.
    """
    if len(_kept) >= MOST_RECORDS or not _dlpack.TAKES_TENSORS:
        return None
    tensor_type = _dlpack.FLAT_TENSORS[source.dtype]
    ndim_and_dtype = source.dim() | _dlpack.DLPACK_DTYPES[source.dtype] << 32
    sizes = [np.array(size, np.int64) for size in (source.shape, source.stride(), target.shape, target.stride())]
    shape, strides, target_shape, target_strides = (array.ctypes.data for array in sizes)
    version, cpu, nothing = 1, 1, 0
    free = ctypes.cast(ctypes.pythonapi.PyMem_RawFree, ctypes.c_void_p).value
    record = np.array(
        [
            *(others.args if others else (0,)),
            *(nothing, cpu, ndim_and_dtype, shape, strides, nothing),
            *(version, id(call), free, nothing),
            *(nothing, cpu, ndim_and_dtype, target_shape, target_strides, nothing),
            8 * MANAGED + ALIGNMENT + target.nbytes,
            _machine_code(fill, intp, intp, _Record(tensor_type, typeof(arguments))),
            _machine_code(kernel, tensor_type, tensor_type, *map(typeof, arguments)),
            *(source.numel(), target.numel()),
            *_as_words(arguments),
        ],
        np.int64,
    )
    _kept.append((record, sizes, call, arguments))
    return partial(compiled(answer, intp, _source), record.ctypes.data)


def _machine_code(function, *argument_types):
    """Return the address of a compiled function, as other compiled functions call it."""
    compiled(function, *argument_types)
    result = function.overloads[argument_types]
    return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


def _as_words(value):
    """Yield a value as compiled code holds it: an array as Numba's ``ArrayModel`` says."""
    if isinstance(value, tuple):
        for member in value:
            yield from _as_words(member)
    elif isinstance(value, np.ndarray):
        nobody_counts = 0, 0  # references: no `meminfo`, and no `parent`
        yield from (*nobody_counts, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)
    else:
        yield value

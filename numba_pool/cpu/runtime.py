"""How the kernels are compiled, kept on disk and shared out to threads."""

import contextlib
import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

from numba import config, intp, njit, prange, typeof, types
from numba.core.caching import FunctionCache
from numba.np.ufunc import parallel as thread_pool


class Sizes(NamedTuple):
    """What a kernel is told: how large a plane of the source and of the destination is, and what is wanted.

    A contiguous tensor has ``N * C`` planes of pixels of one channel, a channels_last one ``N`` planes of pixels of
    `C` channels.
    """

    sH: int  # rows of a plane of the source
    sW: int  # pixels of a row
    dH: int  # the same of the destination
    dW: int
    C: int  # channels of a pixel
    average: int  # 1: every result is the mean of its window; 0: a sum in which each element counts by its share
    parts: int  # that every window is cut into, each of which has a result of its own


# What is inlined into a kernel needs no wrappers for other callers. Functions that make no arrays count no references
# to those that they are given, which the kernel holds anyway.
_part = {
    "forceinline": True,
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
inline = njit(**_part, _nrt=False)
inline_with_arrays = njit(**_part)
kernel = njit(nogil=True, error_model="numpy")


# --- the disk cache -------------------------------------------------------------------------------------------------


def _stamp():
    """Return a digest of the sources that a kernel is compiled from: Numba itself looks at one file only."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in (*sorted(folder.glob("*.py")), folder.parent / "dlpack.py", folder.parent / "windows.py"):
        # There are no sources in a zip file, or where only .pyc files were installed.
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.digest()


_STAMP = _stamp()


class _Cache(FunctionCache):
    """Numba's cache of one function, in which whatever goes wrong costs a compilation and at most a warning.

    Numba's own raises where a file is truncated (numba issue 10434) or the disk is full.
    """

    def __init__(self, py_func):
        super().__init__(py_func)
        self._cache_file._source_stamp = self._cache_file._source_stamp, _STAMP

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            _warn(f"a cached kernel could not be read and is compiled again ({error!r})")
            # The folder may be read-only: then the damaged file stays, and each process compiles.
            with contextlib.suppress(Exception):
                self.flush()
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn(f"a compiled kernel could not be kept and will be compiled again by the next process ({error!r})")


def _warn(message):
    warnings.warn(f"numba_pool: {message}", RuntimeWarning, stacklevel=3)


def keep_compiled(*kernels):
    """Let Numba keep what it compiles for kernels in its cache folder, if it finds a writable one."""
    if config.DISABLE_JIT:
        return  # kernels are the Python functions that they are made of
    for each in kernels:
        try:
            each._cache = _Cache(each.py_func)
        except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache is writable
            return


def compiled(function, *argument_types):
    """Return a kernel's result of compilation for arguments of some types; its `entry_point` is a Python function.

    A call of that takes half the time that a call of the kernel takes, which looks at the type of every argument.
    """
    if argument_types not in function.overloads:  # else not, because `compile` waits while anybody compiles anything
        function.compile(argument_types)
    return function.overloads[argument_types]


# --- threads --------------------------------------------------------------------------------------------------------

_pool = threading.Lock()
_inherited = False


def run(kernel, src, src_type, dst, dst_type, sizes, count, threads):
    """Fill `dst` from `src`: `count` units of a kernel's work, on up to `threads` threads.

    Two of Numba's threading layers end the process when they are misused: ``workqueue`` when two Python threads enter
    it at once, GNU OpenMP when a forked child uses its parent's pool.
    So one Python thread at a time enters the pool, and none does in the child of a process that had started it, by
    whatever Numba function; whoever may not enter computes on its own thread, with the same bits.
    What cannot be protected is somebody else's parallel function in another Python thread at the same time, where the
    layer is ``workqueue``.
    """
    if threads > 1 and not _inherited and _pool.acquire(blocking=False):
        try:
            shared = _shared(kernel, src_type, dst_type)
            shared.entry_point(shared, src, dst, sizes, count, threads)
        finally:
            _pool.release()
    else:
        _serial(kernel, src_type, dst_type)(src, dst, sizes, 0, count)


# What is compiled, by kernel and types.
_compiled: dict = {}


def _serial(kernel, src_type, dst_type):
    """Return the entry point of a kernel for one thread."""
    key = kernel, src_type.name, dst_type.name  # a type's own hash takes a microsecond
    if key not in _compiled:
        _compiled[key] = compiled(kernel, src_type, dst_type, _SIZES, intp, intp).entry_point
    return _compiled[key]


def _shared(kernel, src_type, dst_type):
    """Return a kernel for several threads."""
    key = share, kernel, src_type.name, dst_type.name
    if key not in _compiled:
        _compiled[key] = _Shared(kernel, src_type, dst_type)
    return _compiled[key]


def precompile(kernel, src_type, dst_type):
    """Compile a kernel for one thread and for several."""
    _serial(kernel, src_type, dst_type)
    _shared(kernel, src_type, dst_type)


@njit(nogil=True, parallel=True)
def share(kernel, src, dst, sizes, count, threads):
    """Share the work of a kernel out to threads."""
    for t in prange(threads):
        kernel(src, dst, sizes, t * count // threads, (t + 1) * count // threads)


class _Shared(types.WrapperAddressProtocol):
    """A kernel as an argument of `share`, which calls it at its address.

    Compiled into a parallel function of its own, every kernel would be optimized twice more: three seconds instead of
    half of one.
    """

    def __init__(self, kernel, src_type, dst_type):
        result = compiled(kernel, src_type, dst_type, _SIZES, intp, intp)
        self._address = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)
        self._signature = types.none(src_type, dst_type, _SIZES, intp, intp)
        function_type = types.FunctionType(self._signature)
        self.entry_point = compiled(share, function_type, src_type, dst_type, _SIZES, intp, intp).entry_point

    def __wrapper_address__(self):
        return self._address

    def signature(self):
        return self._signature


_SIZES = typeof(Sizes(*[1] * len(Sizes._fields)))


def _after_fork_in_child():
    global _pool, _inherited
    # Were the answer not to be had, no child would enter a pool.
    _inherited = _inherited or getattr(thread_pool, "_is_initialized", True)
    _pool = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

keep_compiled(share)

"""Compiled kernels are kept on disk, where that works; where it does not, they are compiled anew in each process.

Numba's own ``cache=True`` raises at import where no folder is writable, and at a call where a file of the cache is
damaged or the disk is full.
None of that is a reason not to compute.
"""

import contextlib
import hashlib
import pickle
import warnings
from pathlib import Path

from numba.core.caching import FunctionCache, IndexDataCacheFile


def _digest_of_sources():
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in (folder / "_dlpack.py", folder / "_quick.py", *sorted((folder / "kernels").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.digest()


# Numba looks whether the file that holds a function has changed; a kernel's code comes from its neighbours too,
# and how it takes its arguments from the bridge and from what calls it at an address.
_STAMP = _digest_of_sources()


class _CheckedFile(IndexDataCacheFile):
    """Numba's cache files, with a checksum: machine code that a disk has damaged must not run."""

    def save(self, key, data):
        content = self._dump((key, data))
        super().save(key, (hashlib.sha256(content).digest(), content))

    def load(self, key):
        entry = super().load(key)
        if entry is None:
            return None
        checksum, content = entry
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("wrong checksum")
        found, data = pickle.loads(content)
        if found != key:
            raise ValueError("the kernel of another signature")
        return data


class _ForgivingCache(FunctionCache):
    """Numba's cache of one function, in which whatever goes wrong costs a compilation and at most a warning."""

    def __init__(self, py_func):
        super().__init__(py_func)
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, _STAMP)

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


def keep_compiled(*dispatchers):
    """Let Numba keep what it compiles for these functions in its cache folder, if it finds a writable one."""
    for dispatcher in dispatchers:
        try:
            dispatcher._cache = _ForgivingCache(dispatcher.py_func)
        except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache is writable
            return


def compiled(kernel, *types):
    """Return the machine code of a kernel for arguments of some types, as a function.

    A call of it takes half the time that a call of the kernel takes, which looks at the type of every argument.
    """
    found = kernel.overloads.get(types)  # first, because `compile` waits while anybody compiles anything
    return found.entry_point if found else kernel.compile(types)

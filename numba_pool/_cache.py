"""Compiled kernels are kept on disk, where that works; where it does not, they are compiled anew in each process.

Numba's own ``cache=True`` raises at import where no folder is writable, and at a call where a file of the cache is damaged or the
disk is full.
None of that is a reason not to compute.
"""

import warnings

from numba.core.caching import FunctionCache


class _ForgivingCache(FunctionCache):
    """Numba's cache of one function, in which whatever goes wrong costs a compilation and at most a warning."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            _warn(f"a cached kernel could not be read and is compiled again ({error!r})")
            try:
                self.flush()
            except Exception:  # the folder may be read-only: then the damaged file stays, and each process compiles
                pass
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

"""Who may use Numba's thread pool, and when.

Two of Numba's threading layers end the process when they are misused.
``workqueue`` does when two Python threads enter it at once, GNU OpenMP when a forked child uses its parent's pool.
So one Python thread at a time enters the pool, and none does in the child of a process that had; whoever may not enter
computes on its own thread.
The results are the same bits either way.
"""

import os
import threading

_pool = threading.Lock()
_used = False
_inherited = False


def run_in_pool(parallel_kernel, *arguments):
    """Call a parallel kernel, if this Python thread may enter the pool now; say whether it did."""
    global _used
    if _inherited or not _pool.acquire(blocking=False):
        return False
    try:
        _used = True
        parallel_kernel(*arguments)
    finally:
        _pool.release()
    return True


def _after_fork_in_child():
    global _pool, _inherited
    _inherited = _used
    _pool = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

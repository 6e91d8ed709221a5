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


def run(kernel, parallel_kernel, arguments, count, threads):
    """Do the work items 0 to `count` of a kernel on up to `threads` threads."""
    global _used
    if threads > 1 and not _inherited and _pool.acquire(blocking=False):
        try:
            _used = True
            parallel_kernel(*arguments, count, threads)
        finally:
            _pool.release()
    else:
        kernel(*arguments, 0, count)


def _after_fork_in_child():
    global _pool, _inherited
    _inherited = _used
    _pool = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
